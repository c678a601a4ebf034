"""What is summed of a trace once and kept in the user's cache folder, until the trace changes: levels of detail and analyses."""

import hashlib
import json
import mmap
import multiprocessing
import shutil
import threading
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuronprof.analyze import registry
from neuronprof.analyze.pyramid import build, store
from neuronprof.errors import NeuronprofError
from neuronprof.trace import cache, reader, schema

if TYPE_CHECKING:
    import pandas as pd

Tables = dict[str, dict[str, "pd.DataFrame"]]

_SMALL = 500_000  # events that are summed beside the server; more are summed in a process of their own
_IDENTITY = "trace.json"
_LEFT_OUT = "left_out.json"
_MOST_MAPPED = 600_000_000  # bytes of files, this program's own included
_OFTEN = 1.0  # seconds between two looks at the trace's files


class Kept:
    """What is kept of one trace. path: of the trace; folder: of what is kept of it.

    Everything is summed in the background when it is asked for first: `detail` and `tables` return None until it is there.

    Raises:
        NeuronprofError: the cache folder cannot be written.
    """

    def __init__(self, trace: reader.TraceFile) -> None:
        self.trace = trace
        self.path = trace.path.resolve()
        self.folder = cache.root() / hashlib.sha256(str(self.path).encode()).hexdigest()[:20]
        self._identity = identity(self.path)
        self._details: dict[int, store.Detail] = {}
        self._jobs: dict[str, _Job] = {}
        self._looked = 0.0
        self._changed = ""
        try:
            self._claim()
        except OSError as error:
            raise NeuronprofError(
                f"Cannot write {self.folder}: {error.strerror or error}; name another folder in XDG_CACHE_HOME."
            ) from error

    def _claim(self) -> None:
        """Throws away what was kept of the trace as it was before, and of traces that are gone."""
        _forget_lost()
        tables = sorted([*registry.ADVICE.tables, *(table for one in registry.ANALYZERS for table in one.tables)])
        text = json.dumps({"path": str(self.path), "identity": self._identity, "tables": tables})
        file = self.folder / _IDENTITY
        if not file.is_file() or file.read_text(encoding="utf-8") != text:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            file.write_text(text, encoding="utf-8")

    @property
    def changed(self) -> str:
        """A sentence if the trace is no longer the one that was opened; '' if it is."""
        if not self._changed and time.monotonic() - self._looked > _OFTEN:
            self._looked = time.monotonic()
            now = identity(self.path)
            if now != self._identity:
                what = "was written anew" if now else "was deleted"
                self._changed = f"{self.trace.path} {what} while it was open. Start neuronprof view again to see it."
        return self._changed

    @cached_property
    def ranks(self) -> list[int]:
        """The ranks that have events; rank 0 of a trace without any."""
        return self.trace.ranks or [0]

    def detail(self, rank: int) -> store.Detail | None:
        """A rank's levels of detail.

        Raises:
            NeuronprofError: they could not be summed.
        """
        if rank not in self._details:
            folder = self.folder / f"rank-{rank}"
            if not store.exists(folder):
                events = self.trace.num_events // max(1, len(self.ranks))
                self._job(f"rank {rank}", events, _build, self.path, rank, folder)
                return None
            self._details[rank] = store.load(folder)
        return self._details[rank]

    def ready(self) -> list[tuple[int, store.Detail]]:
        """The ranks whose levels of detail were looked at."""
        return sorted(self._details.items())

    def trim(self) -> None:
        """Gives back the memory of mapped levels of detail when this process holds much of them: a look here and there maps a lot."""
        if _mapped_memory() > _MOST_MAPPED:
            for detail in self._details.values():
                detail.release()

    def tables(self) -> Tables | None:
        """The results of all analyzers.

        Raises:
            NeuronprofError: the trace is damaged.
        """
        folder = self.folder / "tables"
        if folder.is_dir():
            return _load_tables(folder)
        self._job("tables", self.trace.num_events, _analyze, self.path, folder)
        return None

    @property
    def left_out(self) -> tuple[str, ...]:
        """Sentences on the analyses, empty among the tables, for which the trace is too large."""
        return tuple(json.loads((self.folder / "tables" / _LEFT_OUT).read_text(encoding="utf-8")))

    def progress(self, what: str) -> tuple[str, float]:
        """What is being done for `rank N` or `tables`, and the share of it that is done."""
        job = self._jobs.get(what)
        return job.progress() if job else ("", 0.0)

    def stop(self) -> None:
        """Ends what runs in the background."""
        for job in self._jobs.values():
            job.stop()

    def _job(self, name: str, events: int, work: Callable[..., None], *about: Any) -> None:
        if name not in self._jobs:
            self._jobs[name] = _Job(self.folder / f"{name.replace(' ', '-')}.progress", events > _SMALL, work, about)
        self._jobs[name].check()


