"""Single files: what diffusers and small readers, which import nothing of t2i, make of them."""

import hashlib
import json
import shutil
import struct

import diffusers
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
    infer_diffusers_model_type,
)
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from t2i.fetch.base import fetch_base
from t2i.model.single_file import LAYOUTS
from t2i.tools.published import SIZES, VAE
from t2i.tools.single_file import original_tensors, stored_tensors, write_single_file
from tests import tiny
from tests.projects import base_section

BASES = {
    "SD1": lambda folder: tiny.make_base(folder, text_layers=2),
    "SD2": lambda folder: tiny.make_base(folder, text_layers=2, linear=True),
    "SDXL": lambda folder: tiny.make_sdxl(folder),
}


@pytest.fixture(scope="module", params=BASES)
def base(request, tmp_path_factory):
    return BASES[request.param](tmp_path_factory.mktemp("bases") / request.param)


def written(base, tmp_path, precision="fp32"):
    write_single_file(base, stored_tensors(base / "unet"), tmp_path / "a.safetensors", precision, {})
    return tmp_path / "a.safetensors"


def images(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipeline("square 1", num_inference_steps=3, height=32, width=32, generator=generator, output_type="pt").images


def test_diffusers_draws_the_same_from_the_file(base, tmp_path) -> None:
    kind = getattr(diffusers, json.loads((base / "model_index.json").read_text())["_class_name"])
    read = kind.from_single_file(str(written(base, tmp_path)), config=str(base), local_files_only=True)
    torch.testing.assert_close(images(read), images(kind.from_pretrained(base)), atol=1e-5, rtol=0)


def test_the_weights_of_the_unet_may_be_others(base, tmp_path) -> None:
    unet = {name: tensor + 1 for name, tensor in stored_tensors(base / "unet").items()}
    write_single_file(base, unet, tmp_path / "a.safetensors", "fp32", {})
    config = json.loads((base / "unet/config.json").read_text())
    read = convert_ldm_unet_checkpoint(load_file(tmp_path / "a.safetensors"), config)
    assert read.keys() == unet.keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in unet.items())


def test_both_names_of_a_text_encoder_give_the_same_file(base, tmp_path) -> None:
    files = []
    for prefix in ("text_model.", ""):  # transformers writes the first or the second, depending on its version
        other = shutil.copytree(base, tmp_path / f"base-{prefix}")
        file = other / "text_encoder/model.safetensors"
        tensors = {f"{prefix}{name.removeprefix('text_model.')}": tensor for name, tensor in load_file(file).items()}
        save_file(tensors, file, {"format": "pt"})
        files.append(written(other, tmp_path / f"out-{prefix}").read_bytes())
    assert files[0] == files[1]


