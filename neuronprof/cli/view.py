"""neuronprof view: show a trace's timeline in a browser."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from neuronprof import units
from neuronprof.cli import spare_inputs
from neuronprof.errors import NeuronprofError

if TYPE_CHECKING:
    from neuronprof.trace.reader import TraceFile


PICTURES = ("timeline", "roofline", "memory", "schedule", "traffic", "ranks")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("trace", nargs="+", help="the trace.parquet that neuronprof record wrote; two are compared")
    parser.add_argument(
        "-o", "--output", help="write one page that needs no server, *.html, and open it; or a picture, *.svg or *.png"
    )
    parser.add_argument(
        "--rank",
        type=int,
        metavar="N",
        help="with -o: only this rank (default: as many as a page holds; in a picture, the first one)",
    )
    for name, dest, what in (("--from", "start", "first"), ("--to", "end", "last")):
        parser.add_argument(name, dest=dest, metavar="TIME", help=f"the {what} time of a picture, as 1.5ms")
    parser.add_argument(
        "--page", choices=PICTURES, default=PICTURES[0], help="what a picture is of (default: %(default)s)"
    )
    parser.add_argument("--no-browser", action="store_true", help="do not open the page")
    parser.add_argument(
        "--port", type=int, default=0, metavar="N", help="where the server listens (default: a free port)"
    )
    parser.add_argument(
        "--allow-origin", action="append", default=[], metavar="HOST:PORT",
        help="another address under which the server may be reached, as through a tunnel; may be repeated",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Serves the page until Ctrl-C, or writes it."""
    from neuronprof.cli import opened

    is_picture, is_timeline = str(args.output or "").lower().endswith((".svg", ".png")), args.page == PICTURES[0]
    if (args.start or args.end) and not is_picture:
        raise NeuronprofError("--from and --to choose what a picture shows; write one with -o picture.svg or *.png.")
    if not is_timeline and not is_picture:
        raise NeuronprofError("--page chooses what a picture is of; write one with -o picture.svg or *.png.")
    if not is_timeline and (args.rank is not None or args.start or args.end):
        raise NeuronprofError(
            f"--rank, --from and --to are for a picture of the timeline; leave them out with --page {args.page}."
        )
    spare_inputs(args.output, args.trace)
    traces = [opened(path) for path in args.trace]
    return _write(traces, args) if args.output else _serve(traces, args)


def _write(traces: Sequence["TraceFile"], args: argparse.Namespace) -> int:
    from neuronprof.view import page, pagepicture, picture

    output = page.check_output(args.output, (*page.ENDINGS, *picture.ENDINGS))
    if output.suffix.lower() in picture.ENDINGS:
        if args.page != PICTURES[0]:
            pagepicture.write(traces, output, args.page)
            print(f"wrote {output}")
            return 0
        start, end = (units.parse_time(at) if at else None for at in (args.start, args.end))
        picture.write(traces, output, args.rank, (start, end))
        print(f"wrote {output}")
        return 0
    page.write(traces, output, args.rank)
    print(f"wrote {output}")
    if not args.no_browser:
        _open(output.resolve().as_uri())
    return 0


def _serve(traces: Sequence["TraceFile"], args: argparse.Namespace) -> int:
    from neuronprof.analyze.kept import Kept
    from neuronprof.view import page, server

    kept = [Kept(trace) for trace in traces]
    for one in kept:
        one.detail(one.ranks[0])

    def ready(address: str) -> None:
        print(f"{address} shows {', '.join(args.trace)}; Ctrl-C ends it.", flush=True)
        if not args.no_browser:
            _open(address)

    server.serve(kept, page.served(kept), port=args.port, origins=args.allow_origin, ready=ready)
    return 0


def _open(address: str) -> None:
    import webbrowser

    if not webbrowser.open(address):
        print("No browser could be started; open the page in one.", flush=True)
