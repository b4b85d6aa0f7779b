"""Projects around a tiny checkpoint, in which tests run the stages and read their outputs."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from accelerate.state import AcceleratorState
from ruamel.yaml import YAML

from stages import encode, evaluate, fetch, train
from t2i.model.base import Base
from t2i.model.family import Drawing

ROOT = Path(__file__).parent.parent
PLAIN: dict[str, Any] = {
    "prediction_type": None,
    "zero_terminal_snr": False,
    "ztsnr_floor": 0.01,
    "weighting": {"name": "uniform"},
    "timesteps": {"name": "uniform"},
    "noise_offset": 0.0,
    "input_perturbation": 0.0,
    "dream_detail_preservation": None,
}
"""Section `train.objective` without options."""

LORA: dict[str, Any] = {
    "trainable": "",
    "adapter": {"name": "lora", "rank": 4, "alpha": 8.0, "dropout": 0.1, "targets": "attention_mlp", "dora": False},
}
"""What section `train` has for a LoRA; alpha differs from the rank, so that a wrong scale shows."""

ADAPTER: dict[str, Any] = {"name": "lora", "rank": 4, "without_kohya": None, "weights": "pytorch_lora_weights.safetensors"} | {
    "pipeline": "StableDiffusionPipeline",
    "scheduler": None,
    "text_layers": None,
    "mergeable": True,
    "scheduler_arguments": {},
}
"""What adapter.json of a LoRA says about its use."""

DRAWING = Drawing(2, guidance_scale=2.0, size_px=(32, 32), precision="fp32", batch_size=3, device="cpu", offload=False)


def base_section(**changes: Any) -> Base:
    """Returns the section `base` without options; `clip` is the folder of that name in `local`."""
    unset = dict.fromkeys(("hub", "config", "revision", "variant", "vae")) | {"clip_skip": 0, "empty_prompt": "auto"}
    named = {name: str(value) if isinstance(value, Path) else value for name, value in changes.items()}
    return Base(**({"family": "stable_diffusion", "clip": f"{named.get('local')}/clip"} | unset | named))


class Project:
    """A folder with params.yaml, in which tests run stages."""

    def __init__(self, folder: Path, base: Path) -> None:
        self.folder = folder
        self.params: dict[str, Any] = YAML(typ="safe").load((ROOT / "params.yaml").read_text(encoding="utf-8"))
        self.params["base"] |= {"local": str(base), "clip": str(base / "clip")}
        self.params["fetch"] |= {
            "source": {"name": "folder", "captions": {"name": "metadata", "column": "text"}},
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
        self.params["sweep"] |= {"guidance_scales": [1.0], "prompts": 4}
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
        AcceleratorState._reset_state(reset_partial_state=True)  # as in a new process
        self.write()
        train.main()

    def evaluate(self) -> None:
        evaluate.base()
        evaluate.model()
        evaluate.report()

    def json(self, path: str) -> Any:
        return json.loads((self.folder / path).read_text(encoding="utf-8"))


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def outputs(data: Path) -> dict[str, bytes]:
    """Returns the files of a data folder except the work folder's: the store of records names the process that used it."""
    return {name: content for name, content in files(data).items() if not name.startswith("work/")}


def trained(project: Project) -> dict[str, dict[str, bytes]]:
    """Returns the outputs of training, and the last checkpoint with UNet, EMA, optimizer and history."""
    data = project.folder / "data"
    left = {name: files(data / name) for name in ("model", "validation", "reports/train")}
    (work,) = data.glob("work/train-*")
    return left | {"checkpoint": files(max(work.glob("step-????????")))}


def untrained(project: Project) -> None:
    for name in ("model", "validation", "reports/train", "work"):
        shutil.rmtree(project.folder / "data" / name)


def put_back(folder: Path, kept: Path) -> None:
    shutil.rmtree(folder)
    shutil.copytree(kept, folder)


def flip(path: Path) -> None:
    """Flips a bit in the first record of a file; the new file has the same size and time."""
    before, content = path.stat(), bytearray(path.read_bytes())
    content[min(1000, len(content) // 2)] ^= 1
    path.unlink()
    path.write_bytes(bytes(content))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
