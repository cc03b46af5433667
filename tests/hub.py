"""A stand-in for Hugging Face's hub: repositories in memory, behind the part of its API that dtune asks for."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote


@dataclass
class Hub:
    """What it holds, and what it was asked."""

    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """Files by path, by user/name."""
    asked: list[tuple[str, str]] = field(default_factory=list)
    """Method and path of each request."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Of the last repository that was made."""
    token: str | None = None
    """Who may write; None: anybody."""
    address: str = ""

    def commit(self, name: str) -> str:
        """The revision: a hash of everything in it."""
        return hashlib.sha1(repr(sorted(self.repositories[name].items())).encode()).hexdigest()


@contextmanager
def standing_in(monkeypatch: Any, cache: Any) -> Iterator[Hub]:
    """Serves until the end of the block; huggingface_hub asks it, and keeps what it fetches in `cache`."""
    from huggingface_hub import constants
    from huggingface_hub.utils import close_session

    hub = Hub()

    class Handler(_Handler):
        state = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    hub.address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("HF_ENDPOINT", hub.address)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HF_TOKEN", "")
    for name, value in (("HF_HUB_CACHE", str(cache)), ("HF_HUB_DISABLE_XET", True), ("HF_HUB_DISABLE_TELEMETRY", True)):
        monkeypatch.setattr(constants, name, value)
    try:
        yield hub
    finally:
        close_session()
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: Hub

    def log_message(self, *_: object) -> None:
        """Tests are quiet."""

    def handle_any(self) -> None:
        path, length = unquote(self.path.partition("?")[0]), int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        self.state.asked.append((self.command, path))
        match [part for part in path.split("/") if part]:
            case ["api", "repos", "create"]:
                self.create(json.loads(body))
            case ["api", "validate-yaml"]:  # the head of the card
                self.answer(200, b'{"errors": [], "warnings": []}', {"Content-Type": "application/json"})
            case ["api", "models", user, name, "preupload", _]:
                files = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                         for file in json.loads(body)["files"]]  # fmt: skip
                self.answer_json({"files": files}, f"{user}/{name}")
            case ["api", "models", user, name, "commit", _]:
                self.take(f"{user}/{name}", body.splitlines())
            case ["api", "models", user, name, "tree", *_]:
                files = self.state.repositories.get(f"{user}/{name}", {}).items()
                listed = [{"type": "file", "path": path, "size": len(data), "oid": path} for path, data in files]
                self.answer_json(listed, f"{user}/{name}")
            case ["api", "models", user, name, *_]:
                self.describe(f"{user}/{name}")
            case [user, name, "resolve", _, *file]:
                self.send_file(f"{user}/{name}", "/".join(file))
            case _:
                self.refuse(404, "no such place")

    do_GET = do_POST = do_HEAD = handle_any  # noqa: N815

    def create(self, asked: dict[str, Any]) -> None:
        if self.state.token is not None and self.headers.get("Authorization") != f"Bearer {self.state.token}":
            self.refuse(401, "Invalid username or password.")
            return
        name = f"{asked['organization']}/{asked['name']}"
        self.state.settings = asked
        self.state.repositories.setdefault(name, {".gitattributes": b""})
        self.answer_json({"url": f"{self.state.address}/{name}", "name": name}, name)

    def take(self, name: str, lines: list[bytes]) -> None:
        for line in map(json.loads, lines):
            if line["key"] == "file":
                content = base64.b64decode(line["value"]["content"])
                self.state.repositories[name][line["value"]["path"]] = content
        oid = self.state.commit(name)
        address = f"{self.state.address}/{name}/commit/{oid}"
        self.answer_json({"success": True, "commitOid": oid, "commitUrl": address, "hookOutput": ""}, name)

    def describe(self, name: str) -> None:
        files = [{"rfilename": path} for path in self.state.repositories.get(name, {})]
        sha = self.state.commit(name) if files else ""
        self.answer_json({"_id": "1", "id": name, "modelId": name, "sha": sha, "siblings": files, "tags": []}, name)

    def send_file(self, name: str, path: str) -> None:
        data = self.state.repositories.get(name, {}).get(path)
        if data is None:
            self.refuse(404, "Entry not found", "EntryNotFound")
            return
        headers = {"X-Repo-Commit": self.state.commit(name), "ETag": f'"{hashlib.sha1(data).hexdigest()}"'}
        self.answer(200, data, headers)

    def answer_json(self, content: Any, name: str) -> None:
        if name in self.state.repositories:
            self.answer(200, json.dumps(content).encode(), {"Content-Type": "application/json"})
        else:
            self.refuse(404, "Repository not found", "RepoNotFound")

    def refuse(self, status: int, message: str, code: str = "") -> None:
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self.answer(status, json.dumps({"error": message}).encode(), headers)

    def answer(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
