"""What a user chooses for a recording, wherever it is asked for: command line, script or notebook."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuronprof.errors import NeuronprofError

if TYPE_CHECKING:
    from neuronprof.distribute.layout import Layout
    from neuronprof.distribute.styles import Style
    from neuronprof.simulate.job import Faults


@dataclass(frozen=True)
class Options:
    """How a job is recorded, laid out and simulated.

    output: path of the trace; trace_ranks: which ranks it holds in full (None: all, or representatives where that is too much).
    detail: 'instruction', or 'instruction:PATTERN' of operators or layers, for single instructions tile by tile ('': none).
    chip: name or TOML file; lnc: physical cores in a logical one (None: the chip's default); allow_oom: simulate what does not fit.
    values: real, none or auto; steps, warmup: training steps to keep and to skip (steps None: three, and the script runs on to its end);
    run_on: let the script run on after `steps`; module: the script is a module's name, as for `python -m`.
    world_size: ranks of a script that distributes itself (None: WORLD_SIZE of the environment, or 1); as_rank: which of them is recorded.
    dp to even_stages, bucket_bytes, grad_sync, prefetch: the layout of a script for one device, see distribute.layout.Layout.
    recompute, fp8, fp32_gradients: how the step is run, see distribute.styles.Style; eager: on a GPU, the host launches each operator
    as a kernel of its own.
    jitter to late_hosts, seed: what makes ranks differ, see simulate.cluster.Faults.
    collective_algorithm: one for all collectives (None: by size and group); oversubscription: of EFA. quiet: no progress on stderr.
    """

    output: str | Path = "trace.parquet"
    trace_ranks: str | None = None
    detail: str = ""
    chip: str = "trainium4"
    lnc: int | None = None
    allow_oom: bool = False
    values: str = "auto"
    steps: int | None = None
    warmup: int = 1
    run_on: bool = False
    module: bool = False
    world_size: int | None = None
    as_rank: int = 0
    dp: int = 1
    tp: int = 1
    pp: int = 1
    cp: int = 1
    ep: int = 1
    vp: int = 1
    microbatches: int = 1
    accumulate: int = 1
    zero: int = 0
    sequence_parallel: bool = False
    schedule: str = "1f1b"
    even_stages: bool = False
    recompute: str = "none"
    fp8: bool = False
    fp32_gradients: bool = False
    eager: bool = False
    bucket_bytes: int = 25 << 20
    grad_sync: str = "overlapped"
    prefetch: int = 1
    jitter: float = 0.0
    seed: int = 0
    slow_chips: dict[int, float] = field(default_factory=dict)
    throttled: dict[int, float] = field(default_factory=dict)
    links: dict[int, float] = field(default_factory=dict)
    late_hosts: dict[int, float] = field(default_factory=dict)
    collective_algorithm: str | None = None
    oversubscription: float = 1.0
    quiet: bool = False

    @classmethod
    def of(cls, **choices: Any) -> "Options":
        """Options by name.

        Raises:
            NeuronprofError: a name that is no option.
        """
        known = cls.__dataclass_fields__
        unknown = sorted(set(choices) - set(known))
        if unknown:
            raise NeuronprofError(
                f"There is no option '{unknown[0]}' for a recording; the options are {', '.join(known)}."
            )
        return cls(**choices)

    def layout(self) -> "Layout":
        """The layout of a script for one device."""
        from neuronprof.distribute.layout import Layout

        names = Layout.__dataclass_fields__
        return Layout(**{name: getattr(self, name) for name in names})

    def style(self) -> "Style":
        """How the step is run."""
        from neuronprof.distribute.styles import Style

        return Style(self.recompute, self.fp8, self.fp32_gradients)

    def faults(self) -> "Faults":
        """What makes ranks differ."""
        from neuronprof.simulate.job import Faults

        return Faults(self.jitter, self.seed, self.slow_chips, self.throttled, self.links, self.late_hosts)
