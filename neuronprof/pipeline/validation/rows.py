"""A file of measured training steps: what each row says, as numbers."""

import csv
import re
from dataclasses import dataclass
from pathlib import Path

from neuronprof.errors import NeuronprofError

_NEEDED = ("chip", "n_chips", "model", "layers", "hidden", "heads", "vocab", "seq_len", "global_batch", "step_time_s")
# What is taken where a column is missing or empty.
_DEFAULTS = {"tp": 1, "pp": 1, "vp": 1, "cp": 1, "ep": 1, "micro_batch": 1}
_ZERO = {
    "": 0, "none": 0, "no": 0, "ddp": 0, "dp": 0, "zero0": 0, "noshard": 0,
    "zero1": 1, "distributedoptimizer": 1, "distopt": 1,
    "zero2": 2, "shardgradop": 2, "fsdpzero2": 2,
    "zero3": 3, "fsdp": 3, "fsdp2": 3, "fullshard": 3, "hsdp": 3, "hybridshard": 3,
}  # fmt: skip
_RECOMPUTE = {
    "none": "none", "no": "none", "off": "none", "disabled": "none", "false": "none",
    "selective": "selective", "core": "selective",
    "full": "full", "all": "full", "yes": "full", "every_layer": "full", "every layer": "full", "uniform": "full", "block": "full",
    "true": "full",
}  # fmt: skip
_MIXTURE = re.compile(r"(?<!\d)(\d+)x\d+(?:\.\d+)?b")  # Mixtral-8x7B
_MIXTRAL_TAKES = 2
_GRADIENTS = {"": False, "bf16": False, "fp16": False, "fp32": True}
_PRECISIONS = {"bf16": "bfloat16", "fp16": "float16", "fp8": "bfloat16", "fp32": "float32", "mixed": "bfloat16"}
YARDSTICKS = ("constant_mfu_s", "constant_mfu_bubble_s", "calculon_s")


@dataclass(frozen=True)
class Row:
    """A measured step. Layout in ranks; recompute: none, selective, full, or '' where the source does not say; yardsticks: by column.

    experts: feed-forward parts of a layer, of which each token takes `chosen` (0: there is one). fp32_gradients: those of weights of 16
    bits were summed in FP32; without the column 'gradients' they were not.
    """

    number: int
    dataset: str
    chip: str
    chips: int
    model: str
    layers: int
    hidden: int
    inner: int
    experts: int
    chosen: int
    heads: int
    kv_heads: int
    vocabulary: int
    sequence: int
    tp: int
    pp: int
    vp: int
    cp: int
    ep: int
    dp: int
    zero: int
    micro_batch: int
    global_batch: int
    precision: str
    dtype: str
    recompute: str
    sequence_parallel: bool
    fp32_gradients: bool
    measured_s: float
    yardsticks: dict[str, float]


@dataclass(frozen=True)
class Unreadable:
    """A row that says something impossible. measured_s: 0 where not even that can be read."""

    number: int
    dataset: str
    model: str
    measured_s: float
    reason: str


def read_rows(path: str | Path) -> list[Row | Unreadable]:
    """The rows of a CSV file, in its order.

    Raises:
        NeuronprofError: there is no such file, or it is no table of measured steps.
    """
    try:
        with Path(path).open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            lines, names = list(reader), reader.fieldnames or ()
    except FileNotFoundError:
        raise NeuronprofError(f"There is no file {path}; give a CSV of measured training steps.") from None
    except (OSError, ValueError, csv.Error) as error:
        raise NeuronprofError(f"{path} cannot be read as CSV: {error}.") from None
    missing = [name for name in _NEEDED if name not in names]
    if missing:
        raise NeuronprofError(f"{path} has no column '{missing[0]}'; measured steps need {', '.join(_NEEDED)}.")
    if not lines:
        raise NeuronprofError(f"{path} holds no rows; each row is a measured training step.")
    return [_row(number, line) for number, line in enumerate(lines, start=1)]


def _row(number: int, line: dict[str, str]) -> Row | Unreadable:
    cells = {name: (value or "").strip() for name, value in line.items() if name}
    try:
        return _parsed(number, cells)
    except NeuronprofError as error:
        measured = _number(cells.get("step_time_s", ""))
        return Unreadable(number, cells.get("dataset") or "rows", cells.get("model", ""), measured, str(error))


