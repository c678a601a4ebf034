"""Where traces stand: a path, or Amazon S3, from where they are fetched into the user's cache folder and to where they are sent.

A store that speaks the protocol of S3 will do. Credentials come from where AWS's own tools take them: the environment, ~/.aws, or the
role of the instance or container. The region is AWS_REGION, AWS_DEFAULT_REGION, or that of the bucket; AWS_ENDPOINT_URL_S3 or
AWS_ENDPOINT_URL names another store.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from neuronprof.errors import NeuronprofError
from neuronprof.trace import cache, schema

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo, S3FileSystem

SCHEME = "s3://"
PART = "part-*.parquet"
_CHUNK = 8 << 20  # bytes
_CONNECTING = 10.0  # seconds; a store that cannot be reached is told, not waited for
_ANSWERING = 60.0

Report = Callable[[str, int, int], None]  # what is done, bytes so far, bytes in all


def is_remote(location: str | Path) -> bool:
    """Whether the location is one of S3, 's3://bucket/key'."""
    return str(location).startswith(SCHEME)


@contextmanager
def writable(location: str | Path) -> Iterator[Path]:
    """The path to write a trace to: the location itself, or one in the cache folder, from where the trace is sent after the block.

    Raises:
        NeuronprofError: the trace could not be sent; it stays in the cache folder, which the sentence names.
    """
    if not is_remote(location):
        yield Path(location)
        return
    place = _place(str(location))
    place.local.parent.mkdir(parents=True, exist_ok=True)
    yield place.local
    try:
        place.send()
    except OSError as error:
        raise NeuronprofError(
            f"The trace could not be sent to {location}: {_reason(error)}; it is kept in {place.local}."
        ) from error


def check(location: str | Path) -> None:
    """Asks for the folder or the bucket, so that a name or a permission that is wrong is told before a script has run.

    Raises:
        NeuronprofError: there is none, or it cannot be reached.
    """
    if not is_remote(location):
        if not Path(location).parent.is_dir():
            raise NeuronprofError(
                f"The folder {Path(location).parent} for the trace does not exist; create it or choose another path with -o."
            )
        return
    place = _place(str(location))
    try:
        [found] = place.store().get_file_info([place.bucket])
    except OSError as error:
        raise NeuronprofError(f"Cannot write to {location}: {_reason(error)}.") from error
    if not found.type:
        raise NeuronprofError(f"Cannot write to {location}: there is no bucket {place.bucket}; create it first.")


def fetched(location: str | Path, report: Report | None = None) -> Path:
    """The trace as a path: a local one as it is; of S3 one in the cache folder, where what has not changed is not fetched again.

    Raises:
        NeuronprofError: there is no such trace, or it cannot be read.
    """
    if not is_remote(location):
        return Path(location)
    place = _place(str(location))
    try:
        return place.fetch(report or (lambda _what, _done, _size: None))
    except OSError as error:
        raise NeuronprofError(f"Cannot read {location}: {_reason(error)}.") from error


@dataclass(frozen=True)
class _Place:
    """A trace in S3. key: of its one object, or what stands before those of its parts; local: where it is kept here."""

    bucket: str
    key: str
    local: Path

    def store(self) -> "S3FileSystem":
        """The file system of the bucket."""
        from pyarrow.fs import AwsStandardS3RetryStrategy, S3FileSystem, resolve_s3_region

        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        if not (region or endpoint):
            region = resolve_s3_region(self.bucket)
        return S3FileSystem(
            region=region,
            endpoint_override=endpoint,
            connect_timeout=_CONNECTING,
            request_timeout=_ANSWERING,
            retry_strategy=AwsStandardS3RetryStrategy(max_attempts=3),
        )

    def fetch(self, report: Report) -> Path:
        """Brings what is not here yet; removes what is no longer there."""
        store = self.store()
        objects = self._objects(store)
        if not objects:
            raise NeuronprofError(f"There is no trace {SCHEME}{self.bucket}/{self.key}; check the name.")
        missing = [o for o in objects if not _same(o, self._local(o))]
        size, done = sum(o.size for o in missing), 0
        _make_way(self.local, folder=self._is_folder(objects))
        for one in missing:
            for read in _copied(store, one, self._local(one)):
                done += read
                report(f"fetching {SCHEME}{self.bucket}/{self.key}", done, size)
        if self._is_folder(objects):
            for stale in set(self.local.glob("*.parquet")) - {self._local(o) for o in objects}:
                stale.unlink()
        return self.local

    def send(self) -> None:
        """Sends the trace that stands here; the part with the metadata last, then what was there of an older trace goes."""
        store = self.store()
        before = {o.path for o in self._objects(store, folder=True)}
        files = sorted(self.local.glob("*.parquet")) if self.local.is_dir() else [self.local]
        for file in files:
            path = self._remote(file)
            with file.open("rb") as source, store.open_output_stream(path) as target:
                while chunk := source.read(_CHUNK):
                    target.write(chunk)
            before.discard(path)
            [now] = store.get_file_info([path])
            _stamp(file, now)
        for path in sorted(before):
            store.delete_file(path)

    def _objects(self, store: "S3FileSystem", *, folder: bool = False) -> "Sequence[FileInfo]":
        """The object of the trace, or those of its parts. folder: both."""
        from pyarrow.fs import FileSelector

        path = f"{self.bucket}/{self.key}"
        [whole] = store.get_file_info([path])
        alone = [whole] if whole.is_file else []
        if alone and not folder:
            return alone
        inside = store.get_file_info(FileSelector(path, allow_not_found=True))
        parts = [o for o in inside if Path(o.path).match(PART) or o.base_name == schema.RANKS_FILE]
        return [*alone, *sorted(parts, key=lambda o: o.path)]

    def _is_folder(self, objects: "Sequence[FileInfo]") -> bool:
        return objects[0].path != f"{self.bucket}/{self.key}"

    def _local(self, one: "FileInfo") -> Path:
        return self.local if one.path == f"{self.bucket}/{self.key}" else self.local / one.base_name

    def _remote(self, file: Path) -> str:
        return f"{self.bucket}/{self.key}" if file == self.local else f"{self.bucket}/{self.key}/{file.name}"


def _place(location: str) -> _Place:
    """Bucket and key of a location, and where its copy stands.

    Raises:
        NeuronprofError: the location names no bucket or no object.
    """
    bucket, _, key = location.removeprefix(SCHEME).partition("/")
    names = [name for name in key.split("/") if name]
    if not bucket or not names or {".", ".."} & {bucket, *names}:
        raise NeuronprofError(f"{location} names no trace; write it like s3://bucket/folder/trace.parquet.")
    return _Place(bucket, "/".join(names), cache.root().joinpath("s3", bucket, *names))


def _copied(store: "S3FileSystem", one: "FileInfo", local: Path) -> Iterator[int]:
    """Fetches one object, under its name only when it is whole; yields the bytes of each piece."""
    local.parent.mkdir(parents=True, exist_ok=True)
    unfinished = local.with_name(f".{local.name}.{os.getpid()}")
    try:
        with store.open_input_stream(one.path) as source, unfinished.open("wb") as target:
            while chunk := source.read(_CHUNK):
                target.write(chunk)
                yield len(chunk)
        _stamp(unfinished, one)
        unfinished.replace(local)
    finally:
        unfinished.unlink(missing_ok=True)


def _make_way(local: Path, *, folder: bool) -> None:
    """Removes a trace of the other form: one file where a folder comes, or the other way round."""
    if folder and local.is_file():
        local.unlink()
    elif not folder and local.is_dir():
        for part in local.glob("*.parquet"):
            part.unlink()
        local.rmdir()


def _same(one: "FileInfo", local: Path) -> bool:
    if not local.is_file():
        return False
    found = local.stat()
    return (found.st_size, found.st_mtime_ns) == (one.size, one.mtime_ns)


def _stamp(local: Path, one: "FileInfo") -> None:
    """The object's time becomes the file's: so a copy is known to be of this object."""
    os.utime(local, ns=(one.mtime_ns, one.mtime_ns))


def _reason(error: OSError) -> str:
    """What AWS's library says, in one line."""
    return str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
