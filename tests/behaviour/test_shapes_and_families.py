"""The whole pipeline and the tools on each family, with views that are not square, random crops, flips and dropped prompts."""

import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from stages import fetch
from stages.tools import app
from t2i.core.params import load_section
from t2i.data.index import Index
from t2i.data.reader import Reader, read_tensors
from t2i.fetch.base import check_origin
from t2i.model.base import Base
from tests import tiny

XL_V = {"prediction_type": "v_prediction", "zero_terminal_snr": True}


def base_of(family: str, folder: Path, options: dict[str, Any]) -> Path:
    return tiny.make_sdxl(folder, **options) if family == "sdxl" else tiny.make_base(folder, **options)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "options", "size"),
    [
        ("stable_diffusion", {}, (64, 96)),
        ("sdxl", {}, (32, 32)),
        ("sdxl", {}, (96, 64)),
        ("sdxl", XL_V, (64, 96)),
        ("sdxl", {"zeros": False}, (32, 48)),
    ],
)
def test_all_stages_and_tools_run(project, tmp_path, family, options, size) -> None:
    base = base_of(family, tmp_path / "other", options)
    project.params["base"] |= {"family": family, "local": str(base), "clip": str(base / "clip")}
    project.params["encode"]["images"] |= {
        "resolution_px": size[0] if size[0] == size[1] else list(size),
        "crop": {"name": "random", "views": 2},
        "flip": True,
    }
    project.params["train"] |= {"prompt_dropout": 0.5, "export_dtype": "fp32" if family == "stable_diffusion" else "fp16"}
    project.params["train"]["objective"]["weighting"] = {"name": "min_snr", "gamma": 5.0}
    project.write()
    project.fetch_and_encode()
    project.train()
    project.evaluate()

    data, reader = project.folder / "data", Reader()
    for member in Index(data / "latents", "train"):
        assert reader.tensors(member)["moments"].shape == (4, 8, size[0] // 2, size[1] // 2)
    zeros = family == "sdxl" and options.get("zeros", True)
    assert all(bool(tensor.any()) is not zeros for tensor in read_tensors(data / "embeds/empty.safetensors").values())
    drawn = max((data / "validation").glob("step-*.safetensors"))
    assert read_tensors(drawn)["latents"].shape == (2, 4, size[0] // 2, size[1] // 2)
    for samples in ("base", "model"):
        assert {Image.open(path).size for path in (data / "samples" / samples).rglob("*.png")} == {size[::-1]}
    assert (data / "reports/report.html").stat().st_size > 10_000

    kind = "StableDiffusionXLPipeline" if family == "sdxl" else "StableDiffusionPipeline"
    pipeline = getattr(diffusers, kind).from_pretrained(data / "model", torch_dtype=torch.float32, use_safetensors=True)
    assert len(pipeline("square 1", num_inference_steps=2, height=size[0], width=size[1]).images) == 1
    if "zero_terminal_snr" in options:
        assert pipeline.scheduler.config.rescale_betas_zero_snr
    assert f"from diffusers import {kind}" in (data / "model/README.md").read_text()

    for command in (["plan"], ["sample", "square 1", "--compare", "--out", "drawn"]):
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 0, (done.output, done.exception)
    assert {Image.open(path).size for path in Path("drawn").glob("square*.png")} == {size[::-1]}
    found = CliRunner().invoke(app, ["doctor", "--deep"]).output.splitlines()
    assert not [line for line in found if line.startswith("wrong") and "checkout: " not in line]
    assert any("round trip" in line for line in found)


@pytest.mark.parametrize(
    ("resolution_px", "said"),
    [
        ([64], "resolution_px"),
        ([64, 96, 32], "resolution_px"),
        ([64, 4], "resolution_px"),
        ("64x96", "resolution_px"),
        ([64, 100], r"wanted multiples of 8: .*2 x 2 pixels"),
        (36, r"wanted multiples of 8"),
    ],
)
def test_a_size_that_cannot_be_drawn_is_refused(project, resolution_px, said) -> None:
    project.params["encode"]["images"]["resolution_px"] = resolution_px
    project.write()
    with pytest.raises((ValueError, SystemExit), match=said):
        project.fetch_and_encode()


def test_the_empty_prompt_of_the_base_can_be_overruled(project, tiny_sdxl) -> None:
    project.params["base"] |= {"family": "sdxl", "local": str(tiny_sdxl), "clip": str(tiny_sdxl / "clip")}
    for wanted, zeros in (("encoded", False), ("zeros", True), ("auto", True)):
        project.params["base"]["empty_prompt"] = wanted
        project.write()
        project.fetch_and_encode()
        assert project.json("data/base/model_index.json")["force_zeros_for_empty_prompt"] is zeros
        empty = read_tensors(project.folder / "data/embeds/empty.safetensors")
        assert [bool(tensor.any()) for tensor in empty.values()] == [not zeros] * 2


def test_what_a_family_has_no_choice_in_is_refused(project, tiny_base, tiny_sdxl) -> None:
    project.params["base"]["empty_prompt"] = "zeros"
    project.write()
    with pytest.raises(ValueError, match=r"`base.empty_prompt` is zeros, .*auto"):
        project.fetch_and_encode()
    project.params["base"] |= {"family": "sdxl", "local": str(tiny_sdxl), "clip": str(tiny_sdxl / "clip"), "clip_skip": 1}
    project.write()
    with pytest.raises(ValueError, match=r"`base.clip_skip` is 1, .* two text encoders.* 0"):
        project.fetch_and_encode()


def test_a_vae_of_other_models_is_refused(project, tmp_path, tiny_base) -> None:
    base = tiny.make_sdxl(tmp_path / "other")
    shutil.copytree(tiny_base / "vae", base / "another")  # scaling_factor 0.18215, where SDXL has 0.13025
    project.params["base"] |= {"family": "sdxl", "local": str(base), "clip": str(base / "clip"), "vae": str(base / "another")}
    project.write()
    with pytest.raises(ValueError, match=r"`base.vae` .*scaling_factor .* 0.18215 .* 0.13025 .*null"):
        project.fetch_and_encode()


def test_another_empty_prompt_makes_the_fetched_base_stale(project, tiny_sdxl) -> None:
    project.params["base"] |= {"family": "sdxl", "local": str(tiny_sdxl), "clip": str(tiny_sdxl / "clip")}
    project.write()
    fetch.base()
    section = load_section(project.folder / "params.yaml", "base", Base)
    check_origin(section, project.folder / "data/base")
    with pytest.raises(ValueError, match=r"empty_prompt is None, .* encoded; run `t2i fetch base`"):
        check_origin(section.model_copy(update={"empty_prompt": "encoded"}), project.folder / "data/base")


def test_a_unet_in_several_files_is_drawn_with(project, tmp_path) -> None:
    base = tiny.make_sdxl(tmp_path / "other")
    unet = diffusers.UNet2DConditionModel.from_pretrained(base / "unet")
    shutil.rmtree(base / "unet")
    unet.save_pretrained(base / "unet", max_shard_size="100kB")
    assert len(list((base / "unet").glob("*.safetensors"))) > 1
    project.params["base"] |= {"family": "sdxl", "local": str(base), "clip": str(base / "clip")}
    project.write()
    done = CliRunner().invoke(app, ["sample", "square 1", "--base", str(base), "--model", str(base), "--compare"])
    assert done.exit_code == 0, (done.output, done.exception)
    with Image.open(project.folder / "samples/square-1-0-base.png") as image:
        assert len(image.info["model_sha256"]) == 64


def test_a_related_pipeline_is_exported_as_one_that_draws_from_text(project, tmp_path) -> None:
    base = tiny.make_sdxl(tmp_path / "other")
    index = json.loads((base / "model_index.json").read_text())
    (base / "model_index.json").write_text(json.dumps(index | {"_class_name": "StableDiffusionXLImg2ImgPipeline"}))
    project.params["base"] |= {"family": "sdxl", "local": str(base), "clip": str(base / "clip")}
    project.params["encode"]["images"]["resolution_px"] = [32, 40]
    project.write()
    project.fetch_and_encode()
    project.train()
    assert project.json("data/model/model_index.json")["_class_name"] == "StableDiffusionXLPipeline"
    card = (project.folder / "data/model/README.md").read_text()
    assert "from diffusers import StableDiffusionXLPipeline" in card
    assert "height=32, width=40" in card
