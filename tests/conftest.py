"""A tiny checkpoint, made once, and a project around it that the stages run in."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from hypothesis import settings
from ruamel.yaml import YAML

from stages import encode, evaluate, fetch, train
from tests import tiny

ROOT = Path(__file__).parent.parent

settings.register_profile("short", deadline=None, derandomize=True, database=None, max_examples=40)
settings.register_profile("long", deadline=None, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "short"))


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)  # bits are promised for a fixed number of threads


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_base(tmp_path_factory.mktemp("tiny") / "base")


class Project:
    """A folder with params.yaml, in which stages are run."""

    def __init__(self, folder: Path, base: Path) -> None:
        self.folder = folder
        self.params: dict[str, Any] = YAML(typ="safe").load((ROOT / "params.yaml").read_text(encoding="utf-8"))
        self.params["base"] |= {"local": str(base), "clip": str(base / "clip")}
        self.params["fetch"] |= {
            "source": {"name": "folder", "caption_column": "text"},
            "local": str(folder / "images"),
            "heldout_fraction": 0.3,
            "records_per_shard": 8,
        }
        self.params["encode"]["images"] |= {"resolution_px": 32, "min_psnr": 0.0, "psnr_records": 4}
        self.params["encode"]["captions"]["records_per_shard"] = 8
        self.params["train"] |= {"steps": 6, "batch_size": 4, "warmup_steps": 2, "precision": "fp32", "learning_rate": 1e-3}
        self.params["encode"]["captions"]["validation_prompts"] = ["square 1", "square 2"]
        self.params["evaluate"] |= {"prompts": 6, "num_inference_steps": 2, "timesteps_per_record": 2}
        self.params["evaluate"] |= {"retention_prompts": ["circle 1", "circle 2"], "resamples": 100}
        self.params["sweep"] = {"guidance_scales": [1.0], "prompts": 4}
        self.params["report"] = {"grid_prompts": 3, "most_steps": 2}
        self.params["runtime"] |= {"device": "cpu", "log_every_steps": 2, "encode_batch_size": 5}
        self.params["runtime"]["validation"] |= {"every_steps": 4, "records": 3, "timesteps_per_record": 2}
        self.params["runtime"]["validation"]["num_inference_steps"] = 2
        self.write()

    def write(self) -> None:
        with (self.folder / "params.yaml").open("w", encoding="utf-8") as file:
            YAML(typ="safe").dump(self.params, file)

    def fetch_and_encode(self) -> None:
        fetch.base()
        fetch.dataset()
        encode.images()
        encode.captions()

    def train(self) -> None:
        AcceleratorState._reset_state(reset_partial_state=True)  # as a new process finds it
        self.write()
        train.main()

    def evaluate(self) -> None:
        evaluate.base()
        evaluate.model()
        evaluate.report()

    def json(self, path: str) -> Any:
        return json.loads((self.folder / path).read_text(encoding="utf-8"))


@pytest.fixture
def project(tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.chdir(tmp_path)
    tiny.make_images(tmp_path / "images", 24)
    return Project(tmp_path, tiny_base)
