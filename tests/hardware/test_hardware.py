from dataclasses import MISSING, fields
from pathlib import Path

import pytest

from neuronprof.errors import NeuronprofError
from neuronprof.hardware.load import chip_names, load_chip
from neuronprof.hardware.spec import Chip, Kernels
from neuronprof.terms import Provenance

GPUS = ["a100-40gb", "a100-80gb", "a100-p4de", "b200", "gb200", "h100-80gb", "h200"]
SHIPPED = [*GPUS, "trainium1", "trainium2", "trainium3", "trainium4", "trainium4-announced"]
CLOCK = 'clock = { value = 2_800_000_000, unit = "Hz", provenance = "documented", source = "guide" }'


def write(folder: Path, text: str) -> str:
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def with_base(*lines: str) -> str:
    return "\n".join(['base = "trainium1"', *lines])


def test_shipped_chips() -> None:
    assert chip_names() == SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_every_number_has_unit_provenance_and_source(name: str) -> None:
    chip = load_chip(name)
    expected = {
        f"{s.name}.{f.name}": f for s in fields(Chip) if hasattr(s.type, "__dataclass_fields__") for f in fields(s.type)
    }
    if name in GPUS:
        expected |= {f"kernels.{f.name}": f for f in fields(Kernels)}
    required = {key for key, f in expected.items() if f.default is MISSING}
    assert required <= set(chip.quantities) <= set(expected)
    for key, quantity in chip.quantities.items():
        assert quantity.unit == expected[key].metadata["unit"], key
        assert quantity.provenance in Provenance, key
        assert len(quantity.source) > 10, key
        section, field = key.split(".")
        assert getattr(getattr(chip, section), field) == quantity.value > 0, key
    for key in set(expected) - set(chip.quantities):
        section, field = key.split(".")
        assert getattr(getattr(chip, section), field) == 0, key
    assert chip.name == name
    assert chip.title.startswith("NVIDIA" if name in GPUS else "AWS Trainium")
    assert chip.topology in ("switch", "torus")


@pytest.mark.parametrize("name", SHIPPED)
def test_pe_arrays_reach_the_peak(name: str) -> None:
    # Trainium2: 128 x 128 PE x 1 array x 2.4 GHz x 2 FLOPs x 8 cores = 629 TFLOPS of 667 documented
    chip = load_chip(name)
    t = chip.tensor
    bf16 = t.rows * t.columns * t.arrays * t.clock * 2 * chip.package.cores
    assert bf16 == pytest.approx(chip.peak.bf16, rel=0.1)
    assert bf16 * t.fp8_speedup == pytest.approx(chip.peak.fp8, rel=0.1)
    assert bf16 / t.fp32_passes == pytest.approx(chip.peak.fp32, rel=0.15)


@pytest.mark.parametrize("name", SHIPPED)
def test_dma_engines_move_about_what_hbm_delivers(name: str) -> None:
    # Trainium4: 8 cores x 16 engines x 132 GB/s = 16.9 TB/s of 19.6; Trainium1 is the lowest: 544 of 820 GB/s
    chip = load_chip(name)
    moved = chip.package.cores * chip.dma.engines * chip.dma.bandwidth
    assert 0.6 < moved / chip.package.hbm_bandwidth < 1.1


@pytest.mark.parametrize("name", SHIPPED)
def test_dma_efficiency_grows_with_the_piece(name: str) -> None:
    dma = load_chip(name).dma
    curve = [dma.efficiency_64, dma.efficiency_256, dma.efficiency_512, dma.efficiency_2048, dma.efficiency_4096]
    assert curve == sorted(curve)


def test_aliases() -> None:
    assert [load_chip(n).name for n in ("a100", "h100", "h200-141gb", "gb200-nvl72")] == [
        "a100-80gb", "h100-80gb", "h200", "gb200",
    ]  # fmt: skip


def test_trainium4_is_what_was_described() -> None:
    old, new = load_chip("trainium3"), load_chip("trainium4")
    assert new.peak.bf16 == 6 * old.peak.bf16
    assert new.peak.fp8 == 6 * old.peak.fp8
    assert new.package.hbm_bandwidth == 4 * old.package.hbm_bandwidth
    assert new.neuronlink.bandwidth == 4 * old.neuronlink.bandwidth
    assert new.neuronlink.domain == 128
    assert new.efa.domain == 128 * 256
    assert new.topology == "switch"
    described = [
        "peak.bf16",
        "peak.fp8",
        "package.hbm_bandwidth",
        "neuronlink.bandwidth",
        "neuronlink.domain",
        "efa.domain",
    ]
    assert [k for k, q in new.quantities.items() if q.provenance is Provenance.REPORTED] == sorted(
        described, key=list(new.quantities).index
    )
    assert {q.provenance for k, q in new.quantities.items() if k not in described} <= {
        Provenance.ASSUMED,
        Provenance.DOCUMENTED,
    }
    assert new.ranks(2) == 4


