"""The server of the page: the notebooks under one address, for holders of its token.

Knows sockets, cookies and the notebooks' paths, nothing of their content nor of mlx. Imports marimo only when a server
starts.
"""

from __future__ import annotations

import argparse
import contextlib
import hmac
import ipaddress
import os
import secrets
import socket
import sys
import tempfile
import webbrowser
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..errors import QLoraError
from ..translations import LANGUAGES

NOTEBOOKS = {"": "train.py", "/compare": "compare.py", "/chat": "chat.py"}
"""Path of each notebook below the address."""
LOOPBACK, PORT = "127.0.0.1", 2718
SECONDS_TO_CLOSE = 1  # grace period for open connections when the server ends


def add_page_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that the notebooks read themselves."""
    parser.add_argument("--lang", choices=LANGUAGES, default="", help="language of the page (default: the browser's)")
    parser.add_argument("--read-only", action="store_true", help="a page to look at: nothing on it starts a job")


def add_server_arguments(parser: argparse.ArgumentParser) -> None:
    """Add flags of the server, which the notebooks never see."""
    parser.add_argument("--host", default=LOOPBACK, help=f"address to listen on (default: {LOOPBACK}, this machine)")
    parser.add_argument("--port", type=int, default=0, metavar="N", help=f"port (default: {PORT}, else a free one)")
    parser.add_argument("--no-browser", action="store_true", help="open no browser; the address is printed anyway")


def notebook_flags(argv: Sequence[str]) -> list[str]:
    """Return the flags in `argv` that are not the server's."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    add_server_arguments(parser)
    parser.add_argument("--json", action="store_true")
    return parser.parse_known_args(list(argv))[1]


served: tuple[str, ...] = ()
"""Paths of the notebooks beside each other, for their links; empty where `marimo run` opened one alone."""


def notebooks() -> Path:
    """Return the directory of the notebooks: inside the installed package, or beside it in the repository.

    Raises:
        QLoraError: there is none.
    """
    package = Path(__file__).parents[1]
    inside = package / "apps"
    for directory in (inside, package.parents[1] / "apps"):
        if (directory / NOTEBOOKS[""]).is_file():
            return directory
    raise QLoraError(f"{inside}: the page's notebooks are missing. Install the package again.")


# The door -------------------------------------------------------------------------------------------------------


class Door:
    """An ASGI application that admits holders of a token and refuses other sites' requests.

    It wraps another application, of which nothing answers before admission: no page, no file, no websocket.

    Args:
        app: the application behind it.
        token: the secret that the address carries as `?access_token=`.
        hosts: names by which the server may be called; empty: any.
        cookie: name of the cookie. Cookies do not know ports: each server wants a name of its own.
        answered: called after each request of an admitted browser.
    """

    def __init__(
        self, app: Any, token: str, *, hosts: Sequence[str], cookie: str, answered: Callable[[], object] = bool
    ) -> None:
        self.app, self.token, self.hosts, self.cookie, self.answered = app, token, hosts, cookie, answered
        self.pass_word = secrets.token_urlsafe(32)  # not the token, so that a leaked cookie does not reveal the address

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer, or hand the request on."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        from starlette.requests import HTTPConnection
        from starlette.responses import PlainTextResponse, RedirectResponse

        asked = HTTPConnection(scope)
        if self._foreign(asked):
            answer = PlainTextResponse("Asked by another site, or under another name: refused.\n", 403)
        elif _same(asked.cookies.get(self.cookie, ""), self.pass_word):
            await self.app(scope, receive, _unframed(send))
            self.answered()
            return
        elif scope["type"] == "http" and _same(asked.query_params.get("access_token", ""), self.token):
            answer = RedirectResponse(str(asked.url.remove_query_params("access_token").replace(scheme="", netloc="")))
            answer.set_cookie(self.cookie, self.pass_word, httponly=True, samesite="lax")
        else:
            answer = PlainTextResponse("Open the address that `qlora app` printed: it carries the token.\n", 401)
        answer.headers.update({"Cache-Control": "no-store", "Referrer-Policy": "no-referrer"})
        await self._reply(answer, scope, receive, send)

    def _foreign(self, asked: Any) -> bool:
        """Return whether a request comes under a name that only pretends to be ours, or from another site's page."""
        hosts, origins = asked.headers.getlist("host"), asked.headers.getlist("origin")
        if len(hosts) != 1 or len(origins) > 1:
            return True
        try:
            named = not self.hosts or (urlsplit(f"//{hosts[0]}").hostname or "") in self.hosts
            return not named or any(urlsplit(origin).netloc != hosts[0] for origin in origins)
        except ValueError:  # brackets that do not close, say
            return True

    @staticmethod
    async def _reply(answer: Any, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":  # closed before it was accepted: the browser sees 403
            await receive()
            await send({"type": "websocket.close", "code": 1008})
        else:
            await answer(scope, receive, send)


def _unframed(send: Any) -> Any:
    """Return a `send` that forbids other pages, other ports included, to frame this page and catch clicks."""

    async def sending(message: Any) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), (b"x-frame-options", b"SAMEORIGIN")]}
        await send(message)

    return sending


