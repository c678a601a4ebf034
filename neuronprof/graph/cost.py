"""What an operator costs, with no hardware in it: the nouns that ops.py fills."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from neuronprof.graph.ir import Signature


class OpKind(StrEnum):
    """The shape of an operator's work, which decides how it is fused, tiled and lowered.

    REDUCTION: anything along rows (sums, softmax, norms, losses, FFT). SORT: irregular work over a whole tensor
    (sort, unique, decompositions). COPY: casts and movement without arithmetic. VIEW: nothing at all. TRANSFER: between
    host and HBM.
    """

    GEMM = "gemm"
    ATTENTION = "attention"
    ELEMENTWISE = "elementwise"
    REDUCTION = "reduction"
    GATHER = "gather"
    SCATTER = "scatter"
    COPY = "copy"
    FILL = "fill"
    RANDOM = "random"
    SORT = "sort"
    VIEW = "view"
    HOST_SYNC = "host_sync"
    TRANSFER = "transfer"
    COLLECTIVE = "collective"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Gemm:
    """batch products (m, k) x (k, n)."""

    batch: int
    m: int
    k: int
    n: int

    @property
    def flops(self) -> int:
        """Floating-point operations; a multiply-add is 2."""
        return 2 * self.batch * self.m * self.k * self.n


@dataclass(frozen=True, slots=True)
class Passes:
    """Element passes of one operator: elements times the passes over them."""

    vector: int = 0
    scalar: int = 0
    gpsimd: int = 0


@dataclass(frozen=True, slots=True)
class Rule:
    """One row of the rule table: passes of each lane engine over the iteration space.

    vector is the count when all `operands` are tensors; an operand that is a number saves one pass. gemms, passes:
    functions that count products, and passes that depend on more than the size. picks: of its first input the operator
    reads only what its indices point to.
    """

    kind: OpKind
    vector: float = 0
    scalar: float = 0
    gpsimd: float = 0
    operands: int = 1
    gemms: Callable[[Signature], tuple[Gemm, ...]] | None = None
    passes: Callable[[Signature, tuple[Gemm, ...]], Passes] | None = None
    picks: bool = False


@dataclass(frozen=True, slots=True)
class Work:
    """The cost of one operator.

    gemms: matrix products, convolutions as implicit ones. vector, scalar, gpsimd: element passes of these engines.
    The vector engine reads one operand stream a cycle, so an instruction with two tensor operands counts two passes
    (NKI architecture guide: about 2N cycles); two_inputs says that this is so and multiplies nothing. Moving a
    product from PSUM to SBUF is not counted: it belongs to the machine. elements: size of the iteration space, of the
    output for a GEMM. reads: bytes needed of each input, in signature order. writes: bytes written to each output,
    then to each mutated input in the order of `mutates`; a mutated input that is also an output counts 0, its bytes
    stand with the output. known: a rule was found.
    """

    kind: OpKind
    gemms: tuple[Gemm, ...] = ()
    vector: int = 0
    scalar: int = 0
    gpsimd: int = 0
    two_inputs: bool = False
    elements: int = 0
    reads: tuple[int, ...] = ()
    writes: tuple[int, ...] = ()
    known: bool = True

    @property
    def flops(self) -> int:
        """Floating-point operations of the matrix products."""
        return sum(g.flops for g in self.gemms)

    @property
    def nbytes(self) -> int:
        """Bytes read and written."""
        return sum(self.reads) + sum(self.writes)