def test_trainium4_as_announced() -> None:
    old, new = load_chip("trainium3"), load_chip("trainium4-announced")
    assert new.peak.fp8 == 3 * old.peak.fp8
    assert new.package.hbm_bandwidth == 4 * old.package.hbm_bandwidth
    assert new.neuronlink.domain == 72
    assert new.package.hbm_capacity == load_chip("trainium4").package.hbm_capacity  # from its base
    assert new.quantities["peak.bf16"].provenance is Provenance.ASSUMED
    assert Provenance.REPORTED not in {q.provenance for q in new.quantities.values()}


def test_a_file_overrides_its_base(tmp_path: Path) -> None:
    chip = load_chip(write(tmp_path, with_base('title = "Mine"', "[tensor]", CLOCK.replace("2_800", "1_000"))))
    base = load_chip("trainium1")
    assert (chip.name, chip.title, chip.topology) == ("mine", "Mine", "torus")
    assert chip.tensor.clock == 1e9
    assert chip.quantities["tensor.clock"].source == "guide"
    assert {k: q for k, q in chip.quantities.items() if k != "tensor.clock"} == {
        k: q for k, q in base.quantities.items() if k != "tensor.clock"
    }


def test_unknown_chip_is_told_with_a_suggestion() -> None:
    with pytest.raises(
        NeuronprofError, match=r"no chip 'trainum3' \(did you mean 'trainium3'\?\); choose one of a100-40gb"
    ):
        load_chip("trainum3")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[tensor", "is not a TOML file"),
        (with_base("[tensr]"), r"no section \[tensr\] \(did you mean 'tensor'\?\)"),
        (
            with_base("[tensor]", CLOCK.replace("clock", "klock", 1)),
            r"\[tensor\] has no field 'klock' \(did you mean 'clock'",
        ),
        (with_base("[tensor]", CLOCK.replace(', source = "guide"', "")), "tensor.clock has no source"),
        (with_base("[tensor]", CLOCK.replace('"guide"', '" "')), "tensor.clock has no source"),
        (with_base("[tensor]", CLOCK.replace('"guide"', "3")), "tensor.clock has a source that is not a text"),
        (with_base("[tensor]", CLOCK.replace('"Hz"', '"GHz"')), "tensor.clock is given in 'GHz', but must be in 'Hz'"),
        (
            with_base("[tensor]", CLOCK.replace("2_800", "-2_800")),
            "tensor.clock is -2800000000, but must be a number above zero",
        ),
        (
            with_base("[tensor]", CLOCK.replace("2_800_000_000", "0")),
            "tensor.clock is 0, but must be a number above zero",
        ),
        (
            with_base("[tensor]", CLOCK.replace("2_800_000_000", "true")),
            "tensor.clock is True, but must be a number above zero",
        ),
        (
            with_base("[tensor]", CLOCK.replace("2_800_000_000", "inf")),
            "tensor.clock is inf, but must be a number above zero",
        ),
        (
            with_base("[tensor]", CLOCK.replace("documented", "guessed")),
            "provenance 'guessed', but must have one of documented",
        ),
        (with_base("[tensor]", "clock = 3"), r"tensor.clock must be written as \{ value, unit, provenance, source \}"),
        (
            with_base(
                "[package]", 'hbm_efficiency = { value = 1.5, unit = "fraction", provenance = "assumed", source = "a" }'
            ),
            "package.hbm_efficiency is 1.5, but a fraction is at most 1",
        ),
        (
            with_base("[package]", 'lnc = { value = 3, unit = "cores", provenance = "assumed", source = "a" }'),
            r"package.lnc must divide package.cores \(2\)",
        ),
        (
            with_base("clock = 3"),
            "'clock' is not known; outside the sections stand base, title, aliases, instance, topology",
        ),
        (with_base('topology = "ring"'), "topology is 'ring', but must be switch or torus"),
        (with_base("title = 4"), "title must be a text in quotes"),
        ('base = "trainium9"', "base is 'trainium9', but must be one of a100-40gb"),
        ("[tensor]\n" + CLOCK, "title is missing"),
        (
            'title = "a"\ntopology = "torus"\n[tensor]\n' + CLOCK,
            "package.cores is missing; give it, or start from a shipped chip",
        ),
    ],
)
def test_a_mistake_is_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(NeuronprofError, match=message) as caught:
        load_chip(path)
    assert path in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_not_there_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(NeuronprofError, match="There is no chip file missing"):
        load_chip("missing.toml")
    with pytest.raises(NeuronprofError, match="cannot be read"):
        load_chip(str(tmp_path) + "/")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(NeuronprofError, match="is not a TOML file"):
        load_chip(str(tmp_path / "binary.toml"))
