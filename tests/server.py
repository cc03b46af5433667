"""A file server that misbehaves as it is told, one answer after the other."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Server:
    """What it serves, and how: each answer takes the next word of `moods`, and is honest when there is none left."""

    content: bytes
    moods: list[str] = field(default_factory=list)
    tag: str | None = '"one"'
    date: str | None = None
    asked: list[dict[str, str]] = field(default_factory=list)
    """The headers of every request for the file."""
    paths: list[str] = field(default_factory=list)
    """And what it was called."""
    address: str = ""


@contextmanager
def serving(content: bytes, *moods: str, **options: Any) -> Iterator[Server]:
    """Serves until the end of the block."""
    state = Server(content, list(moods), **options)
    closing = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Tests are quiet."""

        def do_GET(self) -> None:
            mood, _, detail = (state.moods.pop(0) if state.moods else "honest").partition(":")
            state.asked.append(dict(self.headers))
            state.paths.append(self.path)
            {"refuse": self.refuse, "redirect": self.redirect}.get(mood, self.send_file)(mood, detail)

        def refuse(self, _: str, code: str) -> None:
            self.send_response(int(code))
            self.send_header("Content-Length", "0")
            self.end_headers()

        def redirect(self, _: str, target: str) -> None:
            self.send_response(302)
            self.send_header("Location", target or state.address)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def send_file(self, mood: str, detail: str) -> None:
            if mood == "change":
                state.content, state.tag = bytes(reversed(state.content)), '"two"'
            start = self.start(mood)
            body = state.content[start:]
            if start >= len(state.content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(state.content)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206 if start else 200)
            if start:
                first = start + int(detail) if mood == "misplace" else start
                self.send_header("Content-Range", f"bytes {first}-{len(state.content) - 1}/{len(state.content)}")
            for name, value in (("ETag", state.tag), ("Last-Modified", state.date)):
                if value:
                    self.send_header(name, value)
            if mood in ("sizeless", "lie"):
                self.close_connection = True
            if mood != "sizeless":
                self.send_header("Content-Length", detail if mood == "lie" else str(len(body)))
            self.end_headers()
            self.send_body(body, mood, detail)

        def start(self, mood: str) -> int:
            asked = self.headers.get("Range")
            fresh = self.headers.get("If-Range") in (state.tag, state.date) or mood == "stubborn"
            return int(asked.removeprefix("bytes=").rstrip("-")) if asked and fresh and mood != "whole" else 0

        def send_body(self, body: bytes, mood: str, detail: str) -> None:
            if mood in ("truncate", "stall"):
                body = body[: int(detail)]
                self.close_connection = True
            if mood == "drip":
                for byte in body:
                    self.wfile.write(bytes([byte]))
                    if closing.wait(0.05):
                        return
            self.wfile.write(body)
            self.wfile.flush()
            if mood == "stall":
                closing.wait(5)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  the other side hangs up, as it should
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    state.address = f"http://127.0.0.1:{server.server_port}/data.hdf5"
    try:
        yield state
    finally:
        closing.set()
        server.shutdown()
        server.server_close()
        thread.join()
