"""`neuronprof check`: fails when a trace does not keep its limits, for use in continuous integration.

Limits come from --max and --min, from --baseline (step time and HBM peak may not be larger, MFU not smaller, by more than the tolerance),
and from the nearest pyproject.toml; an option wins over the same limit there:

    [tool.neuronprof.check]
    max = { step_time = "12ms", exposed_communication = "10%" }
    min = { mfu = 0.4 }

Each limit that is not kept is one line. Exit code 0: all are kept; 1: some are not; 2: they could not be checked.
"""

import argparse
import os
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from neuronprof import units
from neuronprof.cli import spare_inputs
from neuronprof.errors import NeuronprofError

if TYPE_CHECKING:
    from neuronprof.analyze.gate import Limit, Verdict
    from neuronprof.analyze.summary import Summary

_TOLERANCE = "3%"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = __doc__
    parser.add_argument("trace", help="the trace.parquet to check")
    for side in ("max", "min"):
        parser.add_argument(
            f"--{side}",
            action="append",
            default=[],
            metavar="METRIC=VALUE",
            help="step_time=12ms, mfu=0.4, idle=10%%, ...",
        )
    parser.add_argument("--baseline", metavar="TRACE", help="another trace that this one may not be worse than")
    parser.add_argument("--tolerance", default=_TOLERANCE, metavar="SHARE", help="by more than this (default: 3%%)")
    parser.add_argument("--junit", metavar="FILE", help="write the result as JUnit XML as well")
    parser.add_argument(
        "--github", action="store_true", default=os.environ.get("GITHUB_ACTIONS") == "true",
        help="print violations as annotations of GitHub Actions (default: where it runs)",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Checks the limits; returns 1 if one is not kept."""
    from neuronprof.analyze import gate

    spare_inputs(args.junit, filter(None, (args.trace, args.baseline)))
    limits = list(_limits(args).values())
    figures = _summary(args.trace)
    if args.baseline:
        limits += gate.from_baseline(_summary(args.baseline), units.parse_fraction(args.tolerance), args.baseline)
    if not limits:
        raise NeuronprofError("There is no limit to check; give one like --max step_time=12ms, or --baseline TRACE.")
    verdicts = gate.judge(figures, limits)
    broken = [verdict for verdict in verdicts if not verdict.kept]
    for verdict in broken:
        print(_annotation(f"{args.trace}: {verdict}") if args.github else verdict)
    if not broken:
        print(f"{args.trace} keeps {'its limit' if len(limits) == 1 else f'all {len(limits)} limits'}")
    if args.junit:
        _write_junit(Path(args.junit), args.trace, verdicts)
    return 1 if broken else 0


def _annotation(text: str) -> str:
    """An error as GitHub Actions reads it from a log, where %, CR and LF are written as in an address."""
    written = text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    return f"::error title=neuronprof check::{written}"


def _summary(path: str) -> "Summary":
    from neuronprof.analyze import registry, summary
    from neuronprof.cli import opened

    trace = opened(path)
    return summary.pick(trace, registry.run(trace, registry.ANALYZERS, left_out={}))  # limits need no advice


def _limits(args: argparse.Namespace) -> dict[tuple[str, str], "Limit"]:
    """The limits by side and metric, those of the project first."""
    from neuronprof.analyze import gate

    found = {}
    table = _project(Path.cwd())
    if unknown := set(table) - {"max", "min"}:
        raise NeuronprofError(
            f"[tool.neuronprof.check] has '{min(unknown)}', which is neither max nor min; mend the name."
        )
    for side in ("max", "min"):
        named = table.get(side, {})
        if not isinstance(named, dict):
            raise NeuronprofError(
                f"'{side}' in [tool.neuronprof.check] is not a table; write it like {side} = {{ step_time = \"12ms\" }}."
            )
        for metric, value in named.items():
            found[side, metric] = gate.read_limit(side, metric, value)
        for text in getattr(args, side):
            metric, equals, value = text.partition("=")
            if not equals:
                raise NeuronprofError(f"--{side} {text} cannot be read; write it like --{side} step_time=12ms.")
            found[side, metric] = gate.read_limit(side, metric, value)
    return found


def _project(folder: Path) -> dict[str, Any]:
    """[tool.neuronprof.check] of the nearest pyproject.toml, empty if there is none."""
    file = next((f for f in (parent / "pyproject.toml" for parent in (folder, *folder.parents)) if f.is_file()), None)
    if file is None:
        return {}
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8")).get("tool", {}).get("neuronprof", {}).get("check", {})
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError, AttributeError) as error:
        raise NeuronprofError(f"{file} cannot be read: {error}.") from error
    if not isinstance(table, dict):
        raise NeuronprofError(f"'check' of [tool.neuronprof] in {file} is no table; write [tool.neuronprof.check].")
    return table


def _write_junit(path: Path, trace: str, verdicts: Sequence["Verdict"]) -> None:
    broken = sum(not verdict.kept for verdict in verdicts)
    suite = ElementTree.Element("testsuite", name="neuronprof check", tests=str(len(verdicts)), failures=str(broken))
    for verdict in verdicts:
        case = ElementTree.SubElement(suite, "testcase", classname=trace, name=str(verdict.limit))
        if not verdict.kept:
            ElementTree.SubElement(case, "failure", message=str(verdict))
    try:
        ElementTree.ElementTree(suite).write(path, encoding="utf-8", xml_declaration=True)
    except OSError as error:
        raise NeuronprofError(f"Cannot write {path}: {error.strerror or error}.") from error
