"""The token in HF_TOKEN is never written or printed, even if a server repeats it in an error."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stages import fetch
from stages.console import run
from tests.fake_hub import FakeHub, serving
from tests.projects import ROOT, Project

pytestmark = pytest.mark.slow

TOKEN = "hf_thisTokenIsToBeFoundNowhere"
GATED = {"X-Error-Code": "GatedRepo"}


@pytest.fixture
def hub(project: Project, tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A fake Hub that requires the token, and serves the base, CLIP and images of a project."""
    source: dict[str, Any] = {"name": "hub", "id": "someone/squares", "config": None, "split": "train", "revision": None}
    source |= {"image_column": "image", "caption_column": "text", "streaming": True, "max_rows": None}
    project.params["base"] |= {"hub": "someone/tiny", "clip": "someone/clip"}
    project.params["fetch"]["source"] = source
    project.write()
    with serving() as hub:
        hub.token = TOKEN
        hub.point_here(monkeypatch, project.folder / "cache")
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(sys, "argv", [])
        hub.repositories |= {"models/someone/tiny": tiny_base, "models/someone/clip": tiny_base / "clip"}
        hub.repositories["datasets/someone/squares"] = project.folder / "images"
        yield hub


def found_in(folder: Path, said: str) -> list[str]:
    """Returns the places where the token is found."""
    files = [path for path in folder.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]
    return [str(path) for path in files] + (["what it said"] if TOKEN in said else [])


def run_here(command: str, capfd: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Returns the exit code and the output of a stage."""
    sys.argv = ["fetch", command]
    with pytest.raises(SystemExit) as ended:
        run(fetch.app)
    return int(ended.value.code or 0), "".join(capfd.readouterr())


def test_fetch_uses_the_token_and_never_writes_it(hub, project, capfd) -> None:
    for command in ("base", "dataset"):
        code, said = run_here(command, capfd)
        assert (code, found_in(project.folder, said)) == (0, [])
        assert "0123456789abcdef" in said or "dataset fetched" in said


def test_stages_and_trackers_never_write_the_token(hub, project, capfd) -> None:
    project.params["runtime"]["trackers"] = ["tensorboard", "dvclive"]
    project.write()
    project.fetch_and_encode()
    project.train()
    project.evaluate()
    assert list(project.folder.glob("data/trackers/*/*/events*"))
    assert list(project.folder.glob("data/trackers/*/dvclive/metrics.json"))
    assert found_in(project.folder, "".join(capfd.readouterr())) == []


def test_a_requested_traceback_has_no_token(hub, project) -> None:
    hub.refusals["files"] = (403, GATED)
    environment = os.environ | hub.environment(project.folder / "home")
    environment |= {"HF_TOKEN": TOKEN, "T2I_TRACEBACK": "1", "PYTHONPATH": str(ROOT), "HF_DEBUG": "1"}
    words = [sys.executable, "-m", "stages.fetch", "base"]
    ran = subprocess.run(words, cwd=project.folder, env=environment, capture_output=True, text=True)
    assert ran.returncode == 1
    assert "Traceback" in ran.stderr
    assert "gated (403)" in ran.stderr
    assert found_in(project.folder, ran.stdout + ran.stderr) == []


@pytest.mark.parametrize("command", ["base", "dataset"])
@pytest.mark.parametrize(
    ("refusal", "said"),
    [
        ({"api": (401, {})}, "(401): set HF_TOKEN"),
        ({"api": (403, {})}, "(403): the token in HF_TOKEN"),
        ({"files": (403, {})}, "(403): the token in HF_TOKEN"),
        ({"files": (403, GATED)}, "gated (403)"),
        ({"api": (503, {})}, "503"),
        ({"api": (200, {})}, "HF_ENDPOINT"),
    ],
)
def test_an_error_of_the_hub_has_no_token(hub, project, capfd, command, refusal, said) -> None:
    hub.refusals = refusal
    code, printed = run_here(command, capfd)
    assert code == 1
    assert said in printed.splitlines()[-1]
    assert found_in(project.folder, printed) == []
