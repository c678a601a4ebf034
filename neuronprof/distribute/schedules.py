"""Pipeline schedules: in which order a stage runs forward and backward of its micro-batches."""

from dataclasses import dataclass
from enum import Enum


class Pass(Enum):
    """What a stage does with a micro-batch: forward; backward; or backward of inputs and of weights apart."""

    FORWARD = "F"
    BACKWARD = "B"
    INPUTS = "I"
    WEIGHTS = "W"


@dataclass(frozen=True, slots=True)
class Action:
    """One pass of one micro-batch through one of a stage's virtual stages."""

    kind: Pass
    microbatch: int
    virtual: int = 0


def schedule(name: str, stages: int, stage: int, microbatches: int, virtual: int) -> list[Action]:
    """The actions of one stage, in order.

    GPipe: Huang et al. 2019. 1F1B: Narayanan et al., PipeDream-Flush. Interleaved: Narayanan et al. 2021, Megatron-LM. Zero-bubble: ZB-H1
    of Qi et al. 2023, where the backward of weights fills the bubble at the end.
    """
    if name == "gpipe":
        forward = [Action(Pass.FORWARD, m) for m in range(microbatches)]
        return forward + [Action(Pass.BACKWARD, m) for m in range(microbatches)]
    if name == "interleaved" and virtual > 1:
        return _interleaved(stages, stage, microbatches, virtual)
    if name == "zero-bubble":
        return _zero_bubble(stages, stage, microbatches)
    warm_up = min(stages - 1 - stage, microbatches)
    return _one_forward_one_backward(
        warm_up,
        [Action(Pass.FORWARD, m) for m in range(microbatches)],
        [Action(Pass.BACKWARD, m) for m in range(microbatches)],
    )


def _one_forward_one_backward(warm_up: int, forward: list[Action], backward: list[Action]) -> list[Action]:
    steady = len(forward) - warm_up
    pairs = [action for pair in zip(forward[warm_up:], backward[:steady], strict=True) for action in pair]
    return forward[:warm_up] + pairs + backward[steady:]


def _interleaved(stages: int, stage: int, microbatches: int, virtual: int) -> list[Action]:
    """Groups of `stages` micro-batches go through the first virtual stage, then the second, and so on."""
    total = microbatches * virtual
    warm_up = min((stages - stage - 1) * 2 + (virtual - 1) * stages, total)

    def place(k: int) -> tuple[int, int]:
        group, inside = divmod(k, stages * virtual)
        return group * stages + inside % stages, inside // stages

    forward = [Action(Pass.FORWARD, *place(k)) for k in range(total)]
    backward = [Action(Pass.BACKWARD, m, virtual - 1 - v) for m, v in map(place, range(total))]
    return _one_forward_one_backward(warm_up, forward, backward)


def _zero_bubble(stages: int, stage: int, microbatches: int) -> list[Action]:
    """1F1B with the backward of weights put off by as many micro-batches as the stage would else stand idle at the end."""
    plain = schedule("1f1b", stages, stage, microbatches, 1)
    actions: list[Action] = []
    waiting: list[int] = []
    for action in plain:
        if action.kind is Pass.FORWARD:
            actions.append(action)
            continue
        actions.append(Action(Pass.INPUTS, action.microbatch))
        waiting.append(action.microbatch)
        if len(waiting) > stage:
            actions.append(Action(Pass.WEIGHTS, waiting.pop(0)))
    return actions + [Action(Pass.WEIGHTS, m) for m in waiting]
