"""Makes torch.device('neuron') parse."""

from types import ModuleType
from typing import Any

import torch

from neuronprof.errors import NeuronprofError


class _Hooks(torch._C._acc.PrivateUse1Hooks):
    """What PyTorch asks of the device when nothing is simulated: it is not there."""

    def is_available(self) -> bool:
        """False."""
        return False

    def is_built(self) -> bool:
        """True: the name exists."""
        return True

    def has_primary_context(self, _index: int) -> bool:
        """False."""
        return False


def register() -> None:
    """Gives PyTorch's extra device the name neuron. A process can do that once, so it stays, as a device that is not available.

    Raises:
        NeuronprofError: another backend has taken the extra device.
    """
    name = torch._C._get_privateuse1_backend_name()
    if name == "neuron":
        return
    if name != "privateuseone":
        raise NeuronprofError(
            f"PyTorch's extra device is taken by {name}: record in an environment without that backend."
        )
    torch.utils.rename_privateuse1_backend("neuron")
    torch._register_device_module("neuron", _module())
    torch._C._acc.register_python_privateuseone_hook(_Hooks())


def _module() -> ModuleType:
    """torch.neuron as it is when nothing is simulated."""
    answers: dict[str, Any] = {
        "is_available": False,
        "is_initialized": False,
        "_is_in_bad_fork": False,
        "device_count": 0,
        "current_device": 0,
    }
    module = ModuleType("torch.neuron", "The neuron device outside a recording.")
    for name, answer in answers.items():
        setattr(module, name, lambda answer=answer: answer)
    module.manual_seed_all = lambda _seed: None  # type: ignore[attr-defined]
    return module
