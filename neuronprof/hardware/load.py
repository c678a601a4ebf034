"""Chips from TOML: the shipped ones by name, a user's own by path; every mistake in a file is one sentence."""

import difflib
import tomllib
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any

from neuronprof.errors import NeuronprofError
from neuronprof.hardware.spec import Chip, Kernels, Quantity
from neuronprof.terms import Provenance

_FOLDER = Path(__file__).parent
_TOPOLOGIES = ("switch", "torus")
_TEXTS = ("base", "title", "aliases", "instance", "topology")
_SECTIONS: dict[str, dict[str, Field[Any]]] = {
    f.name: {g.name: g for g in fields(f.type)}
    for f in fields(Chip)
    if isinstance(f.type, type) and is_dataclass(f.type)
}
_OPTIONAL = {"kernels": Kernels}
_SECTIONS |= {name: {f.name: f for f in fields(section)} for name, section in _OPTIONAL.items()}
_LARGEST = 1e30  # beyond any number of a machine, and out of the way of infinity
_ENTRIES = ("value", "unit", "provenance", "source")

Sections = dict[str, dict[str, Quantity]]


def chip_names() -> list[str]:
    """The shipped chips, sorted."""
    return sorted(path.stem for path in _FOLDER.glob("*.toml"))


def load_chip(name_or_path: str) -> Chip:
    """A shipped chip by name or alias, or the chip that a TOML file describes.

    A file may start from a shipped chip with `base = "trainium4"` and give only what differs. The aliases of a shipped chip stand in its
    file, separated by spaces; the instance that has it is one of its names too.

    Raises:
        NeuronprofError: no such chip or file, or a mistake in the file, named with its field.
    """
    if name_or_path in chip_names():
        return _chip(_FOLDER / f"{name_or_path}.toml")
    if name_or_path.endswith(".toml") or "/" in name_or_path:
        return _chip(Path(name_or_path))
    for name in chip_names():
        texts = tomllib.loads((_FOLDER / f"{name}.toml").read_text())
        if name_or_path in (*texts.get("aliases", "").split(), texts.get("instance")):
            return load_chip(name)
    raise NeuronprofError(
        f"There is no chip '{name_or_path}'{_suggestion(name_or_path, chip_names())}; "
        f"choose one of {', '.join(chip_names())}, or give the path of a .toml file."
    )


def _chip(path: Path) -> Chip:
    head, given = _read(path)
    sections = given
    if "base" in head:
        base = _base(head["base"], path)
        head = {"title": base.title, "topology": base.topology, **head}
        inherited = {s: {f: base.quantities.get(f"{s}.{f}") for f in names} for s, names in _SECTIONS.items()}
        sections = {
            s: {f: q for f, q in known.items() if q} | given.get(s, {})
            for s, known in inherited.items()
            if s in given or s not in _OPTIONAL or getattr(base, s)
        }
    _check_complete(head, sections, path)
    built = {
        f.name: f.type(**_values(sections[f.name])) for f in fields(Chip) if f.name in _SECTIONS and callable(f.type)
    }
    built |= {name: section(**_values(sections[name])) for name, section in _OPTIONAL.items() if name in sections}
    chip = Chip(
        name=path.stem,
        title=head["title"],
        topology=head["topology"],
        instance=head.get("instance", ""),
        quantities={
            f"{s}.{f}": q for s, names in _SECTIONS.items() for f in names if (q := sections.get(s, {}).get(f))
        },
        **built,
    )
    if chip.package.cores % chip.package.lnc:
        raise NeuronprofError(f"{path}: package.lnc must divide package.cores ({chip.package.cores:g}).")
    return chip


def _values(section: dict[str, Quantity]) -> dict[str, float]:
    return {name: quantity.value for name, quantity in section.items()}


def _base(name: Any, path: Path) -> Chip:
    if name not in chip_names() or (name == path.stem and path.parent == _FOLDER):
        raise NeuronprofError(f"{path}: base is '{name}', but must be one of {', '.join(chip_names())}.")
    return load_chip(name)


