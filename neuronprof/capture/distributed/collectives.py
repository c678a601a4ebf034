"""Collectives: the operators of torch.distributed are answered here, and recorded with their groups."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from neuronprof.capture.distributed import messages, results, streams
from neuronprof.capture.distributed.groups import Book, Call
from neuronprof.capture.distributed.messages import FORMS, Message
from neuronprof.capture.distributed.p2p import PointToPoint
from neuronprof.capture.distributed.waits import Waits
from neuronprof.capture.signatures import Operator, tensors_in
from neuronprof.terms import Collective

ALIKE = "results of collectives are as if all ranks held the same data"


class Recording(Protocol):
    """What this needs of an engine."""

    @property
    def values(self) -> str:
        """'real' or 'none'."""

    def note(self, key: str, count: int = 1) -> None:
        """Counts a softening."""

    def operators(self) -> int:
        """How many are recorded so far."""

    def record(self, func: Any, args: tuple[Any, ...], out: Any, call: Call | None) -> None:
        """Appends an operator that communicates, or waits for one that does."""


class Collectives:
    """Executes collective operators for one rank of a world whose other ranks do not exist.

    book: the groups of the run. p2p: what happens to sends and receives; waits: to the works of all the others.
    """

    def __init__(self, engine: Recording) -> None:
        self.book = Book()
        self._engine = engine
        self.p2p = PointToPoint(self._permute, self._message)
        self.waits = Waits(engine.operators, self._wait, self.p2p.waited)

    def execute(self, func: Any, operator: Operator, args: tuple[Any, ...], simulated: bool) -> Any:
        """Executes one collective operator and returns what the dispatcher expects; simulated: large results get no values."""
        message = messages.read(operator.name, args)
        group = self.book.note(message.group)
        if message.kind in (Collective.SEND, Collective.RECV):
            self.p2p.add(message)
            return results.work(args[0])
        if message.group.size() > 1 and message.kind != Collective.BARRIER:
            self._engine.note(ALIKE)
        out = self._result(message, func, args, simulated)
        stream = streams.current()
        call = Call(message.kind, _nbytes(message, out), group, -1, message.uneven, stream)
        self._engine.record(func, args, out, call)
        if message.name.startswith("c10d."):
            self.waits.issued(tensors_in(args[0]), stream)
        return out

    def _result(self, message: Message, func: Any, args: tuple[Any, ...], simulated: bool) -> Any:
        if FORMS[message.name].receives is None and message.kind != Collective.BARRIER:
            return results.make(message, simulated)
        results.write(message)
        if not message.name.startswith("c10d."):
            return args[0]
        returns = len(func._schema.returns)
        if returns == 0:
            return None
        done = results.work(args[0])
        return (args[0], done) if returns == 2 else done

    def _wait(self, tensors: Sequence[torch.Tensor]) -> None:
        self._engine.record(WAIT, (list(tensors),), list(tensors), None)

    def _permute(self, sent: Sequence[torch.Tensor], received: Sequence[torch.Tensor], message: Message) -> None:
        """Sends and receives at the same distance on all ranks of a ring: one permutation."""
        args = (list(sent), list(received))
        whole = Message(messages.PERMUTE, Collective.PERMUTE, message.group, sent, received, args)
        self._engine.note(ALIKE)
        results.write(whole)
        name = self.book.note(message.group)
        call = Call(Collective.PERMUTE, sum(t.nbytes for t in sent), name, -1, 1.0, streams.current())
        self._engine.record(PERMUTE, args, None, call)

    def _message(self, message: Message, peer: int, number: int) -> None:
        """A message to or from a rank that runs another program."""
        name = self.book.note(message.group)
        call = Call(message.kind, message.nbytes, name, peer, number=number)
        self._engine.record(MESSAGES[message.kind], (list(message.sent or message.received),), None, call)


class _Operator:
    """Stands for an operator of the dispatcher that PyTorch does not have, or has in several forms."""

    namespace = "neuronprof"

    def __init__(self, name: str) -> None:
        self._name = name

    def __str__(self) -> str:
        return self._name


PERMUTE, WAIT = _Operator(messages.PERMUTE), _Operator("neuronprof.wait.default")
MESSAGES = {Collective.SEND: _Operator(messages.SEND), Collective.RECV: _Operator(messages.RECV)}


def _nbytes(message: Message, out: Any) -> int:
    made = 0 if message.received else sum(t.nbytes for t in messages.tensors_in(out))
    return message.nbytes if message.kind == Collective.ALL_TO_ALL else max(message.nbytes, made)