class _Job:
    """Work in the background that leaves its progress, or the sentence that ended it, in a file; the last of `about` is what it makes."""

    def __init__(self, file: Path, apart: bool, work: Callable[..., None], about: tuple[Any, ...]) -> None:
        self._file, self._done = file, about[-1]
        file.unlink(missing_ok=True)
        start: Any = multiprocessing.get_context("spawn").Process if apart else threading.Thread
        self._worker = start(target=_work, args=(work, about, file), daemon=True)
        self._worker.start()

    def progress(self) -> tuple[str, float]:
        try:
            what, share = json.loads(self._file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return "reading events", 0.0
        return what, share

    def check(self) -> None:
        """Raises what ended the work before it was done."""
        what, share = self.progress()
        if share < 0:
            raise NeuronprofError(what)
        if not self._worker.is_alive() and not self._done.exists():
            raise NeuronprofError("What was done in the background was ended from outside, perhaps for lack of memory.")

    def stop(self) -> None:
        if not isinstance(self._worker, threading.Thread):
            self._worker.terminate()


def _mapped_memory() -> int:
    """Bytes of mapped files that stand in this process's memory; 0 where the system does not say."""
    try:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[2]
    except OSError:
        return 0
    return int(pages) * mmap.PAGESIZE


def _work(work: Callable[..., None], about: tuple[Any, ...], file: Path) -> None:
    said = 0.0

    def report(what: str, share: float) -> None:
        nonlocal said
        if time.monotonic() - said > 0.1 or share < 0:
            said = time.monotonic()
            file.with_suffix(".new").write_text(json.dumps((what, share)), encoding="utf-8")
            file.with_suffix(".new").replace(file)

    try:
        work(*about, report)
    except NeuronprofError as error:
        report(str(error), -1.0)
    except OSError as error:
        report(f"Cannot write {file.parent}: {error.strerror or error}.", -1.0)
    except KeyboardInterrupt:
        pass


def _build(path: Path, rank: int, folder: Path, report: Callable[[str, float], None]) -> None:
    build.build(reader.open_trace(path), rank, folder, report)


def _analyze(path: Path, folder: Path, report: Callable[[str, float], None]) -> None:
    left_out: dict[str, str] = {}
    results = registry.run(
        reader.open_trace(path), [*registry.ANALYZERS, registry.ADVICE], left_out=left_out,
        report=lambda done, every: report("analysing", done / max(1, every)),
    )  # fmt: skip
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    for group, tables in results.items():
        (partial / group).mkdir(parents=True)
        for name, table in tables.items():
            table.to_parquet(partial / group / f"{name}.parquet")
    (partial / _LEFT_OUT).write_text(json.dumps(list(left_out.values())), encoding="utf-8")
    partial.rename(folder)


def _load_tables(folder: Path) -> Tables:
    import pandas as pd

    return {
        group.name: {file.stem: pd.read_parquet(file) for file in sorted(group.iterdir())}
        for group in sorted(folder.iterdir())
        if group.is_dir()
    }


def identity(path: Path) -> list[Any]:
    """What tells a trace from another one at the same path: its files with size and time; empty if there is none."""
    try:
        files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
        stats = [(file.name, file.stat()) for file in files]
    except OSError:
        return []
    return [schema.VERSION, build.VERSION, [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]]


def _forget_lost() -> None:
    for file in cache.root().glob(f"*/{_IDENTITY}"):
        try:
            path = Path(json.loads(file.read_text(encoding="utf-8"))["path"])
        except (OSError, ValueError, KeyError):
            continue
        if not path.exists():
            shutil.rmtree(file.parent, ignore_errors=True)
