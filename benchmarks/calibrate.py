"""Fits what a GPU's large matrix products reach to measured training steps, and prints the values that stand in the chip's file.

Two numbers a chip: `gemm`, of the rows in 16 bits, and `gemm_fp8`, of those in FP8, each such that the mean logarithm of predicted
over measured is zero. Everything else is documented, measured or assumed, and is the same for all rows.
With --leave-one-out, each dataset of a chip is also predicted by what the others give.

    python benchmarks/calibrate.py benchmarks/measured/training_steps.csv
"""

import argparse
from collections.abc import Sequence
from math import exp, log
from statistics import mean

from neuronprof.pipeline.validation.predicted import Predictor
from neuronprof.pipeline.validation.rows import Row, read_rows

_CLOSE = 0.002  # of the mean error
_MOST = 8


def main() -> None:
    """Prints the fit of each chip, and the error that is left."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", help="a CSV as for neuronprof validate")
    parser.add_argument("--leave-one-out", action="store_true", help="also predict each dataset by the others")
    args = parser.parse_args()
    rows = [row for row in read_rows(args.rows) if isinstance(row, Row)]
    predictor = Predictor()
    for chip in dict.fromkeys(row.chip for row in rows):
        for parameter, of_chip in (("gemm", _wide(rows, chip)), ("gemm_fp8", _narrow(rows, chip))):
            if of_chip:
                _report(predictor, chip, parameter, of_chip, args.leave_one_out)


def _wide(rows: Sequence[Row], chip: str) -> list[Row]:
    return [row for row in rows if row.chip == chip and not row.precision.startswith("fp8")]


def _narrow(rows: Sequence[Row], chip: str) -> list[Row]:
    return [row for row in rows if row.chip == chip and row.precision.startswith("fp8")]


def _report(predictor: Predictor, chip: str, parameter: str, rows: Sequence[Row], leave_one_out: bool) -> None:
    value = _fitted(predictor, chip, parameter, rows)
    errors = _errors(predictor, rows)
    left = mean(abs(exp(e) - 1) for e in errors)
    numbers = ", ".join(str(row.number) for row in rows)
    print(f"{chip} {parameter} = {value:.3f}   rows {numbers}; mean error left {left:.1%}", flush=True)
    models = dict.fromkeys(row.model for row in rows)
    for model in models if leave_one_out and len(models) > 1 else ():
        _fitted(predictor, chip, parameter, [row for row in rows if row.model != model])
        out = _errors(predictor, [row for row in rows if row.model == model])
        print(f"    {model} by the others: {', '.join(f'{exp(e) - 1:+.1%}' for e in out)}", flush=True)
    predictor.retune(chip, **{parameter: value})


def _fitted(predictor: Predictor, chip: str, parameter: str, rows: Sequence[Row]) -> float:
    """The value at which the mean error is nothing; a step takes longer in about the proportion in which it is less."""
    value = 0.6
    for _ in range(_MOST):
        predictor.retune(chip, **{parameter: value})
        off = mean(_errors(predictor, rows))
        if abs(off) < _CLOSE:
            break
        value = min(0.999, value * exp(1.2 * off))
    return round(value, 3)


def _errors(predictor: Predictor, rows: Sequence[Row]) -> list[float]:
    """Logarithms of predicted over measured."""
    found = [predictor.predict(row) for row in rows]
    return [log(o.predicted_s / o.measured_s) for o in found if o.predicted_s]


if __name__ == "__main__":
    main()
