"""Layout: over which axes a model for one device is spread, and how."""

from dataclasses import dataclass, fields

from neuronprof.errors import NeuronprofError
from neuronprof.graph.groups import Mesh, ReplicaGroup

SCHEDULES = ("gpipe", "1f1b", "interleaved", "zero-bubble")
_MOST_SHARDED = 3
GRAD_SYNCS = ("overlapped", "after")
_KEPT_GRADIENTS = 1  # the last ZeRO stage that keeps them whole


@dataclass(frozen=True)
class Layout:
    """How many ranks each axis has.

    dp: replicas, each with the script's batch; tp: parts of the weights of a layer; pp: pipeline stages; cp: parts of a sequence; ep:
    parts of the experts, among the ranks of cp and dp, neighbours first, as Megatron has them; vp: virtual stages a pipeline rank.
    microbatches: parts of a replica's batch that follow each other.
    accumulate: how often a replica takes the script's batch in a step, one after another, each time in that many micro-batches.
    zero: what replicas share out among them: 1 optimizer state, 2 gradients too, 3 weights too. sequence_parallel: with tp, divide the
    sequence where weights are not divided. schedule: of the pipeline. even_stages: as many
    blocks a stage as can be, the last ones fewer, instead of stages of even cost. bucket_bytes: gradients that are reduced together.
    grad_sync: gradients are reduced beside backward (overlapped), or in one go after it. prefetch: with zero 3, blocks whose
    weights are gathered ahead of the one that runs (0: a block waits for its own).
    """

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
    bucket_bytes: int = 25 << 20
    grad_sync: str = "overlapped"
    prefetch: int = 1

    def mesh(self) -> Mesh:
        """The mesh: neighbours are tensor-parallel, then come context, data and pipeline parallelism."""
        axes = (("tp", self.tp), ("cp", self.cp), ("dp", self.dp), ("pp", self.pp))
        return Mesh(axes, (("ep", "cp", self.ep),) if self.ep > 1 else ())

    def expert_replicas(self) -> ReplicaGroup:
        """The ranks that have the same experts: of those of cp and dp each `ep`-th."""
        count = self.cp * self.dp // self.ep
        return ReplicaGroup("cp+dp" if self.cp > 1 else "dp", ((count, self.tp * self.ep),) if count > 1 else ())

    @property
    def model_ranks(self) -> int:
        """Ranks over which one replica of the model is spread."""
        return self.tp * self.pp * self.cp

    @property
    def passes(self) -> int:
        """Micro-batches that a replica runs in a step."""
        return self.microbatches * self.accumulate

    @property
    def world(self) -> int:
        """Number of ranks."""
        return self.dp * self.model_ranks

    def text(self) -> str:
        """What differs from one rank, as options: '--dp 2 --zero 1'."""
        given = [(f.name, getattr(self, f.name)) for f in fields(self) if getattr(self, f.name) != f.default]
        names = [(name.replace("_", "-"), value) for name, value in given]
        return " ".join(f"--{name}" if value is True else f"--{name} {value}" for name, value in names)

    def validate(self) -> None:
        """Refuses what no model could be laid out as.

        Raises:
            NeuronprofError: which option, and what to do.
        """
        for name in ("dp", "tp", "pp", "cp", "ep", "vp", "microbatches", "accumulate"):
            if getattr(self, name) < 1:
                raise NeuronprofError(f"--{name} {getattr(self, name)} is not a number of parts; give at least 1.")
        if not 0 <= self.zero <= _MOST_SHARDED:
            raise NeuronprofError(f"--zero {self.zero} does not exist; give 0, 1, 2 or 3.")
        if self.bucket_bytes < 1:
            raise NeuronprofError(f"--bucket {self.bucket_bytes} holds no gradient; give at least 1 byte.")
        self._validate_grad_sync()
        self._validate_prefetch()
        if self.schedule not in SCHEDULES:
            raise NeuronprofError(f"--schedule {self.schedule} does not exist; choose of {', '.join(SCHEDULES)}.")
        if self.dp * self.cp % self.ep:
            raise NeuronprofError(
                f"--ep {self.ep} shares experts out among the ranks of --dp and --cp, of which {self.dp} x {self.cp} is no multiple."
            )
        if self.sequence_parallel and self.tp == 1:
            raise NeuronprofError(
                "--sequence-parallel divides what --tp leaves whole; give --tp 2 or more, or leave it out."
            )
        self._validate_schedule()

    def _validate_grad_sync(self) -> None:
        if self.grad_sync not in GRAD_SYNCS:
            raise NeuronprofError(f"--grad-sync {self.grad_sync} does not exist; choose of {', '.join(GRAD_SYNCS)}.")
        if self.grad_sync == "after" and self.zero > _KEPT_GRADIENTS:
            raise NeuronprofError(
                f"--grad-sync after keeps whole gradients until backward has ended, which --zero {self.zero} is there to avoid; "
                "give --zero 0 or 1."
            )

    def _validate_prefetch(self) -> None:
        if self.prefetch < 0:
            raise NeuronprofError(f"--prefetch {self.prefetch} is not a number of blocks; give 0 or more.")
        if self.prefetch != 1 and self.zero < _MOST_SHARDED:
            raise NeuronprofError(
                f"--prefetch {self.prefetch} is of weights that ranks share out; give --zero 3, or leave it out."
            )

    def _validate_schedule(self) -> None:
        if self.vp > 1 and (self.pp == 1 or self.schedule != "interleaved"):
            raise NeuronprofError(f"--vp {self.vp} needs --pp 2 or more and --schedule interleaved.")
        if self.schedule == "interleaved" and self.pp > 1 and (self.vp < 2 or self.passes % self.pp):
            raise NeuronprofError(
                f"--schedule interleaved needs --vp 2 or more and micro-batches that are a multiple of --pp {self.pp}."
            )
