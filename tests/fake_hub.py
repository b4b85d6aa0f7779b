"""A Hub on 127.0.0.1 that serves folders as repositories at one commit; a test can make it refuse or interrupt requests."""

import hashlib
import json
import os
import re
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
_API = re.compile(r"/api/(models|datasets|spaces)/([\w-]+/[\w-]+)(?:/auth-check|/(revision|tree|paths-info)/([^/]+))?.*")
_FILE = re.compile(r"/(?:(datasets)/)?([\w-]+/[\w-]+)/resolve/([^/]+)/(.+)")


class FakeHub:
    """The settings of the server: what it serves and how it fails. A test may change them at any time."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.repositories: dict[str, Path] = {}
        """The folder of each `models/owner/name` or `datasets/owner/name`."""
        self.revisions = {"main", "v1", COMMIT}
        self.token: str | None = None
        """The token that it requires, if any."""
        self.refusals: dict[str, tuple[int, dict[str, str]]] = {}
        """Status and headers of every answer to requests for the `api` or for `files`."""
        self.cuts: dict[str, int] = {}
        """How often to end the connection in the middle of a file, by the end of the file's path."""
        self.resets = False
        """Whether it then resets the connection instead of closing it."""
        self.private: set[str] = set()
        """The repositories that are private, by `owner/name`."""
        self.licences: dict[str, str] = {}
        """The licence that the card of a repository states, by `owner/name`."""
        self.asked: list[tuple[str, str, str | None]] = []
        """Method, path and range of every request."""

    def downloads(self) -> list[str]:
        return [path.rsplit("/resolve/")[-1].partition("/")[2] for method, path, _ in self.asked if method == "GET"]

    def point_here(self, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
        """Points the Hub's client in this process to this server, with a separate cache."""
        import datasets.config
        from huggingface_hub import constants

        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache / "datasets")
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", self.url)
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setattr(constants, "ENDPOINT", self.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", self.url + "/{repo_id}/resolve/{revision}/{filename}")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "no-token"))

    def environment(self, home: Path) -> dict[str, str]:
        """Returns the environment that points another process to this server."""
        return {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1"}


class Handler(BaseHTTPRequestHandler):
    hub: FakeHub

    def log_message(self, *_: Any) -> None: ...

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.asked.append((self.command, path, self.headers.get("Range")))
        api, file = _API.fullmatch(path), _FILE.fullmatch(path)
        kind = (api[1] if api else file and (file[1] or "models")) or ""
        folder = self.hub.repositories.get(f"{kind}/{(api or file or [''] * 3)[2]}")
        given, wanted = self.headers.get("Authorization"), self.hub.token
        if given and wanted and given != f"Bearer {wanted}":
            self._refuse(401, {"X-Error-Message": "Invalid credentials in Authorization header"})
        elif folder is None or (wanted and not given):
            self._refuse(404 if given else 401, {"X-Error-Code": "RepoNotFound"})
        elif refusal := self.hub.refusals.get("files" if file or path.endswith("/auth-check") else "api"):
            self._refuse(*refusal)
        elif (revision := (api[4] or "main") if api else file[3] if file else "") not in self.hub.revisions:
            self._refuse(404, {"X-Error-Code": "RevisionNotFound"})
        elif api:
            self._say(api, folder, revision)
        elif file:
            self._send(folder / file[4])

    def _refuse(self, status: int, headers: dict[str, str]) -> None:
        """Refuses a request, and repeats its token, as a careless server may do."""
        self._reply(status, f"not for {self.headers.get('Authorization')}".encode(), {"Content-Type": "text/plain"} | headers)

    def _reply(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json", "Content-Length": str(len(content))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _say(self, api: "re.Match[str]", folder: Path, revision: str) -> None:
        """Answers a request about a repository: its description, or its list of files."""
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        rows = [
            {"type": "file", "path": str(path.relative_to(folder)), "size": path.stat().st_size, "oid": _etag(path)}
            for path in files
        ]
        said: Any = {
            "id": api[2],
            "sha": COMMIT,
            "private": api[2] in self.hub.private,
            "siblings": [{"rfilename": row["path"]} for row in rows],
            "tags": [],
        }
        if api[2] in self.hub.licences:
            said["cardData"] = {"license": self.hub.licences[api[2]]}
        said["gated"] = "auto" if "GatedRepo" in self.hub.refusals.get("files", (0, {}))[1].values() else False
        if api[3] == "tree":
            said = rows
        elif api[3] == "paths-info":
            asked = set(json.loads(self.body)["paths"])
            folders = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_dir()}
            said = [row for row in rows if row["path"] in asked]
            said += [{"type": "directory", "path": path, "oid": COMMIT} for path in folders & asked]
        self._reply(200, json.dumps(said).encode(), {})

    def _send(self, path: Path) -> None:
        if not path.is_file():
            self._refuse(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            return
        content, headers = path.read_bytes(), {"ETag": f'"{_etag(path)}"', "X-Repo-Commit": COMMIT}
        status, size = 200, len(content)
        if span := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            end = min(int(span[2] or size - 1), size - 1)
            content, status = content[int(span[1]) : end + 1], 206
            headers["Content-Range"] = f"bytes {span[1]}-{end}/{size}"
        ending = next((ending for ending, left in self.hub.cuts.items() if left and str(path).endswith(ending)), None)
        if ending is None or self.command == "HEAD":
            self._reply(status, content, headers | {"Content-Type": "application/octet-stream"})
            return
        self.hub.cuts[ending] -= 1
        self._reply(status, content[: len(content) // 2], headers | {"Content-Length": str(len(content))})
        self.close_connection = True
        if self.hub.resets:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(self.connection.detach())  # a shutdown would end the stream before the reset


def _etag(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()


@contextmanager
def serving(handler: type[Handler] = Handler) -> Iterator[FakeHub]:
    """Serves on a free port while the block runs."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (handler,), {}))
    server.daemon_threads = True
    hub = FakeHub(f"http://127.0.0.1:{server.server_port}")
    server.RequestHandlerClass.hub = hub  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
