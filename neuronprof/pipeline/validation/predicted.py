"""Predicts measured steps: the training script of each row is recorded, laid out, compiled and simulated like any other."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from neuronprof.distribute.layout import Layout
from neuronprof.distribute.pieces import even
from neuronprof.distribute.styles import RECOMPUTE, Style, styled
from neuronprof.errors import NeuronprofError
from neuronprof.hardware.load import load_chip
from neuronprof.pipeline.laidout import StepSimulator
from neuronprof.pipeline.validation.rows import Row
from neuronprof.pipeline.validation.scores import Outcome

if TYPE_CHECKING:
    from neuronprof.graph.ir import Graph
    from neuronprof.hardware.spec import Chip

_GPTS = ("gpt", "mpt", "opt", "nemotron", "bloom", "turing", "mt-nlg")
_LLAMAS = ("llama", "mistral", "mixtral", "qwen", "gemma", "grok", "deepseek", "yi-", "olmo")
# Blocks a pipeline piece that the shorter and the longer of two models have which stand for one with many.
_FEW = 4
_TEMPLATES = 3
# Where a source does not say what is computed again, the least that fits is taken. Tuned frameworks gather the inputs of tensor-parallel
# products again in backward, which are counted here as kept: this much too many bytes still fit.
_SLACK = 1.2


@dataclass(frozen=True)
class Model:
    """A training script and its arguments; two rows with equal ones share what is recorded."""

    script: str
    layers: int
    arguments: tuple[str, ...]


def outcome(row: Row, predicted_s: float | None, reason: str = "", recompute: str = "") -> Outcome:
    """A row beside its prediction."""
    return Outcome(
        row.number, row.dataset, row.model, row.chips, row.measured_s, predicted_s, reason, row.yardsticks, recompute
    )


class Predictor:
    """Predicts rows one after another; what they have in common is done once."""

    def __init__(self, chips: "dict[str, Chip] | None" = None) -> None:
        """chips: to be taken instead of the shipped ones of the same name."""
        self._chips = dict(chips or {})
        self._graphs: dict[object, Graph] = {}
        self._simulators: dict[tuple[object, ...], StepSimulator] = {}

    def retune(self, name: str, **fields: float) -> None:
        """Goes on with other numbers in the section [kernels] of a chip; those that compiling looks at stay."""
        chip = self._chip(name)
        assert chip.kernels is not None
        self._chips[name] = replace(chip, kernels=replace(chip.kernels, **fields))
        for key, simulator in self._simulators.items():
            if chip.name in key:
                simulator.retune(self._chips[name])

    def predict(self, row: Row) -> Outcome:
        """A row's step time, or why there is none."""
        try:
            return self._predicted(row)
        except NeuronprofError as error:
            return outcome(row, None, str(error))
        except Exception as error:  # a mistake of ours in one row must not cost the others
            return outcome(row, None, f"neuronprof failed: {type(error).__name__}: {error}")

    def _predicted(self, row: Row) -> Outcome:
        chip = self._chip(row.chip)
        layout = layout_of(row, chip)
        for recompute in (row.recompute,) if row.recompute else RECOMPUTE:
            seconds, share = self._whole(row, chip, layout, recompute)
            if share <= _SLACK:
                break
        return outcome(row, seconds, "", recompute)

    def _chip(self, name: str) -> "Chip":
        if name not in self._chips:
            self._chips[name] = load_chip(name.lower())
        return self._chips[name]

    def _whole(self, row: Row, chip: "Chip", layout: Layout, recompute: str) -> tuple[float, float]:
        """Seconds of a step, and the share of HBM that it needs.

        Models of many equal blocks are extended from two with fewer: each further block of every pipeline piece adds the same.
        """
        fewer, more, times = shortened(row.layers, layout.pp * layout.vp)
        base = self._simulated(row, chip, layout, recompute, fewer)
        if not times:
            return base
        longer = self._simulated(row, chip, layout, recompute, more)
        return base[0] + times * (longer[0] - base[0]), base[1] + times * (longer[1] - base[1])

    def _simulated(
        self, row: Row, chip: "Chip", layout: Layout, recompute: str, sizes: tuple[int, ...]
    ) -> tuple[float, float]:
        found = self._simulator(row, chip, recompute, sizes).simulate(layout, oversized=True)
        if found.figures is None:
            raise NeuronprofError(found.refused)
        return found.figures.step_ns / 1e9, found.peak_bytes / found.capacity

    def _simulator(self, row: Row, chip: "Chip", recompute: str, sizes: tuple[int, ...]) -> StepSimulator:
        script, arguments = training_script(row, sum(sizes))
        fp8 = row.precision.startswith("fp8") and chip.peak.fp8 > chip.peak.bf16
        style = Style(recompute, fp8, row.fp32_gradients)
        key = (script, arguments, style, chip.name, sizes)
        if key not in self._simulators:
            graph = styled(self._captured(script, arguments), style)
            self._simulators[key] = StepSimulator(graph, chip, int(chip.package.lnc), sizes)
        return self._simulators[key]

    def _captured(self, script: str, arguments: tuple[str, ...]) -> "Graph":
        from neuronprof.pipeline import Options, capture

        key = (script, arguments)
        if key not in self._graphs:
            recording = capture(script, arguments, Options(values="none", steps=1, warmup=0)).recording
            if recording is None:
                raise NeuronprofError("the training script could not be recorded")
            step = next(s for s in recording.segments if s.kind == "step")
            self._graphs[key] = recording.graph.slice(step.start, step.stop)
        return self._graphs[key]


