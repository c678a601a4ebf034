"""What is asked of a recording."""

from dataclasses import dataclass

DEFAULT_STEPS = 3
DEFAULT_WARMUP = 1


@dataclass(frozen=True)
class CaptureOptions:
    """What the command line says about recording.

    values: 'auto', 'real' or 'none'. steps: how many to record (None: the default, and the script runs on to its own end).
    warmup: steps before the first recorded one. stop: end the script after the last recorded step (None: only where steps
    is given). module: the script is the name of a module, as in `python -m`. world_size, rank: ranks of the job and which of
    them is recorded (None: as the script or the environment of its launcher says).
    """

    values: str = "auto"
    steps: int | None = None
    warmup: int = DEFAULT_WARMUP
    stop: bool | None = None
    module: bool = False
    world_size: int | None = None
    rank: int = 0

    @property
    def steps_to_record(self) -> int:
        """The number of steps in the recording, if the script has as many."""
        return DEFAULT_STEPS if self.steps is None else self.steps

    @property
    def stops(self) -> bool:
        """Whether the script is ended after its last recorded step."""
        return self.steps is not None if self.stop is None else self.stop
