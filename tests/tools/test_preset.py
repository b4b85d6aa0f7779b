import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from ruamel.yaml import YAML

from stages import tools
from t2i.core.params import ParamsError, load_section
from t2i.tools.preset import presets, undo_preset, write_preset
from t2i.tools.sections import MODELS
from tests import tiny
from tests.projects import ROOT

NAMES = list(presets(ROOT / "presets"))


def preset(name: str, folder: Path) -> Path:
    path = folder / "params.yaml"
    path.write_text((ROOT / "params.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    for file in (ROOT / "presets").glob("[!.]*.yaml"):
        (folder / "presets").mkdir(exist_ok=True)
        shutil.copyfile(file, folder / "presets" / file.name)
    assert write_preset(name, folder / "presets", path)
    return path


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_gives_a_complete_valid_parameter_file(tmp_path, name) -> None:
    path = preset(name, tmp_path)
    for section, model in MODELS.items():
        load_section(path, section, model)
    text = path.read_text(encoding="utf-8")
    comments = [line for line in (ROOT / "params.yaml").read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    assert comments
    assert all(comment in text.splitlines() for comment in comments)
    assert write_preset(name, tmp_path / "presets", path) == []  # nothing is left to change


def test_naruto_preset_matches_the_guide(tmp_path) -> None:
    params = YAML(typ="safe").load(preset("naruto-sd15", tmp_path).read_text(encoding="utf-8"))
    train, runtime, images = params["train"], params["runtime"], params["encode"]["images"]
    assert params["base"]["hub"] == "stable-diffusion-v1-5/stable-diffusion-v1-5"
    assert params["fetch"]["source"]["id"] == "lambdalabs/naruto-blip-captions"
    assert (images["resolution_px"], images["crop"], images["flip"]) == (512, {"name": "center"}, True)
    assert (train["batch_size"], runtime["micro_batch_size"], runtime["gradient_checkpointing"]) == (4, 1, True)
    assert (train["steps"], train["learning_rate"], train["schedule"]) == (15000, 1e-5, {"name": "constant"})
    assert (train["warmup_steps"], train["max_grad_norm"], train["precision"]) == (0, 1, "fp16")
    assert train["objective"]["weighting"] == {"name": "min_snr", "gamma": 5.0}
    assert runtime["attention"] == "xformers"


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_replaces_all_values_of_another_preset(tmp_path, name) -> None:
    alone = YAML(typ="safe").load(preset(name, tmp_path).read_text(encoding="utf-8"))
    for other in NAMES:
        path = preset(other, tmp_path)
        write_preset(name, tmp_path / "presets", path)
        assert YAML(typ="safe").load(path.read_text(encoding="utf-8")) == alone


def small(params: dict[str, Any]) -> None:
    """Sets what a tiny model and a machine without a GPU need; everything else stays as in the preset."""
    params["fetch"]["heldout_fraction"] = 0.3
    params["encode"]["images"] |= {"resolution_px": 32, "min_psnr": 0.0, "psnr_records": 4}
    params["train"] |= {"steps": 3, "precision": "fp32"}
    params["train"]["optimizer"]["name"] = "adamw"  # 8-bit AdamW needs a GPU
    params["evaluate"] |= {
        "prompts": 4,
        "num_inference_steps": 2,
        "timesteps_per_record": 2,
        "resamples": 100,
        "precision": "fp32",
    }
    params["sweep"] |= {"guidance_scales": [1.0], "prompts": 4}
    params["report"] |= {"grid_prompts": 3, "most_steps": 2}
    params["runtime"] |= {"device": "cpu", "attention": "auto", "log_every_steps": 2}
    params["runtime"]["validation"] |= {"every_steps": 2, "records": 2, "timesteps_per_record": 2, "num_inference_steps": 2}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_preset_runs_on_a_tiny_model_of_its_family(project, tmp_path, name) -> None:
    params = YAML(typ="safe").load(preset(name, tmp_path).read_text(encoding="utf-8"))
    predicts = "v_prediction" if "-v" in name else "epsilon"
    if params["base"]["family"] == "sdxl":
        base = tiny.make_sdxl(tmp_path / "like", prediction_type=predicts)
    else:
        base = tiny.make_base(tmp_path / "like", prediction_type=predicts, text_layers=2, text_width=24)
    params["base"] |= {"hub": None, "revision": None, "variant": None, "local": str(base), "clip": str(base / "clip")}
    params["fetch"] |= {
        "source": {"name": "folder", "captions": {"name": "metadata", "column": "text"}},
        "local": str(tmp_path / "images"),
    }
    small(params)
    project.params = params
    project.write()
    project.fetch_and_encode()
    project.train()
    project.evaluate()
    kind = StableDiffusionXLPipeline if params["base"]["family"] == "sdxl" else StableDiffusionPipeline
    data, is_lora = project.folder / "data", name.endswith("-lora")
    pipeline = kind.from_pretrained(data / ("base" if is_lora else "model"), torch_dtype=torch.float32, use_safetensors=True)
    if is_lora:
        changes = project.json("data/model/adapter.json")["scheduler_changes"]
        pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, **changes)
        pipeline.load_lora_weights(data / "model", weight_name="lora.safetensors")
        assert pipeline.get_active_adapters() == ["default_0"]
    assert len(pipeline(["a red square"], num_inference_steps=2, height=32, width=32).images) == 1
    page = (project.folder / "data/reports/report.html").read_text(encoding="utf-8")
    assert ("not comparable" in page) == (predicts == "v_prediction")  # its noise schedule differs from the base's
    if predicts == "v_prediction":
        assert pipeline.scheduler.alphas_cumprod[-1] < 1e-6
        assert (pipeline.scheduler.config.prediction_type, pipeline.scheduler.config.timestep_spacing) == (predicts, "trailing")


def test_an_unknown_preset_or_key_changes_nothing(tmp_path) -> None:
    path = preset("sd21-v", tmp_path)
    before = path.read_text(encoding="utf-8")
    with pytest.raises(ParamsError, match=r"presets: .*'sd21'.* naruto-sd15, .*sdxl-vpred-lora"):
        write_preset("sd21", tmp_path / "presets", path)
    (tmp_path / "odd.yaml").write_text("# Odd.\ntrain: {stepps: 3}\n")
    with pytest.raises(ParamsError, match=r"preset odd: .*`train.stepps`"):
        write_preset("odd", tmp_path, path)
    assert path.read_text(encoding="utf-8") == before


def test_undo_puts_back_what_presets_replaced_and_keeps_edits(tmp_path) -> None:
    read = YAML(typ="safe").load
    original = read((ROOT / "params.yaml").read_text(encoding="utf-8"))
    path = preset("sd15", tmp_path)
    write_preset("naruto-sd15", tmp_path / "presets", path)
    for old, new in (("steps: 15000", "steps: 77"), ("seed: 0", "seed: 8")):  # of the preset, and not of it
        assert old in path.read_text(encoding="utf-8")
        path.write_text(path.read_text(encoding="utf-8").replace(old, new, 1), encoding="utf-8")
    lines = undo_preset(tmp_path / "presets", path)
    assert any(line.startswith("train.steps: stays 77") for line in lines)
    assert f"`git checkout {path}`" in lines[-1]
    original["train"]["steps"], original["fetch"]["seed"] = 77, 8
    assert read(path.read_text(encoding="utf-8")) == original
    with pytest.raises(ParamsError, match="no preset to undo"):
        undo_preset(tmp_path / "presets", path)


def test_the_command_lists_presets_and_applies_one(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(ROOT)
    path = preset("naruto-sd15", tmp_path)
    for arguments in (["--list"], ["sd21-v"], ["--undo"]):
        arguments += ["--params", str(path), "--presets", str(tmp_path / "presets")]
        monkeypatch.setattr(sys, "argv", ["t2i", "preset", *arguments])
        with pytest.raises(SystemExit) as done:
            tools.main()
        assert done.value.code == 0
    text = capsys.readouterr().out
    assert f"naruto-sd15: {presets(ROOT / 'presets')['naruto-sd15']}" in text
    assert "encode.images.resolution_px: 512 -> 768" in text
    assert "encode.images.resolution_px: 768 -> 64" in text
