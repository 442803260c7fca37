"""The page and what it asks for, over HTTP, by the standard library's server.

| request | answer |
| --- | --- |
| GET / and the page's own files | the page |
| GET /api/settings | what can be chosen: `Painter.settings` |
| GET /api/pictures | the newest pictures of the folder: `Painter.pictures` |
| GET /pictures/NAME.png | one of them |
| POST /api/paint, an `Order` as JSON | lines of JSON, see `Painter.order`; who closes the connection stops the order |

Of this machine's browsers only the page itself is answered: a request must name the server by an address of its own,
and must not come from another site's page. So it is with `--host 0.0.0.0`, but for everyone who reaches the machine.
"""

import ipaddress
import json
import queue
import select
import socket
import sys
import threading
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any
from urllib.parse import unquote, urlsplit

from miniai.base.errors import UserError
from miniai.ui.painter import PICTURE_NAME, Order, Painter, in_words

PAGE = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
}
MAX_BYTES = 64 * 2**20  # of an order, which may hold two pictures
SECONDS_OF_SILENCE = 60  # after which whoever sends nothing is left
SECONDS_BETWEEN_LOOKS = 0.5  # whether who ordered a picture is still there
POLICY = "default-src 'self'; img-src 'self' data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


class RefusedError(Exception):
    """A request that is not answered, with its HTTP status."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


class PageServer(ThreadingHTTPServer):
    """Answers on `host` and `port` (0: a free one), for a `painter` that it is given before `serve_forever`.

    Closed, it reads no more, and returns when what it was answering is told: a thread that outlives Python's own end
    aborts the process if it is the one that lets go of the model. Raises UserError if the address is not to be had."""

    daemon_threads = False  # so that closing waits for them
    painter: Painter

    def __init__(self, host: str = "127.0.0.1", port: int = 7860) -> None:
        self._connections: set[socket.socket] = set()
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, port), PageHandler)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise UserError(f"cannot listen on {host}, port {port}: {reason}; choose another with --port") from error

    @property
    def address(self) -> str:
        """What to type into a browser."""
        host, port = self.server_address[:2]
        return f"http://{f'[{host!s}]' if ':' in str(host) else host!s}:{port}/"

    def is_named(self, host: str) -> bool:
        """Whether a request for `host` ("name:port", or "name" alone) means this server, and not a site whose name
        server lied: it names the machine by a number, or by its own name. (Ports differ where they are forwarded.)"""
        with suppress(ValueError):
            name = urlsplit(f"//{host}").hostname or ""
            if name in ("localhost", socket.gethostname().lower()):
                return True
            own = ipaddress.ip_address(str(self.server_address[0]))
            asked = ipaddress.ip_address(name)
            return own.is_unspecified or asked == own or (own.is_loopback and asked.is_loopback)
        return False

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def server_close(self) -> None:
        for connection in list(self._connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RD)  # browsers keep them open, and its thread waits for more
        super().server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that goes away is no error."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class PageHandler(BaseHTTPRequestHandler):
    """One connection of a browser."""

    server: PageServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "miniai", ""
    timeout = SECONDS_OF_SILENCE

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 (its name there)
        """Says nothing: the terminal is for errors."""

    def _answer(self, method: Any) -> None:
        try:
            host = self.headers.get("Host", "")
            if not self.server.is_named(host):
                raise RefusedError(HTTPStatus.FORBIDDEN, f"this is not {host}: open {self.server.address}")
            origin = self.headers.get("Origin")
            path = self._path()
            site = self.headers.get("Sec-Fetch-Site", "none")  # which browsers send, and no page can change
            foreign = site not in ("none", "same-origin") and path != "/"  # to open it by a link is no harm
            if foreign or (origin is not None and origin != f"http://{host}"):
                raise RefusedError(HTTPStatus.FORBIDDEN, "only the page itself may ask")
            method(path)
        except RefusedError as refusal:
            self.close_connection = True  # what is left of its body is not the next request
            self._json({"message": str(refusal)}, refusal.status)
        except (BrokenPipeError, ConnectionResetError, TimeoutError):
            self.close_connection = True

    def _path(self) -> str:
        try:
            return urlsplit(self.path).path
        except ValueError:
            raise RefusedError(HTTPStatus.BAD_REQUEST, "this is no address") from None

    def _get(self, path: str) -> None:
        painter = self.server.painter
        if path in PAGE:
            name, kind = PAGE[path]
            self._send(files("miniai").joinpath("ui", "page", name).read_bytes(), kind)
        elif path == "/api/settings":
            self._json(painter.settings())
        elif path == "/api/pictures":
            self._json(painter.pictures())
        elif path.startswith("/pictures/"):
            self._send(self._picture(unquote(path.removeprefix("/pictures/"))), "image/png")
        else:
            raise RefusedError(HTTPStatus.NOT_FOUND, f"there is no {path}")

    def _picture(self, name: str) -> bytes:
        try:
            if not PICTURE_NAME.fullmatch(name):
                raise FileNotFoundError
            return (self.server.painter.out / name).read_bytes()
        except OSError:
            raise RefusedError(HTTPStatus.NOT_FOUND, f"there is no picture {name}") from None

    def _post(self, path: str) -> None:
        if path != "/api/paint":
            raise RefusedError(HTTPStatus.NOT_FOUND, f"there is no {path}")
        try:
            order = Order.from_json(self._body())
        except UserError as error:
            raise RefusedError(HTTPStatus.BAD_REQUEST, in_words(error)) from error
        self.close_connection = True  # the answer ends where the connection does
        self._head(HTTPStatus.OK, "application/x-ndjson", None)
        news: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        stop = threading.Event()

        def work() -> None:
            try:
                self.server.painter.order(order, news.put, stop)
            except Exception as error:  # a fault of the program's own: its traceback goes to the terminal
                news.put({"event": "error", "message": f"{type(error).__name__}: {error}"})
                raise
            finally:
                news.put(None)

        worker = threading.Thread(target=work)
        worker.start()
        try:
            while (one := self._next(news)) is not None:
                self.wfile.write(json.dumps(one).encode() + b"\n")
                self.wfile.flush()
        except OSError:
            stop.set()
        worker.join()

    def _next(self, news: "queue.SimpleQueue[dict[str, Any] | None]") -> dict[str, Any] | None:
        """What is told next. Raises ConnectionError if nobody is there any more to hear it."""
        while True:
            with suppress(queue.Empty):
                return news.get(timeout=SECONDS_BETWEEN_LOOKS)
            ready, _, _ = select.select([self.connection], [], [], 0)
            if ready and not self.connection.recv(1, socket.MSG_PEEK):
                raise ConnectionError

    def _body(self) -> Any:
        """The JSON that was sent."""
        if self.headers.get_content_type() != "application/json":
            raise RefusedError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "send an order as application/json")
        length = self.headers.get("Content-Length", "")
        if not length.isascii() or not length.isdigit() or len(length) > 12:
            raise RefusedError(HTTPStatus.LENGTH_REQUIRED, "say how long the order is: Content-Length")
        if int(length) > MAX_BYTES:
            raise RefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"an order has at most {MAX_BYTES >> 20} MB")
        try:
            return json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError):
            raise RefusedError(HTTPStatus.BAD_REQUEST, "the order is no JSON") from None

    def _json(self, value: Any, status: HTTPStatus = HTTPStatus.OK) -> None:
        self._send(json.dumps(value).encode(), "application/json", status)

    def _send(self, content: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK) -> None:
        self._head(status, kind, len(content))
        self.wfile.write(content)

    def _head(self, status: HTTPStatus, kind: str, length: int | None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        if length is not None:
            self.send_header("Content-Length", str(length))
        if self.close_connection:
            self.send_header("Connection", "close")
        for name, value in (
            ("Content-Security-Policy", POLICY),
            ("X-Content-Type-Options", "nosniff"),
            ("Referrer-Policy", "no-referrer"),
            ("Cross-Origin-Resource-Policy", "same-origin"),
            ("Cache-Control", "private, max-age=86400" if kind == "image/png" else "no-store"),
        ):
            self.send_header(name, value)
        self.end_headers()