def _parsed(number: int, cells: dict[str, str]) -> Row:
    hidden, heads, chips = (_whole(cells, name) for name in ("hidden", "heads", "n_chips"))
    sizes = {name: _whole(cells, name, default) for name, default in _DEFAULTS.items()}
    inside = sizes["tp"] * sizes["pp"] * sizes["cp"]
    precision = cells.get("precision", "").lower() or "bf16"
    experts, chosen = _experts(cells)
    return Row(
        number=number,
        dataset=cells.get("dataset") or "rows",
        chip=cells["chip"],
        chips=chips,
        model=cells["model"],
        layers=_whole(cells, "layers"),
        hidden=hidden,
        inner=_whole(cells, "ffn_hidden", 4 * hidden),
        experts=experts,
        chosen=chosen,
        heads=heads,
        kv_heads=_whole(cells, "kv_heads", heads),
        vocabulary=_whole(cells, "vocab"),
        sequence=_whole(cells, "seq_len"),
        dp=_whole(cells, "dp", max(1, chips // inside)),
        zero=_sharding(cells),
        global_batch=_whole(cells, "global_batch"),
        precision=precision,
        dtype=_dtype(precision),
        recompute=_RECOMPUTE.get(cells.get("recompute", "").lower(), ""),
        sequence_parallel=cells.get("sequence_parallel", "").lower() in ("yes", "true", "1"),
        fp32_gradients=_fp32_gradients(cells),
        measured_s=_seconds(cells, "step_time_s"),
        yardsticks={name: _seconds(cells, name) for name in YARDSTICKS if cells.get(name)},
        **sizes,
    )


def _experts(cells: dict[str, str]) -> tuple[int, int]:
    """Experts and how many a token takes: of the columns, or of a name like Mixtral-8x7B, whose tokens take two of eight."""
    named = _MIXTURE.search(cells["model"].lower())
    if "experts" not in cells and named is None:
        return 0, 0
    experts = _whole(cells, "experts", int(named[1]) if named else 1)
    chosen = _whole(cells, "top_k", min(experts, _MIXTRAL_TAKES))
    if chosen > experts:
        raise NeuronprofError(f"top_k is {chosen}, but a token cannot take more than the {experts} experts.")
    return (experts, chosen) if experts > 1 else (0, 0)


def _dtype(precision: str) -> str:
    found = next((dtype for name, dtype in _PRECISIONS.items() if precision.startswith(name)), None)
    if found is None:
        raise NeuronprofError(f"precision is '{precision}', but must be one of {', '.join(_PRECISIONS)}.")
    return found


def _sharding(cells: dict[str, str]) -> int:
    text = "".join(c for c in cells.get("sharding", "").lower() if c.isalnum())
    if text not in _ZERO:
        raise NeuronprofError(f"sharding is '{cells['sharding']}', but must be none, zero1, zero2, zero3 or fsdp.")
    return _ZERO[text]


def _fp32_gradients(cells: dict[str, str]) -> bool:
    text = cells.get("gradients", "").lower()
    if text not in _GRADIENTS:
        raise NeuronprofError(f"gradients is '{text}', but must be fp32, bf16 or fp16, or empty.")
    return _GRADIENTS[text]


def _whole(cells: dict[str, str], name: str, default: int | None = None) -> int:
    text = cells.get(name, "")
    if not text and default is not None:
        return default
    try:
        value = int(float(text))
    except (ValueError, OverflowError):
        value = 0
    if value < 1:
        raise NeuronprofError(f"{name} is '{text}', but must be a whole number above zero.")
    return value


def _seconds(cells: dict[str, str], name: str) -> float:
    value = _number(cells.get(name, ""))
    if not value:
        raise NeuronprofError(f"{name} is '{cells.get(name, '')}', but must be a time in seconds.")
    return value


def _number(text: str) -> float:
    """A number above zero; 0 where there is none."""
    try:
        value = float(text)
    except ValueError:
        return 0.0
    return value if 0 < value < float("inf") else 0.0
