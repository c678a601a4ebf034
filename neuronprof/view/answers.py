"""What the server answers when a page asks: windows of a rank, single events, searches.

A page without a server answers the same questions itself (source.js).
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronprof import units
from neuronprof.analyze.explain import explain
from neuronprof.analyze.kept import Kept
from neuronprof.analyze.pyramid import lookup, window
from neuronprof.analyze.pyramid.store import Detail
from neuronprof.errors import NeuronprofError
from neuronprof.view import notes, scene, sheets, sourcecode, tracks, why
from neuronprof.view.lod import Packer
from neuronprof.view.splits import OK, WAIT, Answer, Splits

REFUSED, NOWHERE, GONE, FAILED = 400, 404, 410, 503


class Answers:
    """Answers questions about traces. kept: of each trace, in the order in which keys (`trace/rank`) count them."""

    def __init__(self, kept: Sequence[Kept]) -> None:
        self._kept = kept
        self._found: sheets.Found | None = None
        self._splits = Splits()
        self._questions: dict[str, Callable[[Detail, Mapping[str, str]], bytes]] = {
            "window": _window,
            "event": _event,
            "neighbour": _neighbour,
            "find": _find,
            "busy": _busy,
            "operator": _operator,
        }

    def answer(self, question: str, query: Mapping[str, str]) -> Answer:
        """Status and body: 200 with the answer, 202 with how far the summing is, else with a sentence that says what is wrong."""
        if gone := self._gone():
            return gone
        if question not in ("owner", "rank", "notes", "sheet", "why", "code", "split", *self._questions):
            return NOWHERE, b"There is no such question."
        try:
            return self._about_traces(question, query) or self._about_rank(question, query)
        except NeuronprofError as error:
            return FAILED, str(error).encode()
        except (KeyError, ValueError, IndexError):
            return REFUSED, b"The question cannot be read."
        finally:
            for kept in self._kept:
                kept.trim()

    def keep_notes(self, query: Mapping[str, str], body: bytes) -> Answer:
        """Saves the notes of a trace beside it."""
        if gone := self._gone():
            return gone
        try:
            notes.write(self._place(query["key"])[0].path, body)
        except NeuronprofError as error:
            return FAILED, str(error).encode()
        except (KeyError, ValueError, IndexError, TypeError):
            return REFUSED, b"The notes cannot be read."
        return OK, b""

    def _gone(self) -> Answer | None:
        changed = next((kept.changed for kept in self._kept if kept.changed), "")
        return (GONE, changed.encode()) if changed else None

    def _about_traces(self, question: str, query: Mapping[str, str]) -> Answer | None:
        if question == "owner":
            return OK, _json(self._owner(int(query["id"])))
        if question == "notes":
            return OK, _json(notes.read(self._place(query["key"])[0].path))
        if question == "sheet":
            return self._sheet(query["name"])
        return None

    def _sheet(self, name: str) -> Answer:
        """One of the pages around the timeline, of the first trace; or the comparison of all."""
        if name == sheets.COMPARE and len(self._kept) > 1:
            return self._compared()
        if name not in sheets.SHEETS:
            raise ValueError(name)
        if self._found is None:
            results = self._kept[0].tables()
            if results is None:
                what, share = self._kept[0].progress("tables")
                return WAIT, f"Analysing the trace: {what}, {100 * share:.0f} %".encode()
            self._found = sheets.find(self._kept[0].trace, results, self._kept[0].left_out)
        return OK, sheets.item(name, self._found).encode()

    def _compared(self) -> Answer:
        results = [kept.tables() for kept in self._kept]
        for kept, found in zip(self._kept, results, strict=True):
            if found is None:
                what, share = kept.progress("tables")
                return WAIT, f"Analysing {kept.trace.path}: {what}, {100 * share:.0f} %".encode()
        differences = sheets.compare([kept.trace for kept in self._kept], [found for found in results if found])
        whole = replace(sheets.find(self._kept[0].trace, results[0], self._kept[0].left_out), differences=differences)
        return OK, sheets.item(sheets.COMPARE, whole).encode()

    def _about_rank(self, question: str, query: Mapping[str, str]) -> Answer:
        kept, rank = self._place(query["key"])
        detail = kept.detail(rank)
        if detail is None:
            what, share = kept.progress(f"rank {rank}")
            return WAIT, f"Preparing rank {rank}: {what}, {100 * share:.0f} %".encode()
        if question == "rank":
            packer = Packer()
            return OK, packer.pack(scene.shared(detail, kept.trace.metadata, packer))
        if question == "code":
            named = query["source"] in detail.header["words"]["source"]
            return OK, _json(sourcecode.excerpt(kept.trace, query["source"] if named else ""))
        if question == "split":
            return self._splits.answer(kept.trace, rank, int(query["from"]), int(query["to"]))
        if question == "why":
            number = int(query["id"]) + int(detail.header["first_id"])
            return OK, _json("\n\n".join(why.why_so_long(explain(kept.trace, str(number)), why.LETTERS)))
        return OK, self._questions[question](detail, query)

    def _place(self, key: str) -> tuple[Kept, int]:
        number, _, rank = key.partition("/")
        kept = self._kept[int(number)]
        if int(number) < 0 or int(rank) not in kept.ranks:
            raise ValueError(key)
        return kept, int(rank)

    def _owner(self, number: int) -> dict[str, Any] | None:
        """The rank, of those that are summed, that has the event with an id of the whole trace."""
        for place, kept in enumerate(self._kept):
            for rank, detail in kept.ready():
                own = number - int(detail.header["first_id"])
                if lookup.by_id(detail, own) is not None:
                    return {"key": f"{place}/{rank}", "id": own}
        return None


def _window(detail: Detail, query: Mapping[str, str]) -> bytes:
    level = min(max(int(query["level"]), 0), int(detail.header["top"]))
    return scene.part(detail, level, int(query["from"]), int(query["to"]))


def _event(detail: Detail, query: Mapping[str, str]) -> bytes:
    row = lookup.by_id(detail, int(query["id"]))
    if row is None:
        return _json(None)
    released = lookup.released_by(detail, row)
    shown = released[: lookup.MOST_RELEASED]
    return _json(
        {
            "event": _record(detail, row),
            "releases": [_record(detail, other) for other in shown],
            "more": len(released) - len(shown),
        }
    )


def _neighbour(detail: Detail, query: Mapping[str, str]) -> bytes:
    row = lookup.by_id(detail, int(query["id"]))
    near = None if row is None else lookup.neighbour(detail, row, 1 if int(query["step"]) > 0 else -1)
    return _json(None if near is None else _record(detail, near))


def _find(detail: Detail, query: Mapping[str, str]) -> bytes:
    wanted = _rows(detail, query["rows"]) if "rows" in query else lookup.matches(detail, query["text"])
    row = lookup.find(detail, wanted, int(query["after"]), 1 if int(query["step"]) > 0 else -1)
    return _json(None if row is None else _record(detail, row))


def _rows(detail: Detail, listed: str) -> NDArray[np.bool_]:
    """Rows of the alike table, of which a page lists the numbers."""
    wanted = np.zeros(len(detail.columns["alike_count"]), bool)
    wanted[[int(number) for number in listed.split(",")]] = True
    return wanted


def _operator(detail: Detail, query: Mapping[str, str]) -> bytes:
    """The first event of an operator, by its name, layer and phase with spaces between, and how many it has."""
    wanted = lookup.of_operator(detail, query["name"])
    row = lookup.find(detail, lookup.computing(detail, wanted), int(detail.header["origin"]) - 1, 1)
    count = int(detail.columns["alike_count"][wanted].sum())
    return _json(None if row is None else {**_record(detail, row), "count": count})


def _busy(detail: Detail, query: Mapping[str, str]) -> bytes:
    start, end = int(query["from"]), int(query["to"])
    if end <= start:
        raise ValueError(query)
    return _json(
        [
            {
                "name": tracks.engine_label(engine),
                "colour": tracks.PALETTE[tracks.engine_colour(engine)],
                "share": units.percent(ns / (end - start)),
                "time": units.time(ns),
            }
            for engine, ns in window.busy(detail, start, end).items()
            if ns
        ]
    )


def _record(detail: Detail, row: int) -> dict[str, Any]:
    found = lookup.record(detail, row)
    at = tracks.row(found.pop("engine"), found.pop("queue"), found.pop("lane"))
    return {**found, "row": at}


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()
