"""Where analyzers run: in this process, in several on this machine, or on a Dask cluster. The results are the same."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from neuronprof.analyze.analyzer import Mapper
from neuronprof.errors import NeuronprofError

if TYPE_CHECKING:
    from distributed import Client

_PATIENCE = 10  # seconds until a scheduler that does not answer is given up
_RETRIES = 3  # a worker that dies takes its task with it; another does it again


@contextmanager
def on(workers: int = 1, dask: str | None = None) -> Iterator[Mapper]:
    """What runs the analyzers, for a while.

    Args:
        workers: processes of this machine; 1: this one alone.
        dask: address of a Dask scheduler, tcp://host:8786, whose workers see the trace under the same path; takes the place of `workers`.

    Raises:
        NeuronprofError: Dask is not installed, or no scheduler answers.
    """
    if dask:
        with _connected(dask) as client:
            yield mapper(client)
    elif workers > 1:
        from concurrent.futures import ProcessPoolExecutor
        from multiprocessing import get_context

        with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
            yield pool.map
    else:
        yield map


def mapper(client: "Client") -> Mapper:
    """A mapper that runs the tasks on the client's cluster."""

    def run(function: Callable[[Any], Any], tasks: Sequence[Any]) -> list[Any]:
        found: list[Any] = client.gather(client.map(function, tasks, pure=False, retries=_RETRIES))
        return found

    return run


@contextmanager
def _connected(address: str) -> Iterator["Client"]:
    try:
        from distributed import Client
    except ImportError as error:
        raise NeuronprofError("--dask needs Dask; install it with pip install 'neuronprof[dask]'.") from error
    try:
        client = Client(address, timeout=_PATIENCE)
    except (OSError, ValueError, TimeoutError) as error:
        raise NeuronprofError(
            f"No Dask scheduler answers at {address}; start one with dask scheduler, or check the address."
        ) from error
    with client:
        yield client
