"""Encoding and drawing on a Ray cluster of this machine, on loopback alone."""

import importlib.util
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from stages import encode, evaluate
from tests import loopback
from tests.projects import ROOT, Project, files

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the extra `ray`"),
    pytest.mark.skipif(sys.platform != "linux" or not loopback.is_allowed(), reason="needs a network of its own"),
]
RAY: dict[str, Any] = {"name": "ray", "address": None, "actors": 2, "gpus_per_actor": 0.0, "cpus_per_actor": 1.0}
RUN = "from tests import loopback; loopback.enter(); from stages.{0} import app; from stages.console import run; run(app)"


def start(stage: str, *words: str) -> "subprocess.Popen[str]":
    code = [sys.executable, "-c", RUN.format(stage), *words]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(code, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.fixture
def fetched(project: Project) -> Project:
    """A project with twelve image shards, encoded in this process."""
    project.params["fetch"]["records_per_shard"] = 2
    project.params["runtime"]["decode_processes"] = 1
    project.write()
    project.fetch_and_encode()
    return project


def on_ray(project: Project) -> dict[str, bytes]:
    """Switches a project to Ray and removes what is encoded; returns the moments."""
    wanted = files(Path("data/latents"))
    shutil.rmtree("data/latents")
    for work in Path("data/work").glob("encode-images-*"):
        shutil.rmtree(work)
    project.params["runtime"]["launcher"] = RAY
    project.write()
    return wanted


def test_actors_encode_the_bytes_of_one_process_also_if_one_is_killed(fetched, capfd) -> None:
    wanted = on_ray(fetched)
    running = start("encode", "images")
    store = wait_for(lambda: list(Path("data/work").glob("encode-images-*/*.json")))
    children = psutil.Process(running.pid).children(recursive=True)
    next(child for child in children if "".join(child.cmdline()).startswith("ray::_Actor")).kill()
    said, _ = running.communicate(timeout=300)
    assert running.returncode == 0, said
    assert files(Path("data/latents")) == wanted
    assert store
    fetched.params["runtime"]["launcher"] = {"name": "local"}
    fetched.write()
    shutil.rmtree("data/latents")
    capfd.readouterr()
    encode.images()
    assert "encoded 0 of 24 records" in capfd.readouterr().err
    assert files(Path("data/latents")) == wanted


def wait_for(found: Callable[[], Any]) -> Any:
    for _ in range(1200):
        if its := found():
            return its
        time.sleep(0.1)
    raise TimeoutError


def test_actors_draw_what_one_process_draws(fetched, monkeypatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    evaluate.base()
    wanted = files(Path("data/samples/base"))
    shutil.rmtree("data/samples")
    fetched.params["runtime"]["launcher"] = RAY
    fetched.write()
    running = start("evaluate", "base")
    said, _ = running.communicate(timeout=300)
    assert running.returncode == 0, said
    assert files(Path("data/samples/base")) == wanted


def test_a_damaged_image_is_named(fetched) -> None:
    on_ray(fetched)
    fetched.params["runtime"]["verify_shards"] = False
    fetched.write()
    shard = Path("data/raw/images/train-00000.tar")
    content = bytearray(shard.read_bytes())
    content[content.index(b"\x89PNG") : content.index(b"\x89PNG") + 4] = b"none"
    shard.write_bytes(content)
    running = start("encode", "images")
    said, _ = running.communicate(timeout=300)
    assert running.returncode == 1, said
    assert "train-00000.tar: record" in said.splitlines()[-1]
    assert "not a readable image" in said.splitlines()[-1]
