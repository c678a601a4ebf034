"""Launch lines: how many ranks `torchrun` or `accelerate launch` would have started, and of what."""

import argparse
from dataclasses import dataclass
from pathlib import PurePath

from neuronprof.errors import NeuronprofError

_LAUNCHERS = ("torchrun",)
_MODULES = ("torch.distributed.run", "torch.distributed.launch")
# What 'auto' and 'gpu' stand for: the accelerators that PyTorch sees in an instance of eight.
_AUTOMATIC = 8


@dataclass(frozen=True)
class LaunchLine:
    """What a launcher was asked to start. local_world_size: ranks a node; module: the script is a module's name."""

    world_size: int
    local_world_size: int
    script: str
    argv: tuple[str, ...]
    module: bool


def parse(words: list[str]) -> LaunchLine | None:
    """The meaning of a command that begins with a launcher; None for any other command.

    Raises:
        NeuronprofError: the line names no script, or a number of ranks that cannot be read.
    """
    rest = _after_launcher(words)
    if rest is None:
        return None
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False, allow_abbrev=False)
    add = parser.add_argument
    add("--nproc-per-node", "--nproc_per_node", "--num_processes", default="1")
    add("--nnodes", "--num_machines", default="1")
    add("-m", "--module", action="store_true")
    for flag in (
        "--standalone",
        "--no-python",
        "--no_python",
        "--run-path",
        "--use-env",
        "--use_env",
        "--multi_gpu",
        "--mixed",
    ):
        add(flag, action="store_true")
    for option in _IGNORED:
        add(f"--{option}", f"--{option.replace('-', '_')}")
    add("words", nargs=argparse.REMAINDER)
    try:
        found, _ = parser.parse_known_args(rest)
    except argparse.ArgumentError as error:
        raise NeuronprofError(f"The launch line '{' '.join(words)}' cannot be read: {error}.") from error
    if not found.words:
        raise NeuronprofError(f"The launch line '{' '.join(words)}' names no script; give it last.")
    local = _number(found.nproc_per_node)
    world = (
        local
        if rest is not words and _is_accelerate(words)
        else local * _number(found.nnodes.partition(":")[2] or found.nnodes)
    )
    return LaunchLine(world, local, found.words[0], tuple(found.words[1:]), found.module)


_IGNORED = (
    "rdzv-backend", "rdzv-endpoint", "rdzv-id", "rdzv-conf", "max-restarts", "monitor-interval", "start-method", "role", "log-dir",
    "redirects", "tee", "node-rank", "master-addr", "master-port", "local-addr", "mixed-precision", "machine-rank", "main-process-ip",
    "main-process-port", "config-file", "dynamo-backend", "log-line-prefix-template", "logs-specs", "numa-binding",
)  # fmt: skip


def _is_accelerate(words: list[str]) -> bool:
    return PurePath(words[0]).name == "accelerate"


def _after_launcher(words: list[str]) -> list[str] | None:
    name = PurePath(words[0]).name
    if name in _LAUNCHERS:
        return words[1:]
    if name == "accelerate" and words[1:2] == ["launch"]:
        return words[2:]
    if name.startswith("python") and words[1:2] == ["-m"] and words[2:3] and words[2] in _MODULES:
        return words[3:]
    return None


def _number(text: str) -> int:
    if text in ("auto", "gpu", "cpu", "neuron", "xla"):
        return _AUTOMATIC
    if not text.isdigit() or int(text) < 1:
        raise NeuronprofError(f"'{text}' in the launch line is not a number of ranks; give one, or auto.")
    return int(text)