def test_old_names_of_the_vae_give_the_same_file(base, tmp_path) -> None:
    other, new = (
        shutil.copytree(base, tmp_path / "old"),
        {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"},
    )
    file = other / "vae/diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    renamed = {}
    for name, tensor in tensors.items():
        for theirs, old in new.items():
            name = name.replace(f".{theirs}.", f".{old}.")
        renamed[name] = tensor
    assert renamed.keys() != tensors.keys()
    save_file(renamed, file, {"format": "pt"})
    assert written(base, tmp_path).read_bytes() == written(other, tmp_path / "other").read_bytes()


def header(file):
    with file.open("rb") as opened:
        (size,) = struct.unpack("<Q", opened.read(8))
        return json.loads(opened.read(size))


def test_the_header_names_the_model_and_no_path(tmp_path) -> None:
    for name, make in BASES.items():
        stated = header(written(make(tmp_path / name), tmp_path / "out"))["__metadata__"]
        assert stated == {
            "format": "pt",
            "modelspec.sai_model_spec": "1.0.1",
            "modelspec.architecture": {
                "SD1": "stable-diffusion-v1",
                "SD2": "stable-diffusion-v2-512",
                "SDXL": "stable-diffusion-xl-v1-base",
            }[name],
            "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
            "modelspec.title": "a",
            "modelspec.prediction_type": "epsilon",
            "modelspec.resolution": "32x32",
        }


@pytest.mark.parametrize("zero_snr", [False, True])
def test_v_prediction_is_marked_by_empty_tensors(tmp_path, zero_snr) -> None:
    base = tiny.make_sdxl(tmp_path / "base", prediction_type="v_prediction", zero_terminal_snr=zero_snr)
    file = written(base, tmp_path)
    tensors = load_file(file)
    assert tensors["v_pred"].numel() == 0
    assert ("ztsnr" in tensors) is zero_snr
    assert header(file)["__metadata__"]["modelspec.prediction_type"] == "v"


def test_v_prediction_without_xl_is_noted(tmp_path) -> None:
    base = tiny.make_base(tmp_path / "base", prediction_type="v_prediction", linear=True)
    done = write_single_file(base, stored_tensors(base / "unet"), tmp_path / "a.safetensors", "fp16", {})
    assert any("ModelSamplingDiscrete" in note for note in done.notes)
    assert header(tmp_path / "a.safetensors")["__metadata__"]["modelspec.architecture"] == "stable-diffusion-v2-768-v"


def test_weights_too_large_for_fp16_are_named_and_leave_no_file(tmp_path) -> None:
    base = tiny.make_base(tmp_path / "base")
    unet = dict(stored_tensors(base / "unet")) | {"conv_in.bias": torch.full((8,), 7e4)}
    with pytest.raises(ValueError, match=r"input_blocks\.0\.0\.bias .*7e\+04.* --dtype"):
        write_single_file(base, unet, tmp_path / "out/a.safetensors", "fp16", {})
    assert not list((tmp_path / "out").iterdir())
    write_single_file(base, unet, tmp_path / "out/a.safetensors", "bf16", {})


def test_a_unet_that_no_single_file_has_is_refused(tmp_path) -> None:
    base = tiny.make_base(tmp_path / "base")
    config = json.loads((base / "unet/config.json").read_text())
    (base / "unet/config.json").write_text(json.dumps(config | {"resnet_time_scale_shift": "scale_shift"}))
    with pytest.raises(ValueError, match=r"resnet_time_scale_shift 'scale_shift'"):
        written(base, tmp_path)


def test_layers_removed_by_clip_skip_are_put_back_without_effect(tmp_path) -> None:
    whole = tiny.make_base(tmp_path / "whole", text_layers=3)
    fetch_base(base_section(local=whole, clip_skip=1), tmp_path / "cut", tmp_path / "clip")
    file, kind = written(tmp_path / "cut", tmp_path), diffusers.StableDiffusionPipeline
    assert "cond_stage_model.transformer.text_model.encoder.layers.2.mlp.fc1.weight" in load_file(file)
    read = kind.from_single_file(str(file), config=str(whole), local_files_only=True)  # three layers, as ComfyUI builds them
    torch.testing.assert_close(images(read), images(kind.from_pretrained(tmp_path / "cut")), atol=1e-5, rtol=0)
    assert not torch.allclose(images(read), images(kind.from_pretrained(whole)), atol=1e-3)


TEXT = {
    name: {f"text_encoder{f'_{n}' if n > 1 else ''}": CLIPTextConfig(**text) for n, text in enumerate(size.text, start=1)}
    for name, size in SIZES.items()
}


def full_size(name):
    """Returns the tensors of a published checkpoint's size in a single file, and its parts."""
    with torch.device("meta"):
        built = {"unet": UNet2DConditionModel(**SIZES[name].unet), "vae": AutoencoderKL(**VAE)}
        for part, config in TEXT[name].items():
            built[part] = (CLIPTextModelWithProjection if part == "text_encoder_2" else CLIPTextModel)(config)
    layout = LAYOUTS[{"sd15": "sd1", "sd21": "sd2", "sdxl": "sdxl"}[name]]
    tensors, configs = (
        {k: v.state_dict() for k, v in built.items()},
        {k: dict(v.config.to_dict() if k in TEXT[name] else v.config) for k, v in built.items()},
    )
    return {key: make() for key, make in original_tensors(layout, tensors, configs).items()}, built


# Of sd_xl_base_1.0, which has 2515 tensors, position_ids and logit_scale are left out; of v1-5-pruned-emaonly, which has 1131,
# position_ids. Of v2-1_768, logit_scale and the last of 24 layers are left out, which no program uses.
PUBLISHED = {
    "sd15": ("v1", 1131 - 1, 686, "178dd4a5d29c415c68771239b583291cb8930a0a00ee95044e9dbee5908ecc1c"),
    "sd21": ("v2", 686 + 248 + 23 * 12 + 4, 686, "6dad2e8f8dde21a2b9b96f199919d44105fb15eb4c0f754aed58ec4e74f8be7a"),
    "sdxl": ("xl_base", 2515 - 2, 1680, "f31794c62d5f62858797dbab4585f9f7baf7c18d520badc4551897edca171c6f"),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_names_at_full_size_are_those_of_the_published_files(name) -> None:
    kind, count, of_unet, names_sha256 = PUBLISHED[name]
    tensors, _ = full_size(name)
    counts = [sum(key.startswith(prefix) for key in tensors) for prefix in ("model.diffusion_model.", "first_stage_model.")]
    assert [len(tensors), *counts] == [count, of_unet, 248]
    assert infer_diffusers_model_type(tensors) == kind
    assert hashlib.sha256("\n".join(sorted(tensors)).encode()).hexdigest() == names_sha256


@pytest.mark.parametrize("name", SIZES)
def test_diffusers_converts_each_part_back_at_full_size(name) -> None:
    tensors, built = full_size(name)
    text = "conditioner.embedders.1.model." if name == "sdxl" else "cond_stage_model.model."
    read = {
        "unet": convert_ldm_unet_checkpoint(tensors, built["unet"].config),
        "vae": convert_ldm_vae_checkpoint(tensors, built["vae"].config),
    }
    if name != "sd15":
        part = "text_encoder_2" if name == "sdxl" else "text_encoder"
        read[part] = convert_open_clip_checkpoint(built[part], tensors, prefix=text)
    for part, found in read.items():
        wanted = {key: tuple(tensor.shape) for key, tensor in built[part].state_dict().items()}
        ours = {
            key.removeprefix("text_model.") if part == "text_encoder" else key: tuple(tensor.shape)
            for key, tensor in found.items()
        }
        assert ours == wanted, part


def detected(tensors):
    """Returns what ComfyUI recognizes a UNet by: channels, width of the embeddings, projections, label width, transformers."""
    unet = {
        key.removeprefix("model.diffusion_model."): tensor for key, tensor in tensors.items() if key.startswith("model.diff")
    }
    depths, context, linear = [], None, False
    for step in range(1, 100):
        if f"input_blocks.{step}.0.in_layers.0.weight" in unet:
            blocks = {key.split(".")[4] for key in unet if key.startswith(f"input_blocks.{step}.1.transformer_blocks.")}
            depths.append(len(blocks))
            if blocks:
                context = unet[f"input_blocks.{step}.1.transformer_blocks.0.attn2.to_k.weight"].shape[1]
                linear = unet[f"input_blocks.{step}.1.proj_in.weight"].ndim == 2
    label = unet["label_emb.0.0.weight"].shape[1] if "label_emb.0.0.weight" in unet else None
    return unet["input_blocks.0.0.weight"].shape[0], context, linear, label, depths


@pytest.mark.parametrize(
    ("name", "recognized"),
    [
        ("sd15", (320, 768, False, None, [1, 1, 1, 1, 1, 1, 0, 0])),
        ("sd21", (320, 1024, True, None, [1, 1, 1, 1, 1, 1, 0, 0])),
        ("sdxl", (320, 2048, True, 2816, [0, 0, 2, 2, 10, 10])),
    ],
)
def test_comfyui_would_recognize_the_published_sizes(name, recognized) -> None:
    assert detected(full_size(name)[0]) == recognized
