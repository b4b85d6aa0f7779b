"""The token of HF_TOKEN, which a server that refuses it repeats in its answers, is found nowhere."""

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

TOKEN = "hf_thisTokenIsToBeFoundNowhere"
GATED = {"X-Error-Code": "GatedRepo"}


@pytest.fixture
def hub(project: Project, tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A Hub that wants the token, for a project whose base, CLIP and images come from it."""
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
    """Where the token is."""
    files = [path for path in folder.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]
    return [str(path) for path in files] + (["what it said"] if TOKEN in said else [])


def run_here(command: str, capfd: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """How a stage ends, and all that it says."""
    sys.argv = ["fetch", command]
    with pytest.raises(SystemExit) as ended:
        run(fetch.app)
    return int(ended.value.code or 0), "".join(capfd.readouterr())


def test_what_the_token_opens_is_fetched_and_the_token_written_nowhere(hub, project, capfd) -> None:
    for command in ("base", "dataset"):
        code, said = run_here(command, capfd)
        assert (code, found_in(project.folder, said)) == (0, [])
        assert "0123456789abcdef" in said or "dataset: " in said


def test_no_stage_and_no_tracker_writes_the_token(hub, project, capfd) -> None:
    project.params["runtime"]["trackers"] = ["tensorboard", "dvclive"]
    project.write()
    project.fetch_and_encode()
    project.train()
    project.evaluate()
    assert list(project.folder.glob("data/trackers/*/*/events*"))
    assert list(project.folder.glob("data/trackers/*/dvclive/metrics.json"))
    assert found_in(project.folder, "".join(capfd.readouterr())) == []


def test_a_traceback_that_is_asked_for_has_no_token(hub, project) -> None:
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
def test_a_refusal_repeats_no_token(hub, project, capfd, command, refusal, said) -> None:
    hub.refusals = refusal
    code, printed = run_here(command, capfd)
    assert code == 1
    assert said in printed.splitlines()[-1]
    assert found_in(project.folder, printed) == []
