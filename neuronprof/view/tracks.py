"""The rows of the timeline, what they are called, and the colours of what stands in them."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from neuronprof.terms import PHASES, Engine, Held, Phase, Role

# Okabe and Ito's colours, told apart with any colour vision, and four of Paul Tol's for opcodes that meet on one screen, each of them
# at a distance from the others that people with deuteranopia and protanopia see too.
BLUE, VERMILLION, GREEN, PURPLE = "#0072b2", "#d55e00", "#009e73", "#cc79a7"
ORANGE, SKY, YELLOW, GREY = "#e69f00", "#56b4e9", "#f0e442", "#9aa1ab"
INDIGO, BROWN, WINE, SAND = "#332288", "#661100", "#882255", "#ddcc77"
PALE, PALER = "#d5dae1", "#e6e9ee"
PALETTE = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, YELLOW, GREY, INDIGO, BROWN, WINE, SAND, PALE, PALER)
_WHITE_ON = frozenset((BLUE, INDIGO, BROWN, WINE))
# Words inside events: at a contrast of 4.5 or more with each colour (WCAG 2.2, 1.4.3).
TEXT_PALETTE = tuple("#ffffff" if colour in _WHITE_ON else "#0b0e14" for colour in PALETTE)

PHASE_COLOURS: Mapping[str, str] = {
    Phase.FORWARD: BLUE,
    Phase.BACKWARD: VERMILLION,
    Phase.RECOMPUTE: PURPLE,
    Phase.OPTIMIZER: GREEN,
    Phase.EVALUATION: ORANGE,
}
OPCODE_COLOURS = {
    "MATMUL": BLUE,
    "ACTIVATE": GREEN,
    "TENSOR_TENSOR": ORANGE,
    "TENSOR_SCALAR": YELLOW,
    "TENSOR_REDUCE": PURPLE,
    "DMA_LOAD": SKY,
    "DMA_STORE": INDIGO,
    "DMA_GATHER": BROWN,
    "SPILL_SAVE": VERMILLION,
    "SPILL_RELOAD": VERMILLION,
    "AllReduce": WINE,
    "AllGather": BROWN,
    "ReduceScatter": SAND,
}
ENGINE_COLOURS: Mapping[str, str] = {
    Engine.TENSOR: BLUE,
    Engine.VECTOR: ORANGE,
    Engine.SCALAR: GREEN,
    Engine.GPSIMD: PURPLE,
    Engine.SYNC: SAND,
    Engine.DMA: SKY,
    Engine.CC: VERMILLION,
    Engine.NEURONLINK: WINE,
    Engine.EFA: INDIGO,
}
ROLE_COLOURS: Mapping[str, str] = {
    Role.WEIGHTS: BLUE,
    Role.OPTIMIZER_STATE: GREEN,
    Role.GRADIENTS: VERMILLION,
    Role.ACTIVATIONS: SKY,
    Role.INPUTS: YELLOW,
    Role.WORKSPACE: PURPLE,
}
HELD_COLOURS: Mapping[str, str] = {**ROLE_COLOURS, Held.RESIDENT: BLUE, Held.TILES: SKY, Held.PARTIAL_SUMS: ORANGE}

STEP, PHASE, REGION, THROTTLED, SLOWED = "step", "phase", "region", "throttled", "slowed"  # the bands above the engines
_ORDER = (STEP, PHASE, REGION, THROTTLED, SLOWED, *(e.value for e in Engine if e is not Engine.HBM))
_LABELS = {
    STEP: "Step",
    PHASE: "Phase",
    REGION: "Region",
    THROTTLED: "Throttled",
    SLOWED: "Slowed",
    "gpsimd": "GpSimd",
    "dma": "DMA",
    "cc": "Collectives",
    "neuronlink": "NeuronLink",
    "efa": "EFA",
}
_TENSOR_QUEUES = ("", " weights")
_DMA_QUEUES = ("weights", "activations", "stores", "host copies")


class Row(NamedTuple):
    """One row: an engine or a band, its queue, and the lane among events of that queue that overlap."""

    place: int
    engine: str
    queue: int
    lane: int


def row(engine: str, queue: int = 0, lane: int = 0) -> Row:
    """The row of an event; rows sort from top to bottom, engines nobody knows last."""
    return Row(_ORDER.index(engine) if engine in _ORDER else len(_ORDER), engine, queue, lane)


def labels(rows: Iterable[Row]) -> list[str]:
    """What stands left of each row; a queue is named where its engine has several, a lane only at its first row."""
    rows = list(rows)
    queues: dict[str, set[int]] = {}
    for at in rows:
        queues.setdefault(at.engine, set()).add(at.queue)
    return ["" if at.lane else _label(at, len(queues[at.engine]) > 1) for at in rows]


def _label(at: Row, several: bool) -> str:
    name = engine_label(at.engine)
    if at.engine == Engine.DMA and 0 <= at.queue < len(_DMA_QUEUES):
        return f"{name} {_DMA_QUEUES[at.queue]}"
    if at.engine == Engine.TENSOR and 0 <= at.queue < len(_TENSOR_QUEUES):
        return f"{name}{_TENSOR_QUEUES[at.queue]}"
    return f"{name} {at.queue}" if several else name


def engine_label(engine: str) -> str:
    """What an engine or band is called on the screen."""
    return _LABELS.get(engine, engine.capitalize())


def phase_order(phase: str) -> tuple[int, str]:
    """Sorts phases as a step goes through them, unknown ones last."""
    return (PHASES.index(Phase(phase)) if phase in PHASES else len(PHASES), phase)


def phase_colour(phase: str) -> int:
    """Where in the palette a phase's colour stands."""
    return PALETTE.index(PHASE_COLOURS.get(phase, GREY))


def opcode_colour(name: str) -> int:
    """Where in the palette an opcode's or collective's colour stands."""
    return PALETTE.index(OPCODE_COLOURS.get(name, GREY))


def engine_colour(engine: str) -> int:
    """Where in the palette an engine's colour stands."""
    return PALETTE.index(ENGINE_COLOURS.get(engine, GREY))
