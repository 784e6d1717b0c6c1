"""A web server for one person: on the loopback address only, and only for who knows the token in its address."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Resource:
    """One thing that is served.

    Attributes:
        kind: Media type.
        parts: Its bytes, piece after piece; sent as they lie in memory.
        policy: Content security policy of a page.
    """

    kind: str
    parts: tuple[bytes | memoryview, ...]
    policy: str = "default-src 'none'"


class Server(ThreadingHTTPServer):
    """Serves the named resources below ``/TOKEN/``, and nothing else; files are never opened by a name in a request.

    Args:
        resources: Name to what is served under it; the name of the page itself is empty.
    """

    daemon_threads = True

    def __init__(self, resources: Mapping[str, Resource]) -> None:
        super().__init__((LOOPBACK, 0), _Handler)
        token = secrets.token_urlsafe(24)
        self.paths = {f"/{token}/{name}": resource for name, resource in resources.items()}
        port = self.server_address[1]
        self.hosts = {f"{LOOPBACK}:{port}", f"localhost:{port}"}
        self.address = f"http://{LOOPBACK}:{port}/{token}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that went away while something was sent to it is no error."""


class _Handler(BaseHTTPRequestHandler):
    server: Server
    server_version = "medcontext"
    sys_version = ""
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _answer(self, *, body: bool) -> None:
        # A page of another site could reach this address by a name that it makes point here, but not under this one.
        resource = self.server.paths.get(self.path) if self.headers.get("Host") in self.server.hosts else None
        if resource is None:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", resource.kind)
        self.send_header("Content-Length", str(sum(len(part) for part in resource.parts)))
        self.send_header("Content-Security-Policy", resource.policy)
        self.send_header("Cache-Control", "no-store")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        if body:
            for part in resource.parts:
                self.wfile.write(part)

    def log_message(self, *_: Any) -> None:
        """Nothing is printed for each request."""
