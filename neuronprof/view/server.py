"""The server behind `neuronprof view`: a Bokeh server on this machine that keeps the trace and sends pages what they show.

A page is the same for whoever opens it and keeps its own state: the server holds nothing for it, and two tabs are no more than one.
"""

import contextlib
import signal
import socket
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from neuronprof.analyze.kept import Kept
from neuronprof.errors import NeuronprofError
from neuronprof.view.answers import NOWHERE, Answers

if TYPE_CHECKING:
    from bokeh.server.server import Server

ADDRESS = "127.0.0.1"
_HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    # BokehJS compiles the callbacks that come with the page; nothing may be loaded from or sent to anywhere else.
    "Content-Security-Policy": "default-src 'self' 'unsafe-inline' 'unsafe-eval'; img-src 'self' data: blob:; frame-ancestors 'none'",
}


def serve(
    kept: Sequence[Kept],
    page: str,
    *,
    port: int = 0,
    origins: Sequence[str] = (),
    ready: Callable[[str], None],
) -> None:
    """Serves a page until Ctrl-C.

    Args:
        kept: the traces.
        page: what is shown of them.
        port: where to listen; 0: any that is free.
        origins: HOST:PORT of other origins whose pages may use this server, besides its own.
        ready: is told the address when the server listens.

    Raises:
        NeuronprofError: the port is taken.
    """
    server = start(kept, page, port=port, origins=origins)
    ready(f"http://{ADDRESS}:{server.port}/")
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with contextlib.suppress(KeyboardInterrupt):
            server.io_loop.start()
    finally:
        signal.signal(signal.SIGTERM, previous)
        for one in kept:
            one.stop()


def start(kept: Sequence[Kept], page: str, *, port: int = 0, origins: Sequence[str] = ()) -> "Server":
    """A server that listens; its io_loop is for the caller to run."""
    from bokeh.server.server import Server

    try:
        port = port or _free_port()
        allowed = [f"{ADDRESS}:{port}", f"localhost:{port}", *origins]
        patterns = [(r"/", _page_handler(page, allowed)), (r"/ask/([a-z]+)", _handler(Answers(kept), allowed))]
        server = Server({}, address=ADDRESS, port=port, use_index=False, extra_patterns=patterns)
    except OSError as error:
        raise NeuronprofError(
            f"Cannot listen on port {port}: {error.strerror or error}; choose another with --port."
        ) from error
    server.start()
    return server


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((ADDRESS, 0))
        port: int = probe.getsockname()[1]
    return port


def _ours(request: Any, allowed: Sequence[str]) -> bool:
    """Whether a request comes from a page of this server; what changes something has to say where it comes from."""
    origin = request.headers.get("Origin", "").partition("://")[2]
    return request.host in allowed and (origin in allowed if origin or request.method == "POST" else True)


def _base(allowed: Sequence[str]) -> type[Any]:
    from tornado.web import RequestHandler

    class Own(RequestHandler):
        """Answers nobody but pages of this server: not a page elsewhere whose name was made to mean this machine."""

        def set_default_headers(self) -> None:
            for name, value in _HEADERS.items():
                self.set_header(name, value)

        def prepare(self) -> None:
            if not _ours(self.request, allowed):
                self.send_error(403)

    return Own


def _page_handler(page: str, allowed: Sequence[str]) -> type[Any]:
    class Page(_base(allowed)):  # type: ignore[misc]
        """The page."""

        def get(self) -> None:
            self.finish(page)

    return Page


def _handler(answers: Answers, allowed: Sequence[str]) -> type[Any]:
    class Ask(_base(allowed)):  # type: ignore[misc]
        """Answers a page's questions."""

        def _log(self) -> None:
            """Keeps refusals out of the terminal: the page shows the sentence that it got."""

        def get(self, question: str) -> None:
            self._reply(*answers.answer(question, self._query()))

        def post(self, question: str) -> None:
            known = question == "notes"
            self._reply(*(answers.keep_notes(self._query(), self.request.body) if known else (NOWHERE, b"")))

        def _query(self) -> dict[str, str]:
            return {name: self.get_query_argument(name) for name in self.request.query_arguments}

        def _reply(self, status: int, body: bytes) -> None:
            self.set_status(status)
            self.set_header("Content-Type", "application/octet-stream")
            self.finish(body)

    return Ask
