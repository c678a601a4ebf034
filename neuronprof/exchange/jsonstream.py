"""The events of a Chrome JSON trace one after another, so that a file of any size needs little memory."""

import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from neuronprof.errors import NeuronprofError
from neuronprof.exchange.jsonmend import mended

Watch = Callable[[int, int], None]

_CHUNK = 1 << 20  # characters read at a time
_LONGEST = 1 << 24  # no single value is longer; what cannot be read within it is not JSON
_GZIP = b"\x1f\x8b"
_GAP = re.compile(r"[\s,:]*")
_EVENTS = "traceEvents"


def unwatched(*_progress: object) -> None:
    """Tells nobody how far the reading is."""


class _CutOffError(Exception):
    """The text ends inside a value."""


class JsonTrace:
    """A Chrome JSON trace: an object with `traceEvents`, or a bare array of events; gzipped or not.

    What is not quite JSON, like the backslashes of Windows paths, is read as it is meant (`jsonmend`).

    Numbers with a decimal point stay text, as they are written: a timestamp in microseconds since 1970 has more digits than a float.

    header: what stands beside `traceEvents`, complete when the events have been read. watch: called with bytes read and bytes in all.
    """

    def __init__(self, path: Path, watch: Watch = unwatched) -> None:
        self.path = path
        self.header: dict[str, Any] = {}
        self._watch = watch
        self._text = ""
        self._at = 0
        self._ended = False
        self._mending = False  # from the first value that is not quite JSON on, so that each is looked at by itself
        self._scan: Callable[[str, int], tuple[Any, int]] = json.JSONDecoder(parse_float=str, strict=False).scan_once  # type: ignore[attr-defined]

    def events(self) -> Iterator[Any]:
        """The events in the order of the file.

        Raises:
            NeuronprofError: the file cannot be read, is empty, cut off, or is no Chrome JSON trace.
        """
        path = self.path
        try:
            with path.open("rb") as raw:
                self._size = path.stat().st_size
                packed = raw.peek(2)[:2] == _GZIP
                self._raw = raw
                inner = gzip.GzipFile(fileobj=raw) if packed else raw
                self._stream: TextIO = io.TextIOWrapper(inner, encoding="utf-8-sig", errors="replace")
                yield from self._document()
        except (EOFError, _CutOffError) as error:
            raise NeuronprofError(f"{path} is cut off: it ends inside an event; export it again.") from error
        except (gzip.BadGzipFile, zlib.error) as error:
            raise NeuronprofError(f"{path} is damaged: it cannot be unpacked; export it again.") from error
        except OSError as error:
            raise NeuronprofError(f"Cannot read {path}: {error.strerror or error}.") from error

    def _document(self) -> Iterator[Any]:
        first = self._next()
        if not first:
            raise NeuronprofError(f"{self.path} is empty; export it again.")
        if first not in "{[":
            raise NeuronprofError(f"{self.path} is not a JSON trace; give what PyTorch's profiler exported.")
        self._at += 1
        if first == "[":
            yield from self._array()
            return
        found = False
        while self._next() not in "}":
            key = self._value()
            if key == _EVENTS and self._next() == "[":
                found = True
                self._at += 1
                yield from self._array(closed=True)
            else:
                self.header[str(key)] = self._value()
        if not self._next():
            raise _CutOffError
        if not found:
            raise NeuronprofError(f"{self.path} is JSON but not a trace: it has no {_EVENTS}.")

    def _array(self, closed: bool = False) -> Iterator[Any]:
        """The values up to the closing bracket, which a bare array may lack."""
        gap, scan = _GAP.match, self._scan
        while (char := self._next()) != "]":
            if not char:
                if closed:
                    raise _CutOffError
                return
            yield self._value()
            if self._mending:
                continue
            text, at = self._text, self._at
            try:  # as long as whole values stand in the text, without a call for each
                while True:
                    at = gap(text, at).end()  # type: ignore[union-attr]
                    value, end = scan(text, at)
                    yield value
                    at = end
            except (StopIteration, ValueError):
                self._at = at
        self._at += 1

    def _next(self) -> str:
        """The character at which the next value or bracket begins; '' at the end of the file."""
        while True:
            self._at = _GAP.match(self._text, self._at).end()  # type: ignore[union-attr]
            if self._at < len(self._text):
                return self._text[self._at]
            if self._ended:
                return ""
            self._read()

    def _value(self) -> Any:
        self._next()
        while True:
            try:
                value, end = self._scanned()
            except (StopIteration, ValueError, RecursionError) as error:
                if not self._ended and len(self._text) - self._at < _LONGEST:
                    self._read()
                    continue
                raise self._unreadable(error) from error
            if end == len(self._text) and not self._ended:  # a number may go on
                self._read()
                continue
            self._at = end
            return value

    def _scanned(self) -> tuple[Any, int]:
        """The value that begins here, mended where it has to be, and where it ends."""
        if self._mending and (found := mended(self._text, self._at, self._scan)):
            return found
        try:
            return self._scan(self._text, self._at)
        except (StopIteration, ValueError, RecursionError) as error:
            found = None if self._mending or self._cut(error) else mended(self._text, self._at, self._scan)
            if not found:
                raise
            self._mending = True
            return found

    def _cut(self, error: Exception) -> bool:
        """Whether reading failed because the text ends inside the value."""
        place = getattr(error, "pos", None) or getattr(error, "value", None) or len(self._text)
        return bool(place >= len(self._text) - 1 or "Unterminated" in str(error))

    def _unreadable(self, error: Exception) -> Exception:
        """What to say of text that is no JSON: it is cut off when only its end is missing."""
        if len(self._text) - self._at >= _LONGEST:
            return NeuronprofError(
                f"{self.path} is no trace: '{self._near()}' begins a value longer than any event; give what PyTorch's profiler exported."
            )
        if self._ended and self._cut(error):
            return _CutOffError()
        return NeuronprofError(
            f"{self.path} is damaged: what stands near '{self._near()}' is not JSON; export it again."
        )

    def _near(self) -> str:
        return " ".join(self._text[self._at : self._at + 40].split())

    def _read(self) -> None:
        more = self._stream.read(_CHUNK)
        self._text = self._text[self._at :] + more
        self._at = 0
        self._ended = not more
        self._watch(self._raw.tell(), self._size)
