"""What a page is told of where the time of a range went; it is worked out beside the server, which answers other questions meanwhile."""

import json
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from neuronprof import units
from neuronprof.analyze import stretch
from neuronprof.view import tracks

if TYPE_CHECKING:
    from neuronprof.trace.reader import TraceFile

OK, WAIT = 200, 202
Answer = tuple[int, bytes]

_COLOURS = {
    "compute": tracks.BLUE,
    "memory": tracks.SKY,
    "communication": tracks.VERMILLION,
    "waiting": tracks.YELLOW,
    "bubble": tracks.ORANGE,
    "host": tracks.WINE,
    "idle": tracks.PALE,
}
_COSTLIEST = 5


class Splits:
    """Splits ranges one after another, and keeps the last ones until they are fetched."""

    def __init__(self) -> None:
        self._worker = ThreadPoolExecutor(1)
        self._asked: dict[tuple[Any, ...], Future[stretch.Split]] = {}

    def answer(self, trace: "TraceFile", rank: int, start: int, end: int) -> Answer:
        """The split as JSON, or that it is being worked out.

        Raises:
            NeuronprofError: the range holds too much, or the trace is damaged.
            ValueError: the range is empty.
        """
        if end <= start:
            raise ValueError(start, end)
        key = (trace.path, rank, start, end)
        future = self._asked.get(key)
        if future is None:
            for other in self._asked.values():
                other.cancel()  # nobody waits for a range that is no longer chosen
            future = self._worker.submit(stretch.split, trace, rank, start, end)
            self._asked = {key: future}
        if not future.done():
            return WAIT, b"Splitting the range"
        return OK, json.dumps(told(future.result(), end - start)).encode()


def told(split: stretch.Split, length: int) -> dict[str, list[dict[str, Any]]]:
    """parts: name, colour, share and time of each part that is there, the largest first, and what they are in particular; operators."""
    times = split.parts.groupby("part")["time_ns"].sum().sort_values(ascending=False)
    parts = [
        {"name": str(name).capitalize(), "colour": _COLOURS[str(name)], **_amount(int(time), length)}
        for name, time in times.items()
        if time
    ]
    named = split.operators[split.operators["op_name"] != ""].head(_COSTLIEST)
    columns = named[["part", "op_name", "layer", "phase"]].astype(str).to_numpy().tolist()
    operators = [
        {"name": " ".join(filter(None, names)), "part": part, **_amount(time, length)}
        for (part, *names), time in zip(columns, named["time_ns"].tolist(), strict=True)
    ]
    return {"parts": parts, "operators": operators}


def _amount(time: int, length: int) -> dict[str, str]:
    return {"time": units.time(time), "share": units.percent(time / length)}
