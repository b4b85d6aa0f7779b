"""Runs each stage except the report at the sizes of Stable Diffusion 1.5 or SDXL, with random weights and a few images.

python -m benchmarks.rehearsal
python -m benchmarks.rehearsal --family sdxl
python -m benchmarks.rehearsal --family sdxl --lora

Shows that the pipeline works at the real sizes, and how much memory and time they take on this machine. The samples are noise.
SD 1.5 trains all of its UNet, SDXL the keys and values of cross-attention, so that both fit 24 GB without a GPU. With --lora,
it trains the LoRA of the preset sdxl-lora in bf16. Writes rehearsal.json, rehearsal-sdxl.json or rehearsal-sdxl-lora.json here.
"""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from ruamel.yaml import YAML

from benchmarks.measured import ROOT, measured
from t2i.tools.published import SIZES, VAE

STAGES = ("fetch base", "fetch dataset", "encode images", "encode captions", "train", "evaluate base", "evaluate model")


Family = Literal["stable_diffusion", "sdxl"]
TRAINABLE: dict[Family, str] = {"stable_diffusion": "", "sdxl": r"attn2\.to_[kv]"}


def main(
    family: Annotated[Family, typer.Option(help="stable_diffusion has the sizes of 1.5.")] = "stable_diffusion",
    lora: Annotated[bool, typer.Option("--lora", help="Train a LoRA of rank 16 in bf16.")] = False,
    resolution_px: Annotated[int, typer.Option(help="Side of the images, in pixels.")] = 256,
    steps: Annotated[int, typer.Option(help="Optimizer steps.")] = 2,
    records: Annotated[int, typer.Option(min=4, help="Number of images; some of them are held out.")] = 4,
) -> None:
    """Makes the checkpoint and the images, runs the stages, and writes the cost of each."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        stages: dict[str, Any] = {}
        stages["make the checkpoint"] = measured(
            ["-c", f"from benchmarks.rehearsal import make_base; make_base({family!r})"], folder
        )
        _images(folder / "images", records)
        _params(folder, family, lora, resolution_px, steps)
        for stage in STAGES:
            stages[stage] = measured(["-m", *f"stages.{stage}".split()], folder)
    costs = {stage: cost._asdict() for stage, cost in stages.items()}
    figures = {
        "family": family,
        "lora": lora,
        "resolution_px": resolution_px,
        "steps": steps,
        "records": records,
        "stages": costs,
    }
    name = f"rehearsal{'' if family == 'stable_diffusion' else f'-{family}'}{'-lora' if lora else ''}.json"
    Path(__file__).with_name(name).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(figures, indent=2))


def make_base(family: Family) -> None:
    """Writes `base`: the sizes of a published base, random float16 weights, vocabulary and CLIP of the embedded base."""
    import torch
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(ROOT / "base/openmoji/tokenizer", model_max_length=77)
    published = SIZES["sd15" if family == "stable_diffusion" else "sdxl"]
    text = CLIPTextModel(_text(tokenizer, published.text[0]))
    vae = AutoencoderKL(**VAE, sample_size=512)
    unet = UNet2DConditionModel(**published.unet)
    scheduler = PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        skip_prk_steps=True,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    pipeline: Any
    if family == "stable_diffusion":
        pipeline = StableDiffusionPipeline(vae, text, tokenizer, unet, scheduler, None, None, requires_safety_checker=False)
    else:
        second = CLIPTextModelWithProjection(_text(tokenizer, published.text[1]))
        pipeline = StableDiffusionXLPipeline(vae, text, second, tokenizer, tokenizer, unet, scheduler, add_watermarker=False)
    pipeline.to(torch.float16).save_pretrained("base")
    shutil.copytree(ROOT / "base/openmoji/clip", "base/clip")


def _text(tokenizer: Any, sizes: dict[str, Any]) -> Any:
    from transformers import CLIPTextConfig

    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return CLIPTextConfig(vocab_size=49408, max_position_embeddings=77, **special, **sizes)


def _images(folder: Path, count: int) -> None:
    import numpy as np
    from PIL import Image

    folder.mkdir()
    chance = np.random.default_rng(0)
    for number in range(count):
        small = Image.fromarray(chance.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        small.resize((512, 512), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    lines = [json.dumps({"file_name": f"{number}.png", "text": f"blobs, number {number}"}) for number in range(count)]
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _params(folder: Path, family: Family, lora: bool, resolution_px: int, steps: int) -> None:
    params: dict[str, Any] = YAML(typ="safe").load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["base"] |= {"family": family, "local": "base", "clip": "base/clip"}
    params["fetch"] |= {
        "source": {"name": "folder", "captions": {"name": "metadata", "column": "text"}},
        "local": "images",
        "heldout_fraction": 0.5,
    }
    params["encode"]["images"] |= {"resolution_px": resolution_px, "min_psnr": 0.0, "psnr_records": 2}
    params["encode"]["captions"]["validation_prompts"] = []
    params["train"] |= {"trainable": TRAINABLE[family], "export_dtype": "fp16" if family == "sdxl" else "fp32"}
    params["train"] |= {"steps": steps, "batch_size": 2, "warmup_steps": 0, "learning_rate": 1e-5}
    if lora:
        preset = YAML(typ="safe").load((ROOT / "presets/sdxl-lora.yaml").read_text(encoding="utf-8"))["train"]
        params["train"] |= {name: preset[name] for name in ("trainable", "adapter", "precision")}
        params["evaluate"]["precision"] = preset["precision"]
    params["evaluate"] |= {"prompts": 2, "num_inference_steps": 2, "timesteps_per_record": 1, "retention_prompts": []}
    params["sweep"] |= {"guidance_scales": [], "prompts": 2}
    params["runtime"] |= {"micro_batch_size": 1, "gradient_checkpointing": True, "encode_batch_size": 1, "log_every_steps": 1}
    params["runtime"]["validation"] |= {"every_steps": 10 * steps, "records": 1, "timesteps_per_record": 1}
    with (folder / "params.yaml").open("w", encoding="utf-8") as file:
        YAML(typ="safe").dump(params, file)


if __name__ == "__main__":
    typer.run(main)