def _same(given: str, wanted: str) -> bool:
    return hmac.compare_digest(given.encode(), wanted.encode())


# The server -----------------------------------------------------------------------------------------------------


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket, on the usual port or any free one if none is requested.

    Raises:
        QLoraError: the address is none of this machine's, or taken.
    """
    problem: OSError | None = None
    for wanted in [port] if port else [PORT, 0]:
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(host, wanted, type=socket.SOCK_STREAM)[0]
            made = socket.socket(family, kind, protocol)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                made.bind(address)
                made.listen(128)
                return made
            except OSError:
                made.close()
                raise
        except (OSError, OverflowError, UnicodeError) as error:
            problem = error if isinstance(error, OSError) else OSError(str(error))
    reason = problem.strerror or str(problem) if problem else ""
    raise QLoraError(f"{host} port {port or PORT}: cannot listen there: {reason}. Give another --host or --port.")


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches an address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def address_of(listening: socket.socket) -> str:
    """Return where a browser on this machine finds a server; for one on all addresses, where others find it."""
    host, port = listening.getsockname()[:2]
    if ipaddress.ip_address(host).is_unspecified:
        host = _own_address() or socket.gethostname()
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _own_address() -> str:
    """Return this machine's first address in its network, if it has one."""
    import psutil

    addresses = (entry for entries in psutil.net_if_addrs().values() for entry in entries)
    return next((a.address for a in addresses if a.family == socket.AF_INET and not is_loopback(a.address)), "")


def build(token: str, *, hosts: Sequence[str], cookie: str, answered: Callable[[], object] = bool) -> Any:
    """Return the notebooks as one ASGI application behind a `Door`."""
    import marimo

    global served
    directory = notebooks()
    found = {path: directory / name for path, name in NOTEBOOKS.items() if (directory / name).is_file()}
    with contextlib.chdir(directory):  # marimo's own settings are those of the project that the notebooks lie in
        builder = marimo.create_asgi_app(quiet=True, include_code=False)
        for path, notebook in found.items():
            builder = builder.with_app(path=path, root=str(notebook))
        inner = builder.build()
    served = tuple(found)
    return Door(inner, token, hosts=hosts, cookie=cookie, answered=answered)


def serve(
    listening: socket.socket, host: str, token: str, flags: Sequence[str], answered: Callable[[], object] = bool
) -> None:
    """Serve the notebooks until Ctrl+C.

    Args:
        listening: an open socket.
        host: the requested address.
        token: the token in the address.
        flags: flags for the notebooks, as on their own command line.
        answered: called after each request of an admitted browser.
    """
    import uvicorn

    sys.argv = ["qlora", *flags]  # notebooks read their flags there; their kernels are threads of this process
    os.environ.setdefault("MARIMO_SKIP_UPDATE_CHECK", "1")
    hosts = [LOOPBACK, "localhost", "::1", host] if is_loopback(host) else []
    app = build(token, hosts=hosts, cookie=f"qlora_{listening.getsockname()[1]}", answered=answered)
    config = uvicorn.Config(app, access_log=False, log_level="error", lifespan="off",
                            timeout_graceful_shutdown=SECONDS_TO_CLOSE)  # fmt: skip
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn ends in order, then passes the signal on
        uvicorn.Server(config).run(sockets=[listening])


@contextlib.contextmanager
def opened_in_browser(address: str) -> Iterator[None]:
    """Open a browser through a file that only this user may read: everybody sees an address on a command line."""
    with tempfile.TemporaryDirectory(prefix="qlora-") as directory:  # mode 0700
        page = Path(directory) / "open.html"
        page.write_text(f'<!doctype html><meta http-equiv="refresh" content="0; url={address}">', encoding="utf-8")
        page.chmod(0o600)
        if sys.platform == "darwin" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
            webbrowser.open(page.as_uri())
        yield
