"""Fixtures: a tiny checkpoint, built once, and a project around it for running stages."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from tests import tiny
from tests.projects import Project

ROOT = Path(__file__).parent.parent

settings.register_profile("short", deadline=None, derandomize=True, database=None, max_examples=40)
settings.register_profile("long", deadline=None, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "short"))


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)  # results are bit-identical only for a fixed number of threads


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_base(tmp_path_factory.mktemp("tiny") / "base")


@pytest.fixture(scope="session")
def tiny_sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_sdxl(tmp_path_factory.mktemp("tiny") / "sdxl")


@pytest.fixture
def project(tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.chdir(tmp_path)
    tiny.make_images(tmp_path / "images", 24)
    return Project(tmp_path, tiny_base)


@pytest.fixture
def machine_with(monkeypatch: pytest.MonkeyPatch) -> Callable[[str | None], None]:
    """Returns a function that sets the accelerator that PyTorch finds: its name, or None."""

    def found(accelerator: str | None) -> None:
        device = torch.device(accelerator) if accelerator else None
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: device)
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: device is not None)

    return found


@pytest.fixture
def ready(project: Project) -> Project:
    """A project ready to train for 12 steps of two micro-batches each, in three epochs of 17 records."""
    project.params["train"] |= {"steps": 12, "ema": project.params["train"]["ema"] | {"every_steps": 5}}
    project.params["runtime"] |= {"micro_batch_size": 3, "log_every_steps": 1}
    project.write()
    project.fetch_and_encode()
    return project
