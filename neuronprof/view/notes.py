"""Notes that a reader makes in the timeline: saved beside the trace, so that they go where it goes."""

import json
import os
from pathlib import Path
from typing import Any

from neuronprof.errors import NeuronprofError

_MOST_BYTES = 1 << 20


def file_of(trace: Path) -> Path:
    """Where the notes of a trace are."""
    return trace.with_name(f"{trace.name}.notes.json")


def read(trace: Path) -> list[dict[str, Any]]:
    """The notes: at, nanoseconds from the start of the first step, and text.

    Raises:
        NeuronprofError: they cannot be read.
    """
    file = file_of(trace)
    try:
        return _checked(file.read_bytes()) if file.exists() else []
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise NeuronprofError(f"The notes in {file} cannot be read: {error}; move the file away.") from error


def write(trace: Path, body: bytes) -> None:
    """Replaces the notes; without any the file goes.

    Raises:
        NeuronprofError: the folder cannot be written.
        ValueError: the body holds no notes.
    """
    file, found = file_of(trace), _checked(body)
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    try:
        if not found:
            file.unlink(missing_ok=True)
            return
        partial.write_text(json.dumps(found, indent=1), encoding="utf-8")
        partial.replace(file)
    except OSError as error:
        raise NeuronprofError(f"The note could not be saved in {file.parent}: {error.strerror or error}.") from error


def _checked(body: bytes) -> list[dict[str, Any]]:
    if len(body) > _MOST_BYTES:
        raise ValueError("more than a MiB of notes")
    return [{"at": int(note["at"]), "text": str(note["text"])} for note in json.loads(body)]
