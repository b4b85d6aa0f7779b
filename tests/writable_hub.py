"""A Hub on 127.0.0.1 that takes uploads: creates repositories, receives large files by LFS, and commits."""

import base64
import hashlib
import json
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from ruamel.yaml import YAML

from tests.fake_hub import COMMIT, FakeHub, Handler, serving

LICENCES = {"apache-2.0", "cc-by-4.0", "cc-by-sa-4.0", "creativeml-openrail-m", "mit", "openrail++", "other", "unknown"}
_REPO = r"/api/(models|datasets|spaces)/([\w.-]+/[\w.-]+)"


class Uploads:
    """What was uploaded, and how the next uploads fail."""

    def __init__(self, hub: FakeHub, room: Path) -> None:
        self.hub, self.room = hub, room
        self.owner = "someone"
        """The only account that the token may write to."""
        self.stored: dict[str, bytes] = {}
        """The content of large files, by sha256."""
        self.received: list[str] = []
        """The sha256 of each large file, in the order in which it was sent."""
        self.refuses: set[str] = set()
        """The sha256 of large files that it does not take."""
        self.commits: list[list[str]] = []
        """What each commit added and deleted."""

    def files(self, name: str) -> dict[str, bytes]:
        folder = self.hub.repositories[f"models/{name}"]
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    def wrote(self) -> list[str]:
        """Returns the requests that changed something, or began to."""
        paths = [(method, path) for method, path, _ in self.hub.asked]
        return [path for method, path in paths if method == "PUT" or (method == "POST" and "validate-yaml" not in path)]


class _Receiving(Handler):
    uploads: Uploads

    def do_PUT(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if self.command == "GET" and not path.endswith("/auth-check/write"):
            super()._answer()
            return
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            self.body = b"".join(self._chunks())
        self.hub.asked.append((self.command, path, None))
        if path.startswith("/lfs/"):
            self._store(path.removeprefix("/lfs/"))
            return
        if path == "/api/validate-yaml":
            self._validate(json.loads(self.body)["content"])
            return
        if self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            self._refuse(401, {})
            return
        if refusal := self.hub.refusals.get("uploads"):
            self._refuse(*refusal)
            return
        self._write(path)

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def _json(self, said: Any) -> None:
        self._reply(200, json.dumps(said).encode(), {})

    def _write(self, path: str) -> None:
        if path == "/api/repos/create":
            self._create(json.loads(self.body))
        elif found := re.fullmatch(rf"{_REPO}/auth-check/write", path):
            if found[2].split("/")[0] != self.uploads.owner:
                self._refuse(403, {})
            elif f"{found[1]}/{found[2]}" not in self.hub.repositories:
                self._refuse(404, {"X-Error-Code": "RepoNotFound"})
            else:
                self._json({})
        elif found := re.fullmatch(rf"{_REPO}/preupload/main", path):
            self._json({"files": [self._mode(found[2], file) for file in json.loads(self.body)["files"]]})
        elif path.endswith(".git/info/lfs/objects/batch"):
            self._json({"transfer": "basic", "objects": [self._place(one) for one in json.loads(self.body)["objects"]]})
        elif found := re.fullmatch(rf"{_REPO}/commit/main", path):
            self._commit(found[2], [json.loads(line) for line in self.body.splitlines()])
        else:
            self._refuse(404, {})

    def _create(self, asked: dict[str, Any]) -> None:
        if asked["organization"] != self.uploads.owner:
            self._refuse(403, {})
            return
        name = f"{asked['organization']}/{asked['name']}"
        if f"models/{name}" in self.hub.repositories:
            self._reply(409, json.dumps({"url": f"{self.hub.url}/{name}"}).encode(), {})
            return
        folder = Path(tempfile.mkdtemp(dir=self.uploads.room))
        (folder / ".gitattributes").write_text("*.safetensors filter=lfs\n")
        self.hub.repositories[f"models/{name}"] = folder
        if asked.get("visibility") == "private":
            self.hub.private.add(name)
        self._json({"url": f"{self.hub.url}/{name}"})

    def _mode(self, name: str, file: dict[str, Any]) -> dict[str, Any]:
        there = self.hub.repositories[f"models/{name}"] / file["path"]
        large, oid = file["path"].endswith((".safetensors", ".png")), None
        if there.is_file():
            content = there.read_bytes()
            git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            oid = hashlib.sha256(content).hexdigest() if large else git
        return {"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid}

    def _place(self, asked: dict[str, Any]) -> dict[str, Any]:
        actions = {"upload": {"href": f"{self.hub.url}/lfs/{asked['oid']}"}}
        return asked if asked["oid"] in self.uploads.stored else asked | {"actions": actions}

    def _store(self, oid: str) -> None:
        if oid in self.uploads.refuses:
            self._refuse(403, {})
            return
        assert hashlib.sha256(self.body).hexdigest() == oid
        self.uploads.received.append(oid)
        self.uploads.stored[oid] = self.body
        self._reply(200, b"", {})

    def _validate(self, card: str) -> None:
        """Checks what the Hub checks in a model card."""
        said = YAML(typ="safe").load(card.split("---\n")[1])
        named = [said.get("base_model", "owner/name"), *said.get("datasets", [])]
        problems = [f"{one!r} is no name on the Hub" for one in named if not re.fullmatch(r"[\w.-]+/[\w.-]+", one)]
        if said.get("license") not in LICENCES:
            problems.append('"license" must be one of [apache-2.0, ...]')
        if said["license"] == "other" and not said.get("license_name"):
            problems.append('"license_name" is required')
        status = 400 if problems else 200
        if self.headers.get("Accept") == "text/plain":
            self._reply(status, "; ".join(problems).encode(), {"Content-Type": "text/plain"})
        else:
            self._reply(status, json.dumps({"errors": [{"message": one} for one in problems]}).encode(), {})

    def _commit(self, name: str, lines: list[dict[str, Any]]) -> None:
        folder, changed = self.hub.repositories[f"models/{name}"], []
        for line in lines[1:]:
            value = line["value"]
            path, change = folder / value["path"], line["key"]
            changed.append(f"-{value['path']}" if change == "deletedFile" else value["path"])
            path.parent.mkdir(parents=True, exist_ok=True)
            if change == "file":
                path.write_bytes(base64.b64decode(value["content"]))
            elif change == "lfsFile":
                path.write_bytes(self.uploads.stored[value["oid"]])
            else:
                path.unlink()
        self.uploads.commits.append(changed)
        self._json({"commitUrl": f"{self.hub.url}/{name}/commit/{COMMIT}", "commitOid": COMMIT, "success": True})


@contextmanager
def receiving(room: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Uploads]:
    """Serves while the block runs, and points the Hub's client in this process to it; without Xet, whose protocol is binary."""
    from huggingface_hub import constants

    with serving(_Receiving) as hub:
        uploads = _Receiving.uploads = Uploads(hub, room)
        hub.point_here(monkeypatch, room / "cache")
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        yield uploads
