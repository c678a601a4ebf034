"""The lines of a script around the one that caused an event, read from the file as it is now."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neuronprof.trace.reader import TraceFile

_AROUND = 4  # lines before and after
_LARGEST = 4 << 20  # bytes of a script


def excerpt(trace: "TraceFile", source: str) -> dict[str, Any]:
    """What stands around a source line.

    Args:
        trace: the trace that names it.
        source: file:line, as events have it.

    Returns:
        first (the number of the first line), line, lines, and note: a sentence, where they are missing or may not be what ran.
    """
    name, _, number = source.rpartition(":")
    if not name or not number.isdecimal():
        return _nothing("")
    file = _find(trace, name)
    if file is None:
        return _nothing(
            f"{name} is not here: it is looked for beside the trace, where view was started, and beside the script."
        )
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
        changed = file.stat().st_mtime > trace.path.stat().st_mtime
    except OSError as error:
        return _nothing(f"{file} cannot be read: {error.strerror or error}.")
    line = int(number)
    if not 1 <= line <= len(lines):
        return _nothing(f"{name} has only {len(lines):,} lines now: it changed since the recording.")
    first = max(1, line - _AROUND)
    note = f"{name} is newer than the trace: it may have changed since the recording." if changed else ""
    return {"first": first, "line": line, "lines": lines[first - 1 : line + _AROUND], "note": note}


def _nothing(note: str) -> dict[str, Any]:
    return {"first": 0, "line": 0, "lines": [], "note": note}


def _find(trace: "TraceFile", name: str) -> Path | None:
    """The file of that name. A trace may come from anybody: only scripts are shown, and only out of the folders where they are expected."""
    script = Path(str(trace.metadata.get("script") or ""))
    for folder in dict.fromkeys(path.resolve() for path in (trace.path.parent, Path.cwd(), script.parent)):
        file = (folder / name).resolve()
        if re.fullmatch(r"\.pyw?", file.suffix) and file.is_relative_to(folder) and _readable(file):
            return file
    return None


def _readable(file: Path) -> bool:
    try:
        return file.is_file() and file.stat().st_size <= _LARGEST
    except OSError:
        return False
