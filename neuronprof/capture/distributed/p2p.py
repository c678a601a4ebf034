"""Point to point: sends and receives by which all ranks of a group pass data on in a ring."""

from collections.abc import Callable, Sequence

import torch

from neuronprof.capture.distributed.messages import Message
from neuronprof.errors import NeuronprofError
from neuronprof.terms import Collective

_Permute = Callable[[Sequence[torch.Tensor], Sequence[torch.Tensor], Message], None]


class Ring:
    """Pairs each send with the receive from the rank at the same distance on the other side.

    All ranks run the same program: where this one sends to the next but one, the last but one sends to this one. permute: is called with
    what is sent and received once both are known, and one of the two messages.
    """

    def __init__(self, permute: _Permute) -> None:
        self._permute = permute
        self._waiting: list[Message] = []

    def add(self, message: Message) -> None:
        """Takes a send or a receive.

        Raises:
            NeuronprofError: earlier ones have found no partner, so that the ranks must run different programs.
        """
        partner = next((w for w in self._waiting if _partners(w, message)), None)
        if partner is None:
            self._waiting.append(message)
            if len(self._waiting) > 2 * max(64, message.group.size()):
                raise NeuronprofError(
                    "The script sends to ranks from which no rank at the same distance sends to it: its ranks run different programs."
                )
            return
        self._waiting.remove(partner)
        sends, receives = (message, partner) if message.kind == Collective.SEND else (partner, message)
        self._permute(sends.sent, receives.received, message)


def _partners(one: Message, other: Message) -> bool:
    if one.kind == other.kind or one.group.group_name != other.group.group_name:
        return False
    if one.peer < 0 or other.peer < 0:  # takes what any rank sends
        return True
    rank, size = one.group.rank(), one.group.size()
    return (one.peer - rank) % size == (rank - other.peer) % size
