"""The whole pipeline and the tools on each family, with views that are not square, random crops, flips and dropped prompts."""

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from stages.tools import app
from t2i.data.shards import Reader, index, read_tensors
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
    for member in index(data / "latents", "train"):
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
