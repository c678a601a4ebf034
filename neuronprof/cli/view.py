"""neuronprof view: show a trace's timeline in a browser."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("trace", help="the trace.parquet that neuronprof record wrote")
    parser.add_argument("-o", "--output", default="timeline.html", help="the page to write (default: %(default)s)")
    parser.add_argument("--rank", type=int, metavar="N", help="show only this rank (default: as many as a page holds)")
    parser.add_argument("--no-browser", action="store_true", help="write the page, do not open it")


def run(args: argparse.Namespace) -> int:
    """Writes the page, says where it is, and opens it."""
    import webbrowser

    from neuronprof.trace.reader import open_trace
    from neuronprof.view import page

    output = page.check_output(args.output)
    page.write(open_trace(args.trace), output, args.rank)
    print(f"wrote {output}")
    if not args.no_browser and not webbrowser.open(output.resolve().as_uri()):
        print("No browser could be started; open the page in one.")
    return 0
