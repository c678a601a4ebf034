"""The field's words, each written once. Values are the strings that stand in the trace."""

from enum import StrEnum


class Engine(StrEnum):
    """What executes an event: five instruction engines of a NeuronCore, its DMA rings, collectives, HBM, links, the host."""

    TENSOR = "tensor"
    VECTOR = "vector"
    SCALAR = "scalar"
    GPSIMD = "gpsimd"
    SYNC = "sync"
    DMA = "dma"
    CC = "cc"
    HBM = "hbm"
    NEURONLINK = "neuronlink"
    EFA = "efa"
    HOST = "host"


COMPUTE_ENGINES = (Engine.TENSOR, Engine.VECTOR, Engine.SCALAR, Engine.GPSIMD)


class Kind(StrEnum):
    """What sort of event a row of the trace is."""

    COMPUTE = "compute"
    TRANSFER = "transfer"
    COLLECTIVE = "collective"
    MEMORY = "memory"
    MARKER = "marker"


class WaitFor(StrEnum):
    """The one thing that an event at the head of its queue stood waiting for."""

    DATA = "data"
    DMA = "dma"
    HBM = "hbm"
    LINK = "link"
    PEER = "peer"
    SBUF = "sbuf"
    NONE = "none"


class Phase(StrEnum):
    """The part of a training script that an operator belongs to."""

    FORWARD = "forward"
    BACKWARD = "backward"
    RECOMPUTE = "recompute"
    OPTIMIZER = "optimizer"
    EVALUATION = "evaluation"
    OTHER = "other"


PHASES = tuple(Phase)


class Role(StrEnum):
    """What a tensor in HBM is kept for."""

    WEIGHTS = "weights"
    GRADIENTS = "gradients"
    OPTIMIZER_STATE = "optimizer_state"
    ACTIVATIONS = "activations"
    INPUTS = "inputs"
    WORKSPACE = "workspace"


ROLES = tuple(Role)


class OnChip(StrEnum):
    """Memories of a NeuronCore; they stand in the trace's column of engines, with memory events only."""

    SBUF = "sbuf"
    PSUM = "psum"


class Held(StrEnum):
    """What SBUF and PSUM hold.

    resident: tensors that stay in SBUF for a later operator; tiles: what operators that run now load, compute and store; partial_sums:
    results of products in PSUM, until an engine has taken them out.
    """

    RESIDENT = "resident"
    TILES = "tiles"
    PARTIAL_SUMS = "partial_sums"


HELD = tuple(Held)


class Collective(StrEnum):
    """The collective operations, under the names that Neuron Explorer gives them."""

    ALL_REDUCE = "AllReduce"
    ALL_GATHER = "AllGather"
    REDUCE_SCATTER = "ReduceScatter"
    ALL_TO_ALL = "AllToAll"
    PERMUTE = "Permute"
    SEND_RECV = "SendRecv"
    SEND = "Send"
    RECV = "Recv"
    BROADCAST = "Broadcast"
    BARRIER = "Barrier"


class Algorithm(StrEnum):
    """How a collective moves over the links."""

    RING = "ring"
    KANGARING = "kangaring"
    MESH = "mesh"
    SINGLE_STEP_MESH = "single-step-mesh"
    RDH = "rdh"
    IN_SWITCH = "in-switch"
    HIERARCHICAL = "hierarchical"


class Provenance(StrEnum):
    """How far a number of the machine can be trusted.

    documented: the vendor's documentation; announced: the vendor's announcement of a future product; reported: the description of
    Trainium4 that this project was asked to simulate; measured: a third party's measurement; calibrated: fitted to measurements;
    assumed: nobody says, the source gives the reasoning.
    """

    DOCUMENTED = "documented"
    ANNOUNCED = "announced"
    REPORTED = "reported"
    MEASURED = "measured"
    CALIBRATED = "calibrated"
    ASSUMED = "assumed"
