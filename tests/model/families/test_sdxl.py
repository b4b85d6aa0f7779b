"""Family `sdxl`, compared with StableDiffusionXLPipeline and with the script train_text_to_image_sdxl.py."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.training_utils import compute_snr
from PIL import Image

from t2i.data.cached import CachedRecords
from t2i.data.crops import Geometry, covering
from t2i.data.order import Global
from t2i.data.pixels import to_pixels, view
from t2i.model.families.sdxl import Family as Sdxl
from t2i.model.family import check_base
from t2i.train.objective import Objective, ObjectiveSection
from tests import tiny
from tests.projects import DRAWING, PLAIN

CAPTIONS = ["a red square", "b " * 40, "!"]


@pytest.fixture
def pipeline(tiny_sdxl) -> Any:
    return StableDiffusionXLPipeline.from_pretrained(tiny_sdxl, use_safetensors=True, add_watermarker=False)


def encoded(pipeline: Any, **options: Any) -> dict[str, Any]:
    """Returns what the pipeline computes from captions and negative prompts."""
    found = pipeline.encode_prompt(CAPTIONS, device="cpu", do_classifier_free_guidance=True, **options)
    names = ("encoder_hidden_states", "negative_encoder_hidden_states", "text_embeds", "negative_text_embeds")
    return dict(zip(names, found, strict=True))


def test_settings_are_read_from_the_checkpoint(tiny_sdxl) -> None:
    family = Sdxl(tiny_sdxl)
    assert (family.scaling_factor, family.prediction_type, family.vae_factor) == (0.13025, "epsilon", 2)


def test_conditioning_matches_the_pipeline(tiny_sdxl, pipeline) -> None:
    family = Sdxl(tiny_sdxl)
    text, theirs = family.load_text("cpu"), encoded(pipeline)
    ours = family.encode_prompts(text, CAPTIONS)
    assert ours["encoder_hidden_states"].shape == (3, 16, 16 + 24)
    assert ours["text_embeds"].shape == (3, 12)
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name])
    assert family.count_truncated(text, CAPTIONS) == 1
    negative = family.encode_prompts(text, ["a circle"])
    theirs = encoded(pipeline, negative_prompt=["a circle"] * 3)
    for name, tensor in negative.items():
        torch.testing.assert_close(tensor.expand_as(theirs[name]), theirs[f"negative_{name}"])


@pytest.mark.parametrize("zeros", [True, False])
def test_the_empty_prompt_is_that_of_the_pipeline(tmp_path, zeros) -> None:
    base = tiny.make_sdxl(tmp_path, zeros=zeros)
    family, theirs = Sdxl(base), encoded(StableDiffusionXLPipeline.from_pretrained(base, add_watermarker=False))
    ours = family.encode_empty_prompt(family.load_text("cpu"))
    assert ours.keys() == {"encoder_hidden_states", "text_embeds"}
    for name, tensor in ours.items():
        assert tensor.any().item() is not zeros
        torch.testing.assert_close(tensor.expand_as(theirs[f"negative_{name}"]), theirs[f"negative_{name}"])


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("size", [(32, 32), (32, 48), (48, 32)])
def test_time_ids_say_where_the_script_would_crop(tiny_sdxl, flipped, size) -> None:
    """The script resizes, flips, and then crops at (top, left): there are the pixels of our view."""
    down, across = np.mgrid[0:100, 0:150]
    image = Image.fromarray(np.stack([down * 2, across, down + across], axis=-1).astype(np.uint8))
    seen = view(image, size, "lanczos", (0.25, 0.25), flipped)
    family = Sdxl(tiny_sdxl)
    latents = (size[0] // family.vae_factor, size[1] // family.vae_factor)
    ids = family.view_conditioning(seen.geometry, latents)["time_ids"]
    original_height, original_width, top, left, height, width = ids.int().tolist()
    assert ids.dtype == torch.float32
    assert ((original_height, original_width), (height, width)) == ((100, 150), size)
    resized = to_pixels(image.resize(covering((100, 150), size)[::-1], Image.Resampling.LANCZOS))
    resized = resized.flip(-1) if flipped else resized
    cropped = resized[:, top : top + height, left : left + width]
    assert top + left > 0 or size == (32, 48)
    torch.testing.assert_close(seen.pixels, cropped, atol=2.5 / 127.5, rtol=0)


@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction"])
def test_the_loss_matches_the_diffusers_script(project, tmp_path, predicts) -> None:
    base = tiny.make_sdxl(tmp_path / "xl", prediction_type=predicts, zero_terminal_snr=predicts == "v_prediction")
    project.params["base"] |= {"family": "sdxl", "local": str(base), "clip": str(base / "clip")}
    project.params["encode"]["images"] |= {"crop": {"name": "random", "views": 3}, "flip": True, "resolution_px": [32, 24]}
    project.write()
    project.fetch_and_encode()
    data = project.folder / "data"
    section = ObjectiveSection(**(PLAIN | {"weighting": {"name": "min_snr", "gamma": 5.0}}))
    family = Sdxl(data / "base")
    objective = Objective(section, family, "cpu")
    records = CachedRecords(data / "latents", data / "embeds", "train")
    batch = objective.batches(records, Global(name="global"), 8, True, 0.3, seed=1).of_step(0, range(8))
    dropped = (batch.conditioning["encoder_hidden_states"] == 0).flatten(1).all(dim=1)
    assert dropped.any()
    assert torch.equal(dropped, (batch.conditioning["text_embeds"] == 0).all(dim=1))  # text and pooled together
    assert (batch.conditioning["time_ids"][:, 4:] == torch.tensor([32.0, 24.0])).all()  # kept
    assert len(batch.conditioning["time_ids"].unique(dim=0)) > 2
    ours, _ = objective.loss(family.load_unet(random=False), batch)

    scheduler = DDPMScheduler.from_pretrained(data / "base", subfolder="scheduler")
    mean, logvar = batch.moments.chunk(2, dim=1)
    latents = (mean + torch.exp(0.5 * logvar) * batch.draws.epsilon) * 0.13025
    noise, timesteps = batch.draws.noise, batch.draws.timesteps
    target = noise if predicts == "epsilon" else scheduler.get_velocity(latents, noise, timesteps)
    added = {name: batch.conditioning[name] for name in ("time_ids", "text_embeds")}
    prediction = UNet2DConditionModel.from_pretrained(data / "base", subfolder="unet")(
        scheduler.add_noise(latents, noise, timesteps),
        timesteps,
        batch.conditioning["encoder_hidden_states"],
        added_cond_kwargs=added,
    ).sample
    ratio = compute_snr(scheduler, timesteps)
    weights = ratio.clamp(max=5.0) / (ratio if predicts == "epsilon" else ratio + 1)
    errors = (prediction - target).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(ours, (weights * errors).mean(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("negative_prompt", [None, "a circle"])
def test_sampling_from_cached_embeddings_matches_the_pipeline(tiny_sdxl, pipeline, negative_prompt) -> None:
    family = Sdxl(tiny_sdxl)
    text, noise = family.load_text("cpu"), torch.randn(3, 4, 16, 24, generator=torch.Generator().manual_seed(0))
    empty = family.encode_empty_prompt(text) if negative_prompt is None else family.encode_prompts(text, [negative_prompt])
    settings: dict[str, Any] = {"num_inference_steps": 3, "guidance_scale": 3.0}
    generators = [torch.Generator().manual_seed(seed) for seed in range(3)]
    ours = family.sample_latents(
        family.load_unet(random=False), family.encode_prompts(text, CAPTIONS), empty, noise, generators, **settings
    )
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        CAPTIONS,
        negative_prompt=None if negative_prompt is None else [negative_prompt] * 3,
        latents=noise,
        height=32,
        width=48,
        output_type="latent",
        **settings,
    ).images
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("negative_prompt", ["", "a circle"])
def test_images_are_those_of_the_pipeline(tiny_sdxl, pipeline, negative_prompt) -> None:
    settings: dict[str, Any] = {"num_inference_steps": 2, "guidance_scale": 3.0}

    def generators() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in range(3)]

    how = replace(DRAWING, size_px=(32, 48), negative_prompt=negative_prompt, **settings)
    ours = Sdxl(tiny_sdxl).sample(CAPTIONS, generators(), how)
    negatives = [negative_prompt] * 3 if negative_prompt else None
    theirs = pipeline(CAPTIONS, negative_prompt=negatives, generator=generators(), height=32, width=48, **settings).images
    for one, other in zip(ours, theirs, strict=True):
        assert one.size == (48, 32)
        assert np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).max() <= 1


def test_autocast_does_not_reach_the_vae(tiny_sdxl) -> None:
    family = Sdxl(tiny_sdxl)
    vae, latents = family.load_vae("cpu"), torch.randn(1, 4, 8, 8)
    alone = family.decode_latents(vae, latents)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(family.decode_latents(vae, latents), alone)


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_an_export_loads_in_the_pipeline_with_its_precision(tiny_sdxl, tmp_path, precision, dtype) -> None:
    changes = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    family = Sdxl(tiny_sdxl, changes)
    weights = {name: weight + 1 for name, weight in family.load_unet(random=False).state_dict().items()}
    family.export(weights, tmp_path / "out", precision)
    exported = StableDiffusionXLPipeline.from_pretrained(tmp_path / "out", torch_dtype=dtype, add_watermarker=False)
    for part in (exported.unet, exported.vae, exported.text_encoder, exported.text_encoder_2):
        assert {weight.dtype for weight in part.parameters()} == {dtype}
    for name, weight in exported.unet.state_dict().items():
        assert torch.equal(weight, weights[name].to(dtype))
    assert changes.items() <= dict(exported.scheduler.config).items()
    assert isinstance(exported.scheduler, diffusers.EulerDiscreteScheduler)
    if precision == "fp32":
        assert len(exported(["a red square"], num_inference_steps=2, height=32, width=48).images) == 1


def test_a_weight_too_large_for_fp16_is_refused(tiny_sdxl, tmp_path) -> None:
    family = Sdxl(tiny_sdxl)
    weights = dict(family.load_unet(random=False).state_dict())
    weights["conv_in.bias"] = torch.full_like(weights["conv_in.bias"], 1e6)
    with pytest.raises(ValueError, match=r"unet/.*: conv_in.bias .*fp16.*1e\+06.*`train.export_dtype` to bf16"):
        family.export(weights, tmp_path / "out", "fp16")


def edited(base: Path, to: Path, file: str, **values: Any) -> Path:
    shutil.copytree(base, to)
    (to / file).write_text(json.dumps(json.loads((to / file).read_text()) | values))
    return to


@pytest.mark.parametrize(
    ("file", "values", "said"),
    [
        ("unet/config.json", {"addition_embed_type": None}, "unet: .*wanted 'text_time'"),
        ("unet/config.json", {"addition_embed_type": "text"}, "unet: .*wanted 'text_time'"),
        ("unet/config.json", {"in_channels": 9}, "unet: takes 9 channels .* inpainting"),
        ("unet/config.json", {"projection_class_embeddings_input_dim": 30}, "unet: cannot be called"),
        ("unet/config.json", {"cross_attention_dim": 16}, "unet: .*width 16 .* gives 40"),
        ("tokenizer_2/tokenizer_config.json", {"model_max_length": 12}, "tokenizer, tokenizer_2: .* 16 and 12"),
        ("text_encoder_2/config.json", {"architectures": ["CLIPTextModel"]}, "text_encoder_2: .*WithProjection"),
        ("vae/config.json", {"scaling_factor": None}, "vae/config.json: .*scaling_factor"),
        ("vae/config.json", {"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}, "vae/config.json: .*Playground"),
        ("model_index.json", {"text_encoder": [None, None], "tokenizer": [None, None]}, "family sdxl cannot train"),
    ],
)
def test_a_base_that_cannot_be_trained_is_refused(tiny_sdxl, tmp_path, file, values, said) -> None:
    with pytest.raises(ValueError, match=said):
        check_base("sdxl", edited(tiny_sdxl, tmp_path / "base", file, **values))


def test_caches_of_stable_diffusion_are_refused(tiny_sdxl) -> None:
    family = Sdxl(tiny_sdxl)
    unet = family.load_unet(random=False)
    conditioning = {"encoder_hidden_states": torch.zeros(16, 16)} | family.view_conditioning(
        Geometry((32, 32), (0, 0), False), (16, 16)
    )
    with pytest.raises(ValueError, match=r"widths .*: 16.* but the UNet .*: 40.*`dvc repro`"):
        family.check_fit(unet, torch.zeros(1, 8, 4, 4), conditioning)


def test_another_vae_keeps_its_scaling(tiny_sdxl, tmp_path) -> None:
    base = shutil.copytree(tiny_sdxl, tmp_path / "base")
    vae = AutoencoderKL.from_config(AutoencoderKL.load_config(base / "vae") | {"scaling_factor": 0.5})
    shutil.rmtree(base / "vae")
    vae.save_pretrained(base / "vae")
    assert Sdxl(base).scaling_factor == 0.5
