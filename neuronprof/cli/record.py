"""neuronprof record: run a training script on a simulated machine and write its trace."""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuronprof import units
from neuronprof.errors import NeuronprofError

if TYPE_CHECKING:
    from neuronprof import pipeline

_Add = Callable[..., Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's options."""
    parser.usage = "neuronprof record [options] train.py [script arguments]"
    parser.add_argument(
        "-o",
        "--output",
        default="trace.parquet",
        help="the trace to write, a path or s3://bucket/key (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print the summary as one JSON object on the last line")
    parser.add_argument(
        "--trace-ranks",
        metavar="RANKS",
        help="ranks to write in full: all, representatives, or numbers as 0,5,17-32 (default: all while they are few)",
    )
    parser.add_argument(
        "--detail",
        default="",
        metavar="instruction[:PATTERN]",
        help="write single instructions, tile by tile, of the operators or layers that match, or of all while they are few",
    )
    _add_machine(parser.add_argument_group("machine").add_argument)
    script = parser.add_argument_group("script").add_argument
    add_script(script)
    script(
        "--as-rank",
        type=int,
        default=0,
        metavar="N",
        help="with --world-size: the rank that is recorded; what only it does counts on every rank (default: %(default)s)",
    )
    _add_layout(parser.add_argument_group("layout of a script for one device").add_argument)
    add_style(parser.add_argument_group("how the step is run").add_argument)
    _add_faults(parser.add_argument_group("ranks that differ").add_argument)
    parser.add_argument("script", help="the training script, as you would give it to python, or a torchrun line")
    parser.add_argument("argv", nargs=argparse.REMAINDER, metavar="...", help="the script's own arguments")


def _add_machine(add: _Add) -> None:
    add("--chip", default="trainium4", help="a chip of 'neuronprof chips', or a TOML file (default: %(default)s)")
    add("--lnc", type=int, help="physical NeuronCores in a logical one, which is one rank (default: the chip's)")
    add("--allow-oom", action="store_true", help="simulate a model that does not fit into HBM all the same")
    add(
        "--collective-algorithm",
        metavar="NAME",
        help="one for all collectives that it can do, as ring, mesh or rdh (default: the quickest that the library may take)",
    )
    add("--oversubscription", type=float, default=1.0, metavar="X", help="of EFA between UltraServers (default: 1)")


def add_script(add: _Add) -> None:
    """Adds the options that say how a script is run."""
    add(
        "--values",
        choices=["real", "none", "auto"],
        default="auto",
        help="real: compute on the CPU, so that printed losses are true; none: compute nothing, so that a model of any "
        "size can be recorded; auto: real while the model is small (default)",
    )
    add("--steps", type=int, metavar="N", help="record N steps, then end the script (default: 3, and it runs on)")
    add("--warmup", type=int, default=1, metavar="N", help="steps to skip first, if more follow (default: %(default)s)")
    add("--run-on", action="store_true", help="with --steps: let the script run on to its end, unrecorded")
    add("--world-size", type=int, metavar="N", help="ranks of a script that distributes itself, as torchrun sets it")
    add("-m", dest="module", action="store_true", help="the script is the name of a module, as for python -m")


def _add_layout(add: _Add) -> None:
    add("--dp", type=int, default=1, metavar="N", help="data-parallel ranks, each with the script's batch (default: 1)")
    add("--tp", type=int, default=1, metavar="N", help="tensor-parallel ranks: weights by columns and rows")
    add("--pp", type=int, default=1, metavar="N", help="pipeline stages: blocks of layers, balanced by cost")
    add("--cp", type=int, default=1, metavar="N", help="context-parallel ranks: each has a part of the sequence")
    add(
        "--ep",
        type=int,
        default=1,
        metavar="N",
        help="expert-parallel ranks among --cp and --dp: each has some experts",
    )
    add("--vp", type=int, default=1, metavar="N", help="virtual stages a pipeline rank, for --schedule interleaved")
    add("--microbatches", type=int, default=1, metavar="N", help="parts into which a rank's batch is cut (default: 1)")
    add("--accumulate", type=int, default=1, metavar="N", help="batches that a rank takes in a step (default: 1)")
    add("--zero", type=int, default=0, metavar="0-3", help="what --dp shards: 1 optimizer, 2 gradients, 3 weights too")
    add("--sequence-parallel", action="store_true", help="with --tp: shard the sequence between the sharded products")
    add("--schedule", default="1f1b", metavar="NAME", help="gpipe, 1f1b, interleaved or zero-bubble (default: 1f1b)")
    add("--even-stages", action="store_true", help="as many blocks a stage as can be, instead of stages of even cost")
    add("--bucket", default="25M", metavar="SIZE", help="gradient bucket of an all-reduce (default: %(default)s)")
    add_overlap(add)


def add_overlap(add: _Add) -> None:
    """Adds the options that say which communication of data parallelism runs beside compute."""
    add(
        "--grad-sync",
        choices=["overlapped", "after"],
        default="overlapped",
        help="reduce gradients in buckets beside backward, or all in one go after it (default: overlapped)",
    )
    add(
        "--prefetch",
        type=int,
        default=1,
        metavar="N",
        help="with --zero 3: blocks gathered ahead, 0: none (default: 1)",
    )


def add_style(add: _Add) -> None:
    """Adds the options that say how a step is run."""
    add(
        "--recompute",
        choices=["none", "selective", "full"],
        default="none",
        help="compute again in backward: the core of attention (selective) or each repeated block (default: none)",
    )
    add("--fp8", action="store_true", help="run the products of repeated blocks in FP8, with the casts that takes")
    add(
        "--fp32-gradients",
        action="store_true",
        help="sum gradients of 16 bits, over micro-batches and replicas, in FP32",
    )
    add("--eager", action="store_true", help="on a GPU: each operator is a kernel that the host launches, unfused")


def _add_faults(add: _Add) -> None:
    add("--jitter", default="0", metavar="SHARE", help="vary each instruction of each rank by up to this, as 2%%")
    add("--seed", type=int, default=0, help="of the jitter (default: 0)")
    add("--slow-chip", action="append", default=[], metavar="CHIP=X", help="a chip that computes X times slower")
    add(
        "--throttle-core", action="append", default=[], metavar="RANK=X", help="a rank whose matmuls are X times slower"
    )
    add(
        "--degrade-link", action="append", default=[], metavar="CHIP=X", help="a chip with X of its link bandwidth left"
    )
    add(
        "--late-host",
        action="append",
        default=[],
        metavar="HOST=TIME",
        help="a host that begins each step late: 3=20ms",
    )


def run(args: argparse.Namespace) -> int:
    """Records, prints the summary, and returns the script's exit code."""
    from neuronprof import pipeline

    script, argv, chosen = _launched(args)
    result = pipeline.record(script, argv, _options(args, chosen))
    if result.trace is not None:
        _report(result.trace, result.ended_by, args)
    return result.exit_code


def _launched(args: argparse.Namespace) -> tuple[str, tuple[str, ...], dict[str, Any]]:
    """Script, its arguments, and what a torchrun line says about them."""
    from neuronprof.capture import launchline

    line = None if args.module else launchline.parse([args.script, *args.argv])
    if line is None:
        return args.script, tuple(args.argv), {"world_size": args.world_size, "module": args.module}
    if args.world_size not in (None, line.world_size):
        raise NeuronprofError(
            f"--world-size {args.world_size} and the launch line's {line.world_size} ranks disagree; give one of them."
        )
    return line.script, tuple(line.argv), {"world_size": line.world_size, "module": line.module}


# Options that are called and mean the same in pipeline.Options.
_AS_THEY_ARE = (
    "trace_ranks", "detail", "chip", "lnc", "allow_oom", "values", "steps", "warmup", "run_on", "as_rank", "seed",
    "dp", "tp", "pp", "cp", "ep", "vp", "microbatches", "accumulate", "zero", "sequence_parallel", "schedule",
    "even_stages", "grad_sync", "prefetch", "recompute", "fp8", "fp32_gradients", "eager",
    "collective_algorithm", "oversubscription",
)  # fmt: skip


def _options(args: argparse.Namespace, chosen: dict[str, Any]) -> "pipeline.Options":
    from neuronprof import pipeline

    if args.steps is not None and args.steps < 1:
        raise NeuronprofError(f"--steps {args.steps} records nothing; give at least 1.")
    if args.as_rank and chosen["world_size"] is None:
        raise NeuronprofError(
            f"--as-rank {args.as_rank} is for a script that distributes itself; say over how many ranks with --world-size."
        )
    if args.warmup < 0:
        raise NeuronprofError(f"--warmup {args.warmup} is not a number of steps; give 0 or more.")
    return pipeline.Options(
        output=args.output,
        **{name: getattr(args, name) for name in _AS_THEY_ARE},
        bucket_bytes=units.parse_size(args.bucket),
        jitter=_jitter(args.jitter),
        slow_chips=_numbered("--slow-chip", args.slow_chip, float, "17=1.3"),
        throttled=_numbered("--throttle-core", args.throttle_core, float, "17=1.3"),
        links=_numbered("--degrade-link", args.degrade_link, units.parse_fraction, "5=0.5"),
        late_hosts=_numbered("--late-host", args.late_host, _seconds, "3=20ms"),
        **chosen,
    )


def _jitter(text: str) -> float:
    share = units.parse_fraction(text)
    if not 0 <= share < 1:
        raise NeuronprofError(f"--jitter {text} is not between 0 and 100 %; give a share like 2%.")
    return share


def _seconds(text: str) -> float:
    return units.parse_time(text) / 1e9


def _numbered(option: str, texts: list[str], read: Callable[[str], float], example: str) -> dict[int, float]:
    """NUMBER=VALUE options as a dictionary."""
    found = {}
    for text in texts:
        number, _, value = text.partition("=")
        try:
            key, amount = int(number), read(value)
        except (ValueError, NeuronprofError):
            key, amount = -1, 0.0
        if key < 0 or amount <= 0:
            raise NeuronprofError(f"{option} {text} cannot be read; write it like {example}.")
        found[key] = amount
    return found


_CUT_SHORT = {"error": "failed", "interrupt": "was interrupted", "terminated": "was terminated"}


def _report(trace: Path, ended_by: str, args: argparse.Namespace) -> None:
    """The summary, the file written, and what to run next."""
    from neuronprof import api

    loaded = api.load(trace)
    sys.stdout.flush()
    if args.json:
        print(json.dumps(loaded.summary().to_dict()))
        return
    print(f"\n{loaded.summary()}")
    if ended_by in _CUT_SHORT:
        print(f"\nThe script {_CUT_SHORT[ended_by]}; the trace holds the steps before that.")
    print(f"\nwrote {args.output} ({units.size(_bytes(trace))})")
    print(f"next: neuronprof view {args.output}      the timeline, in a browser")
    print(f"      neuronprof analyze {args.output}   every table behind this summary")


def _bytes(path: Path) -> int:
    return path.stat().st_size if path.is_file() else sum(p.stat().st_size for p in path.glob("*.parquet"))
