"""Runs everything from files on disk, without a network: in a network namespace or, if not permitted, with an audit hook."""

import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from stages import fetch
from tests.fake_hub import COMMIT, FakeHub, serving
from tests.no_network import cut_off
from tests.projects import ROOT, Project

pytestmark = pytest.mark.slow

SAMPLE = """
import sys
cut_off()
from diffusers import StableDiffusionPipeline
pipeline = StableDiffusionPipeline.from_pretrained(sys.argv[1])
print(pipeline("square 1", num_inference_steps=1, height=32, width=32).images[0].size)
assert not {"t2i", "stages"} & sys.modules.keys()
"""


def everything(project: Project, hub: FakeHub) -> None:
    cut_off()
    with pytest.raises(OSError, match=r"."), socket.create_connection(("127.0.0.1", int(hub.url.rpartition(":")[2]))):
        pass
    project.fetch_and_encode()
    project.train()
    project.evaluate()


def test_the_pipeline_needs_no_network_with_a_cached_base(project, tiny_base, monkeypatch) -> None:
    project.params["base"] |= {"hub": "someone/tiny", "clip": "someone/clip@v1"}
    project.write()
    with serving() as hub:
        hub.repositories |= {"models/someone/tiny": tiny_base, "models/someone/clip": tiny_base / "clip"}
        hub.point_here(monkeypatch, project.folder / "cache")
        fetch.base()
        shutil.rmtree(project.folder / "data")
        hub.asked.clear()
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        process = multiprocessing.get_context("fork").Process(target=everything, args=(project, hub))
        process.start()
        process.join()
        assert process.exitcode == 0
        assert not hub.asked
    assert project.json("data/model/source.json") == {"source": "someone/tiny", "commit": COMMIT}
    kinds = {path.suffix for path in (project.folder / "data/model").rglob("*") if path.is_file()}
    assert kinds <= {".safetensors", ".json", ".md", ".png", ".txt"}
    assert sampled(project.folder / "data/model") == "(32, 32)"


def sampled(model: Path) -> str:
    """Returns the output of a process that only has diffusers, without the network and without this project."""
    program = (ROOT / "tests" / "no_network.py").read_text() + SAMPLE
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTHON"))}
    command = [sys.executable, "-I", "-c", program, str(model)]
    ran = subprocess.run(command, cwd=model, env=environment | {"HF_HOME": str(model.parent)}, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


def test_an_uncached_base_offline_is_an_error(project, tmp_path, monkeypatch) -> None:
    project.params["base"] |= {"hub": "someone/tiny"}
    project.write()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
    with pytest.raises(ValueError, match=r"`base.hub`: 'someone/tiny': HF_HUB_OFFLINE is set"):
        fetch.base()
