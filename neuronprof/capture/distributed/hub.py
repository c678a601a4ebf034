"""The hub: a process that starts ranks of a job as others name them, and passes on what they send each other.

It has no thread but its main one, so that what it forks is whole, and it never waits for a rank that computes: a rank asks for a message
and listens until the answer comes.
"""

import os
import signal
from collections import defaultdict, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any

ANY = -1
"""In the place of a rank: whoever it is."""


class LostPeerError(Exception):
    """A message will never come. The text says from whom, and why."""


@dataclass
class Hub:
    """Ranks by their connections, and the messages that nobody asked for yet.

    become: what a forked rank does with its number and its connection. What a rank says: ('start', rank); ('separate', group), and
    ('apart', group) to hear whether anybody said so; ('put', to, key, data); ('get', from, key) to hear ('data', data), ('ended', from) or
    ('stuck', {rank: from}); ('deliver', result) as its last word; and the first one ('collect', whether the others are to end now) to hear
    all results by rank.
    """

    become: Callable[[int, Connection], None]
    connections: dict[int, Connection]
    _letters: dict[tuple[int, int, str], deque[Any]] = field(default_factory=lambda: defaultdict(deque))
    _apart: set[str] = field(default_factory=set)
    _asking: dict[int, tuple[int, str]] = field(default_factory=dict)
    _ended: set[int] = field(default_factory=set)
    _processes: dict[int, int] = field(default_factory=dict)
    _results: dict[int, Any] = field(default_factory=dict)
    _collector: int = ANY

    def serve(self) -> None:
        """Until the rank that was there first is gone."""
        first = next(iter(self.connections))
        while first in self.connections:
            ranks = {connection: rank for rank, connection in self.connections.items()}
            for connection in wait(list(ranks)):
                self._hear(ranks[connection], connection)  # type: ignore[index, arg-type]
            self._answer()
        for process in self._processes.values():
            os.kill(process, signal.SIGKILL)

    def _hear(self, rank: int, connection: Connection) -> None:
        try:
            word, *rest = connection.recv()
        except (EOFError, ConnectionResetError):
            self._leaves(rank)
            return
        words: dict[str, Callable[..., None]] = {
            "start": self._start, "separate": self._separate, "apart": self._is_apart, "put": self._put, "get": self._get,
            "deliver": self._deliver, "collect": self._collect,
        }  # fmt: skip
        words[word](rank, *rest)

    def _separate(self, _rank: int, group: str) -> None:
        self._apart.add(group)

    def _is_apart(self, rank: int, group: str) -> None:
        self._tell(rank, group in self._apart)

    def _put(self, rank: int, to: int, key: str, data: Any) -> None:
        self._letters[rank, to, key].append(data)

    def _get(self, rank: int, source: int, key: str) -> None:
        self._asking[rank] = (source, key)

    def _deliver(self, rank: int, result: Any) -> None:
        self._results[rank] = result

    def _collect(self, rank: int, end: bool) -> None:
        self._collector = rank
        self._ended.add(rank)
        for process in self._processes.values() if end else ():
            os.kill(process, signal.SIGTERM)

    def _leaves(self, rank: int) -> None:
        self.connections.pop(rank).close()
        self._ended.add(rank)
        if rank in self._processes:
            os.waitpid(self._processes.pop(rank), 0)

    def _start(self, _asked_by: int, rank: int) -> None:
        if rank in self.connections or rank in self._ended:
            return
        ours, theirs = Pipe()
        process = os.fork()
        if process == 0:
            for connection in (ours, *self.connections.values()):
                connection.close()
            self.become(rank, theirs)
            os._exit(0)
        theirs.close()
        self.connections[rank], self._processes[rank] = ours, process

    def _answer(self) -> None:
        for rank, (source, key) in list(self._asking.items()):
            letters = self._found(rank, source, key)
            if letters:
                self._tell(rank, ("data", letters.popleft()))
            elif source in self._ended:
                self._tell(rank, ("ended", source))
        if self._asking and set(self.connections) - {self._collector} <= set(self._asking):
            stuck = {rank: source for rank, (source, _) in self._asking.items()}
            for rank in stuck:
                self._tell(rank, ("stuck", stuck))
        if self._collector in self.connections and not self._processes:
            self._tell(self._collector, self._results)
            self._collector = ANY

    def _found(self, rank: int, source: int, key: str) -> deque[Any] | None:
        if source != ANY:
            return self._letters.get((source, rank, key))
        return next((v for (_, to, k), v in self._letters.items() if v and to == rank and k == key), None)

    def _tell(self, rank: int, words: Any) -> None:
        self._asking.pop(rank, None)
        with suppress(BrokenPipeError, ConnectionResetError):  # it ended in the meantime, which wait() tells next
            self.connections[rank].send(words)
