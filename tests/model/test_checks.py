"""What `fetch base` and `doctor` say about a base before anything is copied or encoded."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
from diffusers import AutoencoderKL, UNet2DConditionModel

from t2i.model.family import check_base
from tests import tiny

Change = Callable[[Path], object]


def put(file: str, **values: Any) -> Change:
    """Returns a change that writes values into a JSON file of a pipeline."""

    def change(base: Path) -> None:
        content = json.loads((base / file).read_text())
        (base / file).write_text(json.dumps(content | values))

    return change


def without(file: str, *names: str) -> Change:
    def change(base: Path) -> None:
        content = json.loads((base / file).read_text())
        (base / file).write_text(json.dumps({name: value for name, value in content.items() if name not in names}))

    return change


def unet(**changes: Any) -> Change:
    """Returns a change that replaces the UNet, with weights that fit its configuration."""

    def change(base: Path) -> None:
        config = UNet2DConditionModel.load_config(base / "unet") | changes
        shutil.rmtree(base / "unet")
        UNet2DConditionModel.from_config(config).save_pretrained(base / "unet")

    return change


def vae(**changes: Any) -> Change:
    def change(base: Path) -> None:
        config = AutoencoderKL.load_config(base / "vae") | changes
        shutil.rmtree(base / "vae")
        AutoencoderKL.from_config(config).save_pretrained(base / "vae")

    return change


def scheduler(name: str, **config: Any) -> Change:
    def change(base: Path) -> None:
        put("model_index.json", scheduler=["diffusers", name])(base)
        if config:
            (base / "scheduler/scheduler_config.json").write_text(json.dumps(config))

    return change


def removed(file: str) -> Change:
    return lambda base: (base / file).unlink()


def put_words(file: str) -> Change:
    """Returns a change that leaves a tokenizer without words."""

    def change(base: Path) -> None:
        content = json.loads((base / file).read_text())
        content["model"]["vocab"] = {}
        (base / file).write_text(json.dumps(content))

    return change


def tokenizer_files(*kept: str) -> Change:
    """Returns a change that leaves the tokenizer its configuration and the given files, written anew."""

    def change(base: Path) -> None:
        tokenizer = json.loads((base / "tokenizer/tokenizer.json").read_text())
        (base / "tokenizer/vocab.json").write_text(json.dumps(tokenizer["model"]["vocab"]))
        (base / "tokenizer/merges.txt").write_text("#version: 0.2\n")
        for file in (base / "tokenizer").iterdir():
            if file.name not in (*kept, "tokenizer_config.json"):
                file.unlink()

    return change


SDXL = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 64,
}
REFUSED: dict[str, tuple[Change, str]] = {
    "inpainting": (unet(in_channels=9), r"unet: takes 9 channels .*wanted 4.*inpainting.*base.hub"),
    "pix2pix": (unet(in_channels=8), r"unet: takes 8 channels .*wanted 4.*InstructPix2Pix"),
    "upscaler": (unet(in_channels=7, num_class_embeds=10), r"unet: takes 7 channels .*enlarges"),
    "depth": (unet(in_channels=5), r"unet: takes 5 channels .*depth"),
    "learned variance": (unet(out_channels=8), r"unet: takes 4 channels and returns 8, wanted 4"),
    "another VAE": (vae(latent_channels=16), r"unet: takes 4 channels and returns 4, wanted 16.*different models"),
    "width": (unet(cross_attention_dim=24), r"unet: .*width 24 \(cross_attention_dim\).* gives 16"),
    "widths of blocks": (unet(cross_attention_dim=[16, 24]), r"unet: .*cross_attention_dim.* gives 16"),
    "SDXL-like": (unet(**SDXL), r"unet: .*more inputs \(addition_embed_type 'text_time'\)"),
    "class labels": (unet(num_class_embeds=10), r"unet: .*more inputs \(num_class_embeds 10\)"),
    "unCLIP": (
        unet(class_embed_type="projection", projection_class_embeddings_input_dim=32),
        r"unet: .*more inputs \(class_embed_type 'projection'\)",
    ),
    "image prompt": (
        unet(encoder_hid_dim=32, encoder_hid_dim_type="image_proj"),
        r"unet: .*more inputs \(encoder_hid_dim_type 'image_proj'\)",
    ),
    "an unknown block": (
        put("unet/config.json", down_block_types=["DownBlock2D", "Unknown"]),
        r"unet: .*UNet2DConditionModel .*built.*Unknown.*restore",
    ),
    "a UNet of video": (put("unet/config.json", _class_name="UNet3DConditionModel"), r"unet: is a UNet3DConditionModel"),
    "a UNet of Flax": (put("unet/config.json", _class_name="FlaxUNet2DConditionModel"), r"unet: is a FlaxUNet2DConditionModel"),
    "a quantized UNet": (put("unet/config.json", quantization_config={"quant_method": "gguf"}), r"unet: .*quantized"),
    "weights of another UNet": (put("unet/config.json", block_out_channels=[8, 32]), r"unet: .*config.json"),
    "a config that is a list": (
        lambda base: (base / "unet/config.json").write_text("[1]"),
        r"unet/config.json: got a JSON list",
    ),
    "projection": (
        put("text_encoder/config.json", architectures=["CLIPTextModelWithProjection"]),
        r"text_encoder: is a CLIPTextModelWithProjection, wanted a CLIPTextModel; .*save_pretrained",
    ),
    "projection in the index": (
        put("model_index.json", text_encoder=["transformers", "CLIPTextModelWithProjection"]),
        r"text_encoder: is a CLIPTextModelWithProjection.*model_index.json",
    ),
    "T5": (put("text_encoder/config.json", architectures=["T5EncoderModel"]), r"text_encoder: is a T5EncoderModel"),
    "a null scale": (put("vae/config.json", scaling_factor=None), r"vae/config.json: got scaling_factor = None.*0.18215"),
    "a scale of 0": (put("vae/config.json", scaling_factor=0), r"vae/config.json: got scaling_factor = 0"),
    "a scale in words": (put("vae/config.json", scaling_factor="0.18"), r"vae/config.json: got scaling_factor = '0.18'"),
    "a tiny VAE": (put("vae/config.json", _class_name="AutoencoderTiny"), r"vae: is a AutoencoderTiny, wanted a AutoencoderKL"),
    "grey images": (vae(in_channels=1, out_channels=1), r"vae/config.json: got 1 and 1 channels .*wanted 3"),
    "no scheduler of this name": (scheduler("NoSuchScheduler"), r"scheduler: diffusers .* 'NoSuchScheduler'.*DDIMScheduler"),
    "no scheduler at all": (scheduler("UNet2DConditionModel"), r"scheduler: diffusers .* 'UNet2DConditionModel'"),
    "flow matching": (
        scheduler("FlowMatchEulerDiscreteScheduler", num_train_timesteps=1000, shift=3.0),
        r"scheduler: FlowMatchEulerDiscreteScheduler .*noise schedule.*DDIMScheduler",
    ),
    "EDM": (scheduler("EDMEulerScheduler", sigma_min=0.002), r"scheduler: EDMEulerScheduler .*noise schedule"),
    "an unknown schedule": (
        put("scheduler/scheduler_config.json", beta_schedule="unknown"),
        r"scheduler: DDIMScheduler cannot be built from scheduler_config.json .*unknown",
    ),
    "a schedule in words": (
        put("scheduler/scheduler_config.json", num_train_timesteps="1000"),
        r"scheduler: DDIMScheduler cannot be built",
    ),
    "no prediction of images": (
        put("scheduler/scheduler_config.json", prediction_type="sample"),
        r"prediction type is 'sample', wanted epsilon or v_prediction",
    ),
    "no maximum length": (
        without("tokenizer/tokenizer_config.json", "model_max_length"),
        r'tokenizer/tokenizer_config.json: got model_max_length none.*"model_max_length": 16',
    ),
    "no configuration of the tokenizer": (removed("tokenizer/tokenizer_config.json"), r"tokenizer.* got model_max_length none"),
    "too great a length": (
        put("tokenizer/tokenizer_config.json", model_max_length=77),
        r"tokenizer/tokenizer_config.json: got model_max_length 77, wanted .* 16",
    ),
    "a length in words": (
        put("tokenizer/tokenizer_config.json", model_max_length="sixteen"),
        r"tokenizer.*(sixteen|cannot be loaded)",
    ),
    "no padding": (put("tokenizer/tokenizer_config.json", pad_token=None), r"tokenizer.*padding token"),
    "vocabulary alone": (tokenizer_files("vocab.json"), r"tokenizer/merges.txt: missing"),
    "merges alone": (tokenizer_files("merges.txt"), r"tokenizer/vocab.json: missing"),
    "no tokenizer": (tokenizer_files(), r"tokenizer/vocab.json: missing"),
    "flow matching by a flag": (
        scheduler("UniPCMultistepScheduler", use_flow_sigmas=True),
        r"scheduler: UniPC.*noise schedule",
    ),
    "an inverse scheduler": (
        scheduler("DDIMInverseScheduler"),
        r"scheduler: DDIMInverseScheduler does not draw.*DDIMScheduler",
    ),
    "a scheduler of audio": (scheduler("IPNDMScheduler"), r"scheduler: IPNDMScheduler does not draw"),
    "a schedule of one step": (
        put("scheduler/scheduler_config.json", trained_betas=[0.1]),
        r"scheduler: .*1 values.*wanted 1000",
    ),
    "a schedule without noise": (put("scheduler/scheduler_config.json", beta_start=0.0), r"scheduler: .* from 1 to .*below 1"),
    "an unknown spacing": (
        put("scheduler/scheduler_config.json", timestep_spacing="bogus"),
        r"scheduler: DDIMScheduler cannot be built.*bogus",
    ),
    "epsilon at zero terminal SNR": (
        put("scheduler/scheduler_config.json", rescale_betas_zero_snr=True),
        r"epsilon does not work at zero terminal SNR.*scheduler_config.json",
    ),
    "a length of 0": (
        put("tokenizer/tokenizer_config.json", model_max_length=0),
        r"model_max_length 0, wanted a number from 3",
    ),
    "no words": (put_words("tokenizer/tokenizer.json"), r"tokenizer/tokenizer.json: no words"),
    "an unknown activation": (put("text_encoder/config.json", hidden_act="zz"), r"tokenizer, text_encoder: .*zz.*restore"),
    "a class that is a number": (
        put("model_index.json", scheduler=["diffusers", 5]),
        r"model_index.json: got scheduler \['diffusers', 5\], wanted the names",
    ),
    "no configuration of the UNet": (removed("unet/config.json"), r"unet/config.json: missing: restore it"),
    "a small vocabulary": (put("text_encoder/config.json", vocab_size=20), r"tokenizer: has tokens up to \d+, .*vocab_size"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_base_that_cannot_be_trained_is_refused(tiny_base, tmp_path, kind) -> None:
    change, said = REFUSED[kind]
    base = shutil.copytree(tiny_base, tmp_path / "base")
    check_base("stable_diffusion", base)
    change(base)
    with pytest.raises(ValueError, match=said) as caught:
        check_base("stable_diffusion", base)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "DDIMScheduler",
        "DDPMScheduler",
        "DEISMultistepScheduler",
        "DPMSolverMultistepScheduler",
        "DPMSolverSinglestepScheduler",
        "EulerAncestralDiscreteScheduler",
        "EulerDiscreteScheduler",
        "HeunDiscreteScheduler",
        "KDPM2AncestralDiscreteScheduler",
        "KDPM2DiscreteScheduler",
        "LCMScheduler",
        "PNDMScheduler",
        "SASolverScheduler",
        "TCDScheduler",
        "UniPCMultistepScheduler",
    ],
)
def test_schedulers_of_stable_diffusion_are_accepted(tiny_base, tmp_path, name) -> None:
    base = shutil.copytree(tiny_base, tmp_path / "base")
    schedule = getattr(diffusers, name)(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    schedule.save_pretrained(base / "scheduler")
    scheduler(name)(base)
    check_base("stable_diffusion", base)


@pytest.mark.parametrize("kept", [("vocab.json", "merges.txt"), ("tokenizer.json",)])
def test_either_form_of_a_tokenizer_is_enough(tiny_base, tmp_path, kept) -> None:
    base = shutil.copytree(tiny_base, tmp_path / "base")
    tokenizer_files(*kept)(base)
    check_base("stable_diffusion", base)


@pytest.mark.parametrize(
    "change",
    [vae(scaling_factor=0.13025, shift_factor=0.1), without("vae/config.json", "scaling_factor"), unet(time_cond_proj_dim=8)],
    ids=["another scale", "no scale", "distilled"],
)
def test_what_can_be_trained_is_accepted(tiny_base, tmp_path, change) -> None:
    base = shutil.copytree(tiny_base, tmp_path / "base")
    change(base)
    check_base("stable_diffusion", base)


def test_configurations_are_checked_without_weights(tiny_base, tmp_path) -> None:
    base = shutil.copytree(tiny_base, tmp_path / "base", ignore=shutil.ignore_patterns("*.safetensors"))
    check_base("stable_diffusion", base)


@pytest.mark.parametrize("part", ["vae", "text_encoder", "unet"])
def test_weights_that_do_not_fit_are_refused(tiny_base, tmp_path, part) -> None:
    base = shutil.copytree(tiny_base, tmp_path / "base")
    other = tiny.make_base(tmp_path / "other", text_width=24)
    wide = {"vae": vae(block_out_channels=[8, 16]), "text_encoder": lambda _: None, "unet": lambda _: None}[part]
    wide(other)
    (weights,) = (other / part).glob("*.safetensors")
    shutil.copyfile(weights, base / part / weights.name)
    with pytest.raises(ValueError, match=rf"{part}: .*config.json"):
        check_base("stable_diffusion", base)


def test_a_pipeline_of_another_kind_says_what_it_is(tiny_base, tmp_path) -> None:
    base = shutil.copytree(tiny_base, tmp_path / "base")
    put(
        "model_index.json",
        _class_name="StableDiffusionXLPipeline",
        text_encoder_2=["transformers", "CLIPTextModelWithProjection"],
    )(base)
    with pytest.raises(ValueError, match=r"StableDiffusionXLPipeline .*text_encoder_2.*stable_diffusion.* choose another base"):
        check_base("stable_diffusion", base)
    put("model_index.json", _class_name="FluxPipeline", unet=[None, None], text_encoder_2=[None, None])(base)
    with pytest.raises(ValueError, match=r"is a FluxPipeline"):
        check_base("stable_diffusion", base)
