"""neuronprof validate: predict training steps that others measured, and say how far off the simulator is."""

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuronprof.errors import NeuronprofError

if TYPE_CHECKING:
    from neuronprof.pipeline.validation.scores import Outcome, Score


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's options."""
    add = parser.add_argument
    add("rows", help="a CSV of measured steps: chip, model shape, layout, batch and step_time_s, a row each")
    add("-o", "--output", metavar="REPORT.html", help="also write the tables as a page")
    add("--json", action="store_true", help="print one JSON object")
    add("--workers", type=int, metavar="N", help="processes (default: as many as the machine has cores)")


def run(args: argparse.Namespace) -> int:
    """Prints predicted beside measured step times and the errors of each dataset."""
    from neuronprof.pipeline.validation.run import validate
    from neuronprof.pipeline.validation.scores import scored
    from neuronprof.progress import Progress

    if args.output and not Path(args.output).resolve().parent.is_dir():
        raise NeuronprofError(f"The folder of {args.output} does not exist; create it or choose another path with -o.")
    with Progress() as progress:
        outcomes = validate(
            args.rows,
            workers=args.workers or os.cpu_count() or 1,
            done=lambda done, count: progress.of("predicting row", done, count),
        )
    scores = scored(outcomes)
    if args.output:
        from neuronprof.view.validation import page

        Path(args.output).write_text(page(row_table(outcomes), score_table(scores)), encoding="utf-8")
    if args.json:
        print(json.dumps(_as_json(outcomes, scores)))
        return 0
    print(_text(row_table(outcomes)))
    print()
    print(_text(score_table(scores)))
    for outcome in outcomes:
        if outcome.predicted_s is None:
            print(f"row {outcome.number} ({outcome.model}) was not predicted: {outcome.reason}")
    if args.output:
        print(f"\nwrote {args.output}")
    return 0


def _as_json(outcomes: "Sequence[Outcome]", scores: "Sequence[Score]") -> dict[str, Any]:
    named = ("dataset", "model", "measured_s", "predicted_s", "reason", "number", "recompute", "yardsticks")
    rows = [{name: getattr(o, name) for name in named} for o in outcomes]
    return {"rows": rows, "datasets": [asdict(s) for s in scores]}


def row_table(outcomes: "Sequence[Outcome]") -> list[list[str]]:
    """Predicted beside measured steps, with a heading."""
    table = [["row", "dataset", "model", "chips", "recompute", "measured", "predicted", "error"]]
    for o in outcomes:
        predicted, error = ("-", "-") if o.predicted_s is None else (f"{o.predicted_s:.3f} s", _signed(o.error))
        table.append(
            [str(o.number), o.dataset, o.model, str(o.chips), o.recompute, f"{o.measured_s:.3f} s", predicted, error]
        )
    return table


def score_table(scores: "Sequence[Score]") -> list[list[str]]:
    """Errors by dataset beside those of the yardsticks that the file holds, with a heading."""
    yardsticks = list(dict.fromkeys(y for s in scores for y in s.yardsticks))
    names = [y.removesuffix("_s").replace("_", " ") for y in yardsticks]
    table = [["dataset", "rows", "predicted", "MAPE", "median", "bias", "worst", "rank", *names]]
    for s in scores:
        rank = "-" if s.rank_correlation is None else f"{s.rank_correlation:.2f}"
        held = [f"{s.yardsticks[y]:.1%}" if y in s.yardsticks else "-" for y in yardsticks]
        worst = f"{s.worst_error:+.1%} (row {s.worst})"
        table.append(
            [
                s.dataset,
                str(s.rows),
                str(s.predicted),
                f"{s.mape:.1%}",
                f"{s.median:.1%}",
                _signed(s.bias),
                worst,
                rank,
                *held,
            ]
        )
    return table


def _signed(share: float | None) -> str:
    return "-" if share is None else f"{share:+.1%}"


def _text(table: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in table)