def _read(path: Path) -> tuple[dict[str, str], Sections]:
    """The texts on top of a file and its sections."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NeuronprofError(f"There is no chip file {path}; shipped chips are {', '.join(chip_names())}.") from None
    except OSError as error:
        raise NeuronprofError(f"The chip file {path} cannot be read: {error.strerror}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise NeuronprofError(f"{path} is not a TOML file: {error}.") from None
    head: dict[str, str] = {}
    sections: Sections = {}
    for name, entry in data.items():
        if isinstance(entry, dict):
            sections[name] = _section(name, entry, path)
        else:
            head[name] = _text(name, entry, path)
    return head, sections


def _text(name: str, entry: Any, path: Path) -> str:
    if name not in _TEXTS:
        raise NeuronprofError(f"{path}: '{name}' is not known; outside the sections stand {', '.join(_TEXTS)}.")
    if not isinstance(entry, str) or not entry.strip():
        raise NeuronprofError(f"{path}: {name} must be a text in quotes.")
    if name == "topology" and entry not in _TOPOLOGIES:
        raise NeuronprofError(f"{path}: topology is '{entry}', but must be {' or '.join(_TOPOLOGIES)}.")
    return entry


def _section(section: str, entries: dict[str, Any], path: Path) -> dict[str, Quantity]:
    if section not in _SECTIONS:
        raise NeuronprofError(
            f"{path}: there is no section [{section}]{_suggestion(section, list(_SECTIONS))}; known are {', '.join(_SECTIONS)}."
        )
    known = _SECTIONS[section]
    for name in entries:
        if name not in known:
            raise NeuronprofError(
                f"{path}: [{section}] has no field '{name}'{_suggestion(name, list(known))}; it has {', '.join(known)}."
            )
    return {
        name: _quantity(f"{section}.{name}", known[name].metadata["unit"], entry, path)
        for name, entry in entries.items()
    }


def _quantity(name: str, unit: str, entry: Any, path: Path) -> Quantity:
    if not isinstance(entry, dict) or set(entry) - set(_ENTRIES):
        raise NeuronprofError(
            f"{path}: {name} must be written as {{ value, unit, provenance, source }} and nothing else."
        )
    for part in _ENTRIES:
        if part not in entry or (isinstance(entry[part], str) and not entry[part].strip()):
            raise NeuronprofError(
                f"{path}: {name} has no {part}; every number needs value, unit, provenance and source."
            )
    if entry["unit"] != unit:
        raise NeuronprofError(f"{path}: {name} is given in '{entry['unit']}', but must be in '{unit}'.")
    if entry["provenance"] not in tuple(Provenance):
        raise NeuronprofError(
            f"{path}: {name} has the provenance '{entry['provenance']}', but must have one of {', '.join(Provenance)}."
        )
    if not isinstance(entry["source"], str):
        raise NeuronprofError(f"{path}: {name} has a source that is not a text.")
    return Quantity(_number(name, unit, entry["value"], path), unit, Provenance(entry["provenance"]), entry["source"])


def _number(name: str, unit: str, value: Any, path: Path) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < _LARGEST:
        raise NeuronprofError(f"{path}: {name} is {value!r}, but must be a number above zero.")
    if unit == "fraction" and value > 1:
        raise NeuronprofError(f"{path}: {name} is {value!r}, but a fraction is at most 1.")
    return float(value)


def _check_complete(head: dict[str, str], sections: Sections, path: Path) -> None:
    for name in ("title", "topology"):
        if name not in head:
            raise NeuronprofError(f"{path}: {name} is missing.")
    for section, names in _SECTIONS.items():
        for name, declared in names.items() if section in sections or section not in _OPTIONAL else ():
            if declared.default is MISSING and name not in sections.get(section, {}):
                raise NeuronprofError(
                    f'{path}: {section}.{name} is missing; give it, or start from a shipped chip with base = "trainium4".'
                )


def _suggestion(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" (did you mean '{close[0]}'?)" if close else ""