def training_script(row: Row, layers: int) -> tuple[str, tuple[str, ...]]:
    """The script of a row's model and its arguments, with so many layers.

    A feed-forward part four times as wide as the model is taken for a GPT's where the name says nothing. Attention is fused, but for GPTs
    in FP16: they were trained before it was. A mixture of experts is a Llama's. More tensor-parallel ranks than heads of keys each have a
    copy of one.
    """
    from neuronprof.capture.models import training

    name = row.model.lower()
    llama = row.experts > 0 or any(n in name for n in _LLAMAS)
    gpt = not row.experts and (any(n in name for n in _GPTS) or (row.inner == 4 * row.hidden and not llama))
    eager = gpt and row.dtype == "float16"
    shape = training.Shape(
        layers=layers,
        hidden=row.hidden,
        inner=row.inner,
        heads=row.heads,
        kv_heads=row.heads if eager else _replicated(row),
        vocabulary=-(-row.vocabulary // (128 * row.tp)) * 128 * row.tp,
        sequence=row.sequence,
        batch=row.micro_batch,
        dtype=row.dtype,
        attention="eager" if eager else "fused",
        experts=row.experts,
        chosen=row.chosen,
    )
    return str(Path(training.__file__).with_name("gpt.py" if gpt else "llama.py")), shape.arguments()


def _replicated(row: Row) -> int:
    return next((n for n in range(row.kv_heads, row.heads + 1) if n % row.tp == 0 and row.heads % n == 0), row.heads)


def shortened(layers: int, pieces: int) -> tuple[tuple[int, ...], tuple[int, ...], float]:
    """Blocks of each pipeline piece of a shorter model and of a longer one, and how often their difference is added to the shorter.

    Of more than three pieces, the first, an inner one and the last; 0 times: the shorter model is the whole one.

    Raises:
        NeuronprofError: there are fewer layers than pieces.
    """
    if layers < pieces:
        raise NeuronprofError(f"{layers} layers cannot be cut into {pieces} pipeline pieces")
    sizes = even(layers, pieces)
    whole = sizes if pieces <= _TEMPLATES else (sizes[0], max(sizes), sizes[-1])
    step = max(1, -(-_FEW // pieces))
    spared = min(whole) - step
    if spared <= 2 * step:
        return whole, whole, 0.0
    fewer = tuple(size - spared for size in whole)
    return fewer, tuple(size + step for size in fewer), spared / step


def layout_of(row: Row, chip: "Chip") -> Layout:
    """The layout of a row.

    Raises:
        NeuronprofError: it does not match the chips.
    """
    world, ranks = row.tp * row.pp * row.cp * row.dp, row.chips * chip.ranks(int(chip.package.lnc))
    if world not in (row.chips, ranks):
        raise NeuronprofError(f"tp x pp x cp x dp are {world} ranks, but {row.chips} chips have {ranks}")
    passes = max(1, -(-row.global_batch // (row.dp * row.micro_batch)))
    interleaved = row.vp > 1 and row.pp > 1 and passes % row.pp == 0
    return Layout(
        dp=row.dp,
        tp=row.tp,
        pp=row.pp,
        cp=row.cp,
        ep=row.ep,
        vp=row.vp if interleaved else 1,
        accumulate=passes,
        zero=row.zero if row.dp * row.cp > 1 else 0,
        sequence_parallel=row.sequence_parallel and row.tp > 1,
        schedule="interleaved" if interleaved else "1f1b",
        even_stages=True,
    )
