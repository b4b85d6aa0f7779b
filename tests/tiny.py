"""Builds a tiny checkpoint with random weights in diffusers layout, a folder of captioned images, and small caches."""

import json
from pathlib import Path

import torch
from PIL import Image

from t2i.data.manifest import describe, write_manifest
from t2i.data.records import REPEATS
from t2i.data.shards import pack, write_shard


def make_base(
    folder: Path,
    *,
    prediction_type: str = "epsilon",
    text_layers: int = 1,
    text_width: int = 16,
    linear: bool = False,
    seed: int = 0,
) -> Path:
    """Writes a Stable Diffusion with about ten thousand random weights, and a CLIP in its folder `clip`.

    Its UNet has linear projections, as that of Stable Diffusion 2.x, if `linear`.
    """
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(seed)
    alphabet = sorted("abcdefghijklmnopqrstuvwxyz0123456789-!")
    words = [*alphabet, *(f"{letter}</w>" for letter in alphabet), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={word: at for at, word in enumerate(words)}, merges=[], model_max_length=16)
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    special = {"bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1, "pad_token_id": len(words) - 1}
    text = (
        tower
        | {"hidden_size": text_width, "num_hidden_layers": text_layers}
        | special
        | {"vocab_size": len(words), "max_position_embeddings": 16, "projection_dim": 8}
    )
    vision = tower | {"image_size": 32, "patch_size": 8, "projection_dim": 8}
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
    encoder = CLIPTextModel(clip.config.text_config)
    vae = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        block_out_channels=[8, 8],
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=32,
    )
    unet = UNet2DConditionModel(
        sample_size=16,
        down_block_types=["DownBlock2D", "CrossAttnDownBlock2D"],
        up_block_types=["CrossAttnUpBlock2D", "UpBlock2D"],
        block_out_channels=[8, 16],
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=text_width,
        attention_head_dim=2,
        use_linear_projection=linear,
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )
    StableDiffusionPipeline(
        vae, encoder, tokenizer, unet, scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    ).save_pretrained(folder)
    clip.save_pretrained(folder / "clip")
    tokenizer.save_pretrained(folder / "clip")
    CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    ).save_pretrained(folder / "clip")
    return folder


def make_sdxl(
    folder: Path, *, prediction_type: str = "epsilon", zero_terminal_snr: bool = False, zeros: bool = True, seed: int = 0
) -> Path:
    """Writes a Stable Diffusion XL with some ten thousand random weights, and a CLIP in its folder `clip`."""
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    make_base(folder, text_width=16, text_layers=2, seed=seed)
    torch.manual_seed(seed + 1)
    tokenizers = [CLIPTokenizer.from_pretrained(folder / "tokenizer") for _ in range(2)]
    tokenizers[1].pad_token = "!"  # as the second tokenizer of SDXL, which pads with token 0
    second = CLIPTextConfig.from_pretrained(folder / "text_encoder", hidden_size=24, projection_dim=12, num_hidden_layers=3)
    unet = UNet2DConditionModel(
        sample_size=16,
        down_block_types=["DownBlock2D", "CrossAttnDownBlock2D"],
        up_block_types=["CrossAttnUpBlock2D", "UpBlock2D"],
        block_out_channels=[8, 16],
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=16 + 24,
        attention_head_dim=2,
        transformer_layers_per_block=[1, 2],
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=12 + 6 * 4,
    )
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        steps_offset=1,
        prediction_type=prediction_type,
        rescale_betas_zero_snr=zero_terminal_snr,
        timestep_spacing="trailing" if zero_terminal_snr else "leading",
    )
    vae = AutoencoderKL.from_pretrained(folder / "vae")
    vae.register_to_config(scaling_factor=0.13025, force_upcast=True)
    StableDiffusionXLPipeline(
        vae,
        CLIPTextModel.from_pretrained(folder / "text_encoder"),
        CLIPTextModelWithProjection(second),
        *tokenizers,
        unet,
        scheduler,
        force_zeros_for_empty_prompt=zeros,
        add_watermarker=False,
    ).save_pretrained(folder)
    return folder


def simplify_unet(base: Path) -> None:
    """Replaces the UNet of a checkpoint by one without attention, which JAX compiles in seconds."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    UNet2DConditionModel(
        sample_size=16,
        down_block_types=["DownBlock2D"],
        mid_block_type=None,
        up_block_types=["UpBlock2D"],
        block_out_channels=[4],
        layers_per_block=1,
        norm_num_groups=2,
        cross_attention_dim=16,
    ).save_pretrained(base / "unet")


def make_images(folder: Path, count: int) -> Path:
    """Writes `count` squares in different colours, and their captions in metadata.jsonl."""
    folder.mkdir(parents=True)
    lines = []
    for number in range(count):
        name = f"{number:04d}.png"
        Image.new("RGB", (40, 32), (number * 37 % 256, number * 91 % 256, number * 13 % 256)).save(folder / name)
        lines.append(json.dumps({"file_name": name, "text": f"square {number}"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def write_sidecars(images: Path, end: str = "txt") -> None:
    """Moves the captions of a folder from metadata.jsonl into files beside the images."""
    metadata = images / "metadata.jsonl"
    for row in map(json.loads, metadata.read_text(encoding="utf-8").splitlines()):
        (images / row["file_name"]).with_suffix(f".{end}").write_text(f"{row['text']}\n", encoding="utf-8")
    metadata.unlink()


VIEWS, CAPTIONS, RECORDS = 2, 3, 10


def write_kohya_folders(images: Path) -> None:
    """Puts the captions of 24 images into files beside them, and the last twelve images into a folder that repeats them."""
    write_sidecars(images)
    (images / "3_square").mkdir()
    for n in range(12, 24):
        for end in ("png", "txt"):
            (images / f"{n:04d}.{end}").rename(images / f"3_square/{n:04d}.{end}")


def write_caches(
    folder: Path, embedded: int = RECORDS, repeats: dict[str, int] | None = None, per_shard: int = RECORDS
) -> tuple[Path, Path]:
    latents, embeds = folder / "latents", folder / "embeds"
    for path, count in ((latents, RECORDS), (embeds, embedded)):
        path.mkdir()
        contents = {}
        for n in range(count):
            moments = torch.full((VIEWS, 8, 2, 2), float(n))
            moments[1, 0] = 0.5  # the second view is the flipped one
            pairs = torch.zeros(VIEWS, 2, dtype=torch.int32)
            flipped = torch.tensor([0, 1], dtype=torch.uint8)
            image = {"moments": moments, "original_size": pairs, "crop": pairs.clone(), "flipped": flipped}
            text = {"hidden": torch.full((CAPTIONS, 4, 2), float(n + 1))}
            contents[f"k{n}"] = ("safetensors", pack(image if path is latents else text, ""))
        rows = []
        for number, first in enumerate(range(0, count, per_shard)):
            rows += write_shard(path / f"train-{number:05d}.tar", dict(list(contents.items())[first : first + per_shard]))
        if path is embeds:
            (embeds / "empty.safetensors").write_bytes(pack({"hidden": torch.zeros(1, 4, 2)}, ""))
            rows.append(describe(embeds / "empty.safetensors", 1))
            if repeats:
                (embeds / REPEATS).write_text(json.dumps(repeats))
                rows.append(describe(embeds / REPEATS, 1))
        write_manifest(path, rows, {})
    return latents, embeds
