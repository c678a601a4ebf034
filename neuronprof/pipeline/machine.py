"""The machine that a job asks for: whether it exists, and how many ranks it has."""

from typing import TYPE_CHECKING

from neuronprof.errors import NeuronprofError
from neuronprof.hardware.load import load_chip
from neuronprof.pipeline.detail import Detail
from neuronprof.pipeline.options import Options
from neuronprof.simulate import network
from neuronprof.trace import storage

if TYPE_CHECKING:
    from neuronprof.hardware.spec import Chip


def check(options: Options) -> None:
    """Refuses what no script can change, before one runs.

    Raises:
        NeuronprofError: a folder or bucket for the trace, a chip, a layout, a number of ranks, a detail or a collective algorithm that does
            not exist.
    """
    storage.check(options.output)
    chip = load_chip(options.chip)
    layout = options.layout()
    layout.validate()
    check_world(chip, cores_a_rank(chip, options.lnc), max(layout.world, options.world_size or 1))
    if options.detail:
        Detail.of(options.detail, chip)
    network.check(options.collective_algorithm, options.oversubscription)


def cores_a_rank(chip: "Chip", lnc: int | None) -> int:
    """Physical cores of a logical one.

    Raises:
        NeuronprofError: they do not divide the chip's.
    """
    wanted, cores = int(chip.package.lnc) if lnc is None else lnc, int(chip.package.cores)
    if wanted < 1 or cores % wanted:
        fitting = ", ".join(str(n) for n in range(1, cores + 1) if cores % n == 0)
        raise NeuronprofError(
            f"--lnc {wanted} does not divide the {cores} NeuronCores of {chip.name}; choose of {fitting}."
        )
    return wanted


def check_world(chip: "Chip", lnc: int, world: int) -> None:
    """Refuses more ranks than there can be.

    Raises:
        NeuronprofError: how many there can be.
    """
    largest = int(chip.efa.domain) * chip.ranks(lnc)
    if world > largest:
        raise NeuronprofError(
            f"{world} ranks are more than the {largest} of an UltraCluster of {chip.name}; give fewer."
        )
