import json

import diffusers
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from t2i.model.families.stable_diffusion import Family as StableDiffusion
from tests import tiny
from tests.projects import DRAWING


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_settings_are_read_from_the_checkpoint(tmp_path, prediction_type) -> None:
    family = StableDiffusion(tiny.make_base(tmp_path, prediction_type=prediction_type))
    assert family.prediction_type == prediction_type
    assert (family.scaling_factor, family.shift_factor, family.vae_factor) == (0.18215, 0.0, 2)
    assert family.alphas_cumprod.dtype == torch.float32
    assert family.alphas_cumprod[-1] == pytest.approx(0.00466, rel=1e-2)  # SD's schedule


def test_decoded_moments_match_the_vae(tiny_base) -> None:
    family = StableDiffusion(tiny_base)
    vae, pixels = family.load_vae("cpu"), torch.rand(2, 3, 32, 32) * 2 - 1
    moments = family.encode_pixels(vae, pixels)
    latents = moments.chunk(2, dim=1)[0] * family.scaling_factor
    with torch.no_grad():
        torch.testing.assert_close(family.decode_latents(vae, latents), vae(pixels).sample)


def test_conditioning_matches_the_pipeline(tiny_base) -> None:
    family = StableDiffusion(tiny_base)
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_base, use_safetensors=True)
    captions = ["a red square", "b " * 40]
    theirs, empty = pipeline.encode_prompt(captions, "cpu", 1, do_classifier_free_guidance=True)
    text = family.load_text("cpu")
    torch.testing.assert_close(family.encode_prompts(text, captions)["encoder_hidden_states"], theirs)
    torch.testing.assert_close(family.encode_prompts(text, [""])["encoder_hidden_states"], empty[:1])
    assert family.count_truncated(text, captions) == 1


def test_export_replaces_only_the_unet(tiny_base, tmp_path) -> None:
    family = StableDiffusion(tiny_base)
    weights = {name: weight + 1 for name, weight in family.load_unet(random=False).state_dict().items()}
    family.export(weights, tmp_path / "out", "fp32")
    assert all(
        torch.equal(value, weights[name])
        for name, value in StableDiffusion(tmp_path / "out").load_unet(random=False).state_dict().items()
    )
    for part in ("vae/diffusion_pytorch_model", "text_encoder/model"):
        old, new = (load_file(folder / f"{part}.safetensors") for folder in (tiny_base, tmp_path / "out"))
        assert all(torch.equal(old[name], new[name]) for name in old)


def test_a_float16_checkpoint_is_exported_as_float32(tiny_base, tmp_path) -> None:
    StableDiffusionPipeline.from_pretrained(tiny_base, dtype=torch.float16).save_pretrained(tmp_path / "half")
    assert json.loads((tmp_path / "half" / "text_encoder" / "config.json").read_text())["dtype"] == "float16"
    family = StableDiffusion(tmp_path / "half")
    family.export(family.load_unet(random=False).state_dict(), tmp_path / "out", "fp32")
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "out", use_safetensors=True)
    parts = (pipeline.unet, pipeline.vae, pipeline.text_encoder)
    assert {weight.dtype for part in parts for weight in part.parameters()} == {torch.float32}
    assert len(pipeline(["a red square"], num_inference_steps=1, height=32, width=32).images) == 1


@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "PNDMScheduler"])
def test_an_export_samples_with_its_training_schedule(tmp_path, scheduler) -> None:
    base = tiny.make_base(tmp_path / "base")
    pipeline = StableDiffusionPipeline.from_pretrained(base, use_safetensors=True)
    schedule = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    schedule |= {"clip_sample": False} if scheduler == "DDIMScheduler" else {"skip_prk_steps": True}
    pipeline.scheduler = getattr(diffusers, scheduler)(**schedule)
    pipeline.save_pretrained(base)
    changes = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    family = StableDiffusion(base, changes)
    assert (family.prediction_type, family.alphas_cumprod[-1].item()) == ("v_prediction", 0)
    family.export(family.load_unet(random=False).state_dict(), tmp_path / "out", "fp32")
    exported = StableDiffusionPipeline.from_pretrained(tmp_path / "out", use_safetensors=True)
    assert isinstance(exported.scheduler, diffusers.DDIMScheduler)  # PNDMScheduler does not support zero terminal SNR
    assert changes.items() <= dict(exported.scheduler.config).items()
    assert exported.scheduler.alphas_cumprod[-1] == 0
    assert exported.scheduler.config.clip_sample is False
    assert StableDiffusion(tmp_path / "out").prediction_type == "v_prediction"
    assert len(exported(["a red square"], num_inference_steps=2, height=32, width=32).images) == 1


def test_caches_of_another_base_are_refused(tiny_base) -> None:
    family = StableDiffusion(tiny_base)
    unet, text = family.load_unet(random=False), {"encoder_hidden_states": torch.zeros(1, 16, 24)}
    with pytest.raises(ValueError, match=r"\b8 channels .*: 24}, .* 4 and .*: 16}: .*`dvc repro`"):
        family.check_fit(unet, torch.zeros(1, 16, 4, 4), text)


def test_an_image_depends_only_on_its_noise_and_prompt(tiny_base) -> None:
    family = StableDiffusion(tiny_base)

    def drawn(*seeds: int) -> list[bytes]:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return [image.tobytes() for image in family.sample([f"square {seed}" for seed in seeds], generators, DRAWING)]

    together, alone = drawn(1, 2, 3), drawn(2)
    assert max(abs(x - y) for x, y in zip(together[1], alone[0], strict=True)) <= 1
    assert together[0] != together[1]
