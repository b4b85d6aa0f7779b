import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from stages.tools import app
from tests import tiny
from tests.projects import files


@pytest.fixture
def model(tmp_path, tiny_base, monkeypatch):
    """A pipeline at the place where `train` writes one."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_base, tmp_path / "data/model")
    return Path("data/model")


def run(*arguments):
    return CliRunner().invoke(app, ["export", *map(str, arguments)])


def test_the_trained_model_is_written_as_one_file_in_fp16(model) -> None:
    done = run("--single-file", "a.safetensors")
    assert done.exit_code == 0, done.exception
    assert "a.safetensors: Stable Diffusion 1.x in fp16" in done.output
    assert "note: ComfyUI and A1111 know" in done.output  # the tiny model has a size of its own
    assert {tensor.dtype for tensor in load_file("a.safetensors").values()} == {torch.float16}
    assert not list(Path().glob("*.partial"))


def test_a_folder_in_another_precision_loads_in_diffusers(model) -> None:
    assert run("--diffusers", "out", "--dtype", "bf16").exit_code == 0
    pipeline = StableDiffusionPipeline.from_pretrained("out", torch_dtype=torch.bfloat16, use_safetensors=True)
    wanted = load_file(model / "unet/diffusion_pytorch_model.safetensors")
    for name, tensor in pipeline.unet.state_dict().items():
        assert torch.equal(tensor, wanted[name].bfloat16()), name


@pytest.mark.parametrize("option", ["--single-file", "--diffusers"])
def test_what_exists_is_kept_unless_forced(model, option) -> None:
    out = Path("out.safetensors")
    assert run(option, out).exit_code == 0
    kept = files(out) if out.is_dir() else out.read_bytes()
    refused = run(option, out, "--dtype", "fp32")
    assert refused.exit_code != 0
    assert all(word in str(refused.exception) for word in ("out.safetensors", "--force"))
    assert (files(out) if out.is_dir() else out.read_bytes()) == kept
    assert run(option, out, "--dtype", "fp32", "--force").exit_code == 0
    assert (files(out) if out.is_dir() else out.read_bytes()) != kept


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--single-file", "a.ckpt"), r"a\.ckpt: .*\.safetensors"),
        (("--single-file", "data/model/a.safetensors"), r"inside the model"),
        (("--single-file", "a.safetensors", "--model", "gone"), r"gone: no such folder.*t2i train"),
        (("--single-file", "a.safetensors", "--model", "data"), r"model_index\.json: missing"),
        (("--diffusers", "data/model", "--force"), r"is, holds or is inside the model"),
        (("--diffusers", "data", "--force"), r"is, holds or is inside the model"),
        (("--diffusers", "data/model/out"), r"is, holds or is inside the model"),
        (("--diffusers", "photos", "--force"), r"photos: exists already: give another name$"),
        (("--single-file", "photos.safetensors", "--force"), r"photos.safetensors: exists already: give another name$"),
    ],
)
def test_a_path_that_cannot_be_written_is_refused(model, arguments, said) -> None:
    Path("photos").mkdir()
    Path("photos.safetensors").mkdir()
    before = files(Path())
    done = run(*arguments)
    assert done.exit_code == 1
    with pytest.raises(ValueError, match=said):
        raise done.exception
    assert files(Path()) == before


@pytest.mark.parametrize("arguments", [(), ("--single-file", "a.safetensors", "--diffusers", "a")])
def test_one_of_both_forms_is_needed(model, arguments) -> None:
    assert run(*arguments).exit_code == 2


@pytest.mark.parametrize("option", ["--single-file", "--diffusers"])
def test_weights_too_large_for_fp16_leave_nothing(model, option) -> None:
    file = model / "unet/diffusion_pytorch_model.safetensors"
    save_file(load_file(file) | {"conv_in.bias": torch.full((8,), 7e4)}, file, {"format": "pt"})
    before = files(Path())
    done = run(option, "out.safetensors")
    assert done.exit_code == 1
    with pytest.raises(ValueError, match=r"bias .*not finite in fp16 \(largest magnitude 7e\+04\): use --dtype"):
        raise done.exception
    assert files(Path()) == before


def test_a_model_with_two_text_encoders_is_written_as_xl(tmp_path) -> None:
    base = tiny.make_sdxl(tmp_path / "base")
    done = run("--model", base, "--single-file", tmp_path / "a.safetensors", "--dtype", "fp32")
    assert done.exit_code == 0, done.exception
    assert "Stable Diffusion XL in fp32" in done.output


def test_the_refiner_is_refused(tmp_path) -> None:
    base = tiny.make_sdxl(tmp_path / "base")
    index = json.loads((base / "model_index.json").read_text())
    (base / "model_index.json").write_text(json.dumps(index | {"text_encoder": [None, None]}))
    done = run("--model", base, "--single-file", tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="has no text_encoder"):
        raise done.exception
