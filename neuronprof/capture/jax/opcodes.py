"""What HLO's opcodes are called in the graph: PyTorch's operators, which have the cost rules."""

from neuronprof.terms import Collective

# One tensor for each operand, computed element by element.
ELEMENTWISE = {
    "abs": "abs", "add": "add.Tensor", "and": "bitwise_and.Tensor", "atan2": "atan2", "cbrt": "pow.Tensor_Scalar", "ceil": "ceil",
    "clamp": "clamp.Tensor", "complex": "complex", "cosine": "cos", "divide": "div.Tensor", "erf": "erf", "exponential": "exp",
    "exponential-minus-one": "expm1", "floor": "floor", "imag": "imag", "is-finite": "isfinite", "log": "log", "log-plus-one": "log1p",
    "logistic": "sigmoid", "maximum": "maximum", "minimum": "minimum", "multiply": "mul.Tensor", "negate": "neg", "not": "bitwise_not",
    "or": "bitwise_or.Tensor", "power": "pow.Tensor_Tensor", "real": "real", "remainder": "remainder.Tensor",
    "round-nearest-afz": "round", "round-nearest-even": "round", "rsqrt": "rsqrt", "select": "where.self",
    "shift-left": "bitwise_left_shift.Tensor", "shift-right-arithmetic": "bitwise_right_shift.Tensor",
    "shift-right-logical": "bitwise_right_shift.Tensor", "sign": "sgn", "sine": "sin", "sqrt": "sqrt", "subtract": "sub.Tensor",
    "tan": "tan",
    "tanh": "tanh", "xor": "bitwise_xor.Tensor", "convert": "_to_copy", "stochastic-convert": "_to_copy",
    "reduce-precision": "_to_copy", "copy": "clone",
}  # fmt: skip
COMPARISON = {
    "EQ": "eq.Tensor",
    "NE": "ne.Tensor",
    "LT": "lt.Tensor",
    "LE": "le.Tensor",
    "GT": "gt.Tensor",
    "GE": "ge.Tensor",
}
REDUCTION = {
    "add": "sum.dim_IntList", "maximum": "amax", "minimum": "amin", "multiply": "prod.dim_int", "and": "all.dim", "or": "any.dim",
}  # fmt: skip
# Data moves, or is made, without arithmetic.
MOVEMENT = {
    "concatenate": "cat", "pad": "constant_pad_nd", "reverse": "flip", "sort": "sort", "iota": "arange", "gather": "index.Tensor",
    "rng": "rand", "rng-bit-generator": "randint.low", "map": "add.Tensor", "cholesky": "linalg_cholesky_ex",
    "triangular-solve": "linalg_solve_triangular", "fft": "_fft_c2c", "topk": "topk",
    "select-and-scatter": "max_pool2d_with_indices_backward",
    "rng-get-and-update-state": "rand",
}  # fmt: skip
# The result is the operand's memory under another shape.
VIEWS = {
    "reshape": "view", "bitcast": "view", "bitcast-convert": "view.dtype", "transpose": "permute", "broadcast": "expand",
    "slice": "slice.Tensor",
}  # fmt: skip
# The result is the operand itself.
SAME = frozenset({"optimization-barrier", "copy-start", "copy-done", "domain", "add-dependency", "all-reduce-done", "all-gather-done",
                  "collective-permute-done", "async-done", "async-update"})  # fmt: skip
COLLECTIVES = {
    "all-reduce": (Collective.ALL_REDUCE, "_c10d_functional.all_reduce.default"),
    "all-reduce-start": (Collective.ALL_REDUCE, "_c10d_functional.all_reduce.default"),
    "all-gather": (Collective.ALL_GATHER, "_c10d_functional.all_gather_into_tensor.default"),
    "all-gather-start": (Collective.ALL_GATHER, "_c10d_functional.all_gather_into_tensor.default"),
    "reduce-scatter": (Collective.REDUCE_SCATTER, "_c10d_functional.reduce_scatter_tensor.default"),
    "all-to-all": (Collective.ALL_TO_ALL, "_c10d_functional.all_to_all_single.default"),
    "collective-permute": (Collective.PERMUTE, "neuronprof.permute_.default"),
    "collective-permute-start": (Collective.PERMUTE, "neuronprof.permute_.default"),
    "collective-broadcast": (Collective.BROADCAST, "_c10d_functional.broadcast.default"),
}
# Say where something is, and compute nothing.
ANNOTATIONS = frozenset({"Sharding", "SPMDFullToShardShape", "SPMDShardToFullShape"})
CALLS = frozenset({"call", "fusion", "async-start", "composite"})
NAMES = {op: name if name.count(".") else f"{name}.default" for op, name in (ELEMENTWISE | MOVEMENT | VIEWS).items()}
