"""Files that appear complete or not at all."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from neuronprof.errors import NeuronprofError


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A name to write under, which becomes `path` when the block ends well, and vanishes otherwise.

    Raises:
        NeuronprofError: it cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        _remove(partial)
        yield partial
        partial.replace(path)
    except OSError as error:
        raise NeuronprofError(
            f"Cannot write {path}: {error.strerror or error}; choose another path with -o."
        ) from error
    finally:
        with suppress(OSError):  # where nothing can be written, nothing is there to be removed
            _remove(partial)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
