"""One captured step on several machines, on each with the best of the layouts that are likely to fit."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING, Any

from neuronprof.distribute.layout import Layout
from neuronprof.distribute.styles import Style, styled
from neuronprof.pipeline.grid import Grid, layouts
from neuronprof.pipeline.sweep import Machines, Step, tried
from neuronprof.terms import Role

if TYPE_CHECKING:
    import pandas as pd

_SIZES = (1, 2, 4, 8, 16)
_TRIED = 6  # layouts that are simulated where none is given: those that spread the model least
_FOR_STATE = 0.9  # of HBM: the rest is the least that activations need


def compare(
    step: Step,
    machines: Sequence[Machines],
    grid: Grid | None = None,
    *,
    style: Style | None = None,
    global_batch: int | None = None,
    workers: int = 1,
    done: Callable[[int, int], None] = lambda _done, _count: None,
) -> "pd.DataFrame":
    """The best layout of each machine, a row each in the order in which they are given; figures as `sweep` has them.

    grid: layouts to try (None: chosen for each machine so that weights, gradients and optimizer state fit); style: how the step is run
    (None: as it is); global_batch: samples of a step, the same on all (None: the script's batch on each rank of the machine with most).

    Raises:
        NeuronprofError: no layout of the grid divides a machine's ranks, or the step cannot be run so.
    """
    import pandas as pd

    samples = global_batch or step.samples * max(m.ranks for m in machines)
    rows: list[dict[str, Any]] = []
    style = style or Style()
    run_so = replace(step, graph=styled(step.graph, style))
    for number, machine in enumerate(machines):
        possible, refused = _asked(run_so, machine, grid, samples)
        best = tried(step, machine, possible, refused, styles=(style,), workers=workers).iloc[0].to_dict()
        price = machine.chip.quantities["price.hour"]
        provenance = str(price.provenance) if machine.price == price.value else "given"
        rows.append(
            {
                "chip": machine.chip.name,
                "instance": machine.chip.instance,
                "title": machine.chip.title,
                "chips": machine.count,
                "price_hour": machine.price,
                "price_provenance": provenance,
                **{str(column): value for column, value in best.items()},
            }
        )
        done(number + 1, len(machines))
    return pd.DataFrame(rows).drop(columns="pareto")


def _asked(
    step: Step, machine: Machines, grid: Grid | None, samples: int
) -> tuple[list[Layout], list[tuple[Layout, str]]]:
    if grid is not None:
        return layouts(replace(grid, global_batch=samples), machine.ranks, step.samples)
    return likely(step, machine, samples), []


def likely(step: Step, machine: Machines, samples: int) -> list[Layout]:
    """The layouts that spread the model least while weights, gradients and optimizer state leave room in HBM.

    The one that spreads it most, if none leaves room: so that somebody says how much is missing.
    """
    capacity = _FOR_STATE * machine.chip.package.hbm_capacity / machine.chip.ranks(machine.lnc)
    found = []
    for tp, pp, zero in product(_SIZES, _SIZES, (0, 1, 3)):
        dp, rest = divmod(machine.ranks, tp * pp)
        if rest or (zero and dp == 1) or samples % (dp * step.samples):
            continue
        layout = Layout(dp=dp, tp=tp, pp=pp, zero=zero, accumulate=samples // (dp * step.samples))
        found.append((_state(step, layout) > capacity, tp * pp, zero == 3, -zero, pp, layout))
    found.sort(key=lambda entry: entry[:-1])
    roomy = [layout for full, *_, layout in found if not full]
    return roomy[:_TRIED] or [min((entry[-1] for entry in found), key=lambda layout: _state(step, layout))]


def _state(step: Step, layout: Layout) -> float:
    """Bytes of a rank's weights, gradients and optimizer state."""
    sizes = dict.fromkeys((Role.WEIGHTS, Role.GRADIENTS, Role.OPTIMIZER_STATE), 0)
    for buffer in step.graph.buffers:
        if buffer.role in sizes:
            sizes[buffer.role] += buffer.nbytes
    shared = {Role.OPTIMIZER_STATE: 1, Role.GRADIENTS: 2, Role.WEIGHTS: 3}
    return sum(
        nbytes / (layout.tp * layout.pp) / (layout.dp if layout.zero >= shared[role] else 1)
        for role, nbytes in sizes.items()
    )
