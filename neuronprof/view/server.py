"""The server behind `neuronprof view`: a Bokeh server on this machine that keeps the trace and sends pages what they show."""

import contextlib
import signal
import socket
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from neuronprof.analyze.kept import Kept
from neuronprof.errors import NeuronprofError
from neuronprof.view.answers import NOWHERE, Answers

if TYPE_CHECKING:
    from bokeh.document import Document
    from bokeh.server.server import Server

ADDRESS = "127.0.0.1"
_HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Content-Type": "application/octet-stream",
}


def serve(
    kept: Sequence[Kept],
    make: Callable[["Document"], None],
    *,
    port: int = 0,
    origins: Sequence[str] = (),
    ready: Callable[[str], None],
) -> None:
    """Serves a page until Ctrl-C.

    Args:
        kept: the traces.
        make: fills the document of a page that was opened.
        port: where to listen; 0: any that is free.
        origins: HOST:PORT of other origins whose pages may use this server, besides its own.
        ready: is told the address when the server listens.

    Raises:
        NeuronprofError: the port is taken.
    """
    server = start(kept, make, port=port, origins=origins)
    ready(f"http://{ADDRESS}:{server.port}/")
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with contextlib.suppress(KeyboardInterrupt):
            server.io_loop.start()
    finally:
        signal.signal(signal.SIGTERM, previous)
        for one in kept:
            one.stop()


def start(
    kept: Sequence[Kept], make: Callable[["Document"], None], *, port: int = 0, origins: Sequence[str] = ()
) -> "Server":
    """A server that listens; its io_loop is for the caller to run."""
    from bokeh.application import Application
    from bokeh.application.handlers import FunctionHandler
    from bokeh.server.server import Server

    try:
        port = port or _free_port()
        allowed = [f"{ADDRESS}:{port}", f"localhost:{port}", *origins]
        server = Server(
            {"/": Application(FunctionHandler(make))},
            address=ADDRESS,
            port=port,
            allow_websocket_origin=allowed,
            auth_provider=_own_hosts_only(allowed),
            extra_patterns=[(r"/ask/([a-z]+)", _handler(Answers(kept), allowed))],
        )
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


def _own_hosts_only(allowed: Sequence[str]) -> Any:
    """Refuses requests that were sent under another name: a page elsewhere whose name was made to mean this machine."""
    from bokeh.server.auth_provider import AuthProvider
    from tornado.web import HTTPError

    def user(handler: Any) -> str:
        if handler.request.host not in allowed:
            raise HTTPError(403, reason="This server answers only under its own name")
        return "user"

    class OwnHosts(AuthProvider):
        @property
        def get_user(self) -> Callable[[Any], str]:
            return user

        login_url = "/"  # nobody logs in; Bokeh wants one

    return OwnHosts()


def _ours(request: Any, allowed: Sequence[str]) -> bool:
    """Whether a request comes from a page of this server; what changes something has to say where it comes from."""
    origin = request.headers.get("Origin", "").partition("://")[2]
    return request.host in allowed and (origin in allowed if origin or request.method == "POST" else True)


def _handler(answers: Answers, allowed: Sequence[str]) -> type:
    from tornado.web import RequestHandler

    class Ask(RequestHandler):
        """Answers a page's questions, to nobody but pages of this server."""

        def prepare(self) -> None:
            if not _ours(self.request, allowed):
                self.send_error(403)

        def get(self, question: str) -> None:
            self._reply(*answers.answer(question, self._query()))

        def post(self, question: str) -> None:
            known = question == "notes"
            self._reply(*(answers.keep_notes(self._query(), self.request.body) if known else (NOWHERE, b"")))

        def _query(self) -> dict[str, str]:
            return {name: self.get_query_argument(name) for name in self.request.query_arguments}

        def _reply(self, status: int, body: bytes) -> None:
            self.set_status(status)
            for name, value in _HEADERS.items():
                self.set_header(name, value)
            self.finish(body)

    return Ask
