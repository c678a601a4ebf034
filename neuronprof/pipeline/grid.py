"""Which layouts a sweep tries: every combination of the asked sizes that makes sense on so many ranks."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from neuronprof.distribute.layout import Layout
from neuronprof.distribute.styles import Style
from neuronprof.errors import NeuronprofError


@dataclass(frozen=True)
class Grid:
    """What to try of each option of a layout, and in which styles; data parallelism takes the ranks that are left.

    microbatches: parts into which the script's batch is cut. global_batch: samples of a step over all ranks, the same for every layout
    (None: as many as the layout with the most replicas takes when each has the script's batch once). prefetch: where zero is 3.
    """

    tp: tuple[int, ...] = (1,)
    pp: tuple[int, ...] = (1,)
    cp: tuple[int, ...] = (1,)
    vp: tuple[int, ...] = (1,)
    microbatches: tuple[int, ...] = (1,)
    zero: tuple[int, ...] = (0,)
    schedules: tuple[str, ...] = ("1f1b",)
    sequence_parallel: tuple[bool, ...] = (False,)
    global_batch: int | None = None
    grad_sync: tuple[str, ...] = ("overlapped",)
    prefetch: tuple[int, ...] = (1,)
    styles: tuple[Style, ...] = (Style(),)


def layouts(grid: Grid, ranks: int, batch: int) -> tuple[list[Layout], list[tuple[Layout, str]]]:
    """The layouts to simulate, and those that cannot be, each with the reason.

    ranks: of the whole job; batch: samples of the script's step.

    Raises:
        NeuronprofError: no layout divides the ranks.
    """
    shapes = list(_shapes(grid))
    dividing = [s for s in shapes if ranks % s.model_ranks == 0]
    if not dividing:
        raise NeuronprofError(
            f"None of the layouts divides the {ranks} ranks; give sizes of --tp, --pp and --cp whose product does."
        )
    most = ranks // min(s.model_ranks for s in dividing)
    samples = grid.global_batch or batch * most
    uneven = f"{ranks} ranks are no multiple of tp x pp x cp"
    found, refused = [], [(s, uneven) for s in shapes if s not in dividing]
    for shape in dividing:
        replicas = ranks // shape.model_ranks
        accumulate, rest = divmod(samples, replicas * batch)
        layout = Layout(**{**vars(shape), "dp": replicas, "accumulate": max(1, accumulate)})
        if reason := _refusal(layout, samples, batch, rest):
            refused.append((layout, reason))
        else:
            found.append(layout)
    return found, refused


def _refusal(layout: Layout, samples: int, batch: int, rest: int) -> str:
    if rest:
        return (
            f"a global batch of {samples} is no multiple of {layout.dp} replicas with the script's batch of {batch}; "
            "change --global-batch, or the batch of the script"
        )
    try:
        layout.validate()
    except NeuronprofError as error:
        return str(error)
    return ""


def _shapes(grid: Grid) -> Iterator[Layout]:
    """Combinations, without those that are the same as another one."""
    axes = (
        grid.tp, grid.pp, grid.cp, grid.vp, grid.microbatches, grid.zero, grid.schedules, grid.sequence_parallel,
        grid.grad_sync, grid.prefetch,
    )  # fmt: skip
    seen = set()
    for tp, pp, cp, vp, parts, zero, schedule, divided, grad_sync, ahead in product(*axes):
        interleaves = pp > 1 and schedule == "interleaved"
        if (interleaves and vp < 2 and max(grid.vp) > 1) or (schedule != "interleaved" and vp > min(grid.vp)):
            continue
        shape = Layout(
            tp=tp, pp=pp, cp=cp, vp=vp if interleaves else 1, microbatches=parts, zero=zero,
            sequence_parallel=divided and tp > 1, schedule=schedule if pp > 1 else "1f1b",
            grad_sync=grad_sync, prefetch=ahead if zero == 3 else 1,
        )  # fmt: skip
        if shape not in seen:
            seen.add(shape)
            yield shape
