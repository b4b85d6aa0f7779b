"""Builds the pipeline that the stages then train from scratch: the trained VAE and CLIP, and an untrained UNet."""

import shutil
from pathlib import Path
from typing import Annotated

import torch
import typer
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPModel, CLIPTokenizer

from t2i.core.params import Section, load_section


class UnetSection(Section):
    """Section `unet` of the recipe's params.yaml."""

    channels: list[int]
    layers_per_block: int
    attention_head_dim: int
    time_embedding_dim: int
    """Width of the embedding of the timestep and the whole caption, which scales and shifts the features of each block."""
    prediction_type: str
    seed: int


def main(
    vae: Annotated[Path, typer.Option(help="Folder of the VAE.")] = Path("data/vae"),
    clip: Annotated[Path, typer.Option(help="Folder of the CLIP.")] = Path("data/clip"),
    out: Annotated[Path, typer.Option(help="Folder for the pipeline.")] = Path("data/untrained"),
    params_file: Annotated[Path, typer.Option("--params", help="The recipe's parameter file.")] = Path("params.yaml"),
) -> None:
    """Saves a pipeline of a trained VAE, a trained text encoder and an untrained UNet."""
    p = load_section(params_file, "unet", UnetSection)
    torch.manual_seed(p.seed)
    autoencoder, whole = AutoencoderKL.from_pretrained(vae), CLIPModel.from_pretrained(clip)
    attended = ["DownBlock2D"] + ["CrossAttnDownBlock2D"] * (len(p.channels) - 1)
    unet = UNet2DConditionModel(
        sample_size=autoencoder.config.sample_size // 2 ** (len(autoencoder.config.block_out_channels) - 1),
        in_channels=autoencoder.config.latent_channels,
        out_channels=autoencoder.config.latent_channels,
        down_block_types=attended,
        up_block_types=[kind.replace("Down", "Up") for kind in reversed(attended)],
        block_out_channels=p.channels,
        layers_per_block=p.layers_per_block,
        cross_attention_dim=whole.config.text_config.hidden_size,
        attention_head_dim=[channels // p.attention_head_dim for channels in p.channels],
        norm_num_groups=16,
        # Each block gets the caption twice: its tokens through attention, and its pooled embedding through scale and shift
        # (FiLM, arXiv 1709.07871). The cost of FiLM does not depend on the number of pixels, and the UNet learns sooner to tell
        # things apart.
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
        resnet_time_scale_shift="scale_shift",
        time_embedding_dim=p.time_embedding_dim,
    )
    # At 20 steps it is better than DDIM, by CMMD and to the eye. Trailing timesteps start at the last timestep of training.
    scheduler = DPMSolverMultistepScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        timestep_spacing="trailing",
        prediction_type=p.prediction_type,
    )
    StableDiffusionPipeline(
        autoencoder,
        whole.text_model,
        CLIPTokenizer.from_pretrained(clip),
        unet,
        scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).to(dtype=torch.float16).save_pretrained(out)
    shutil.copytree(clip, out / "clip")


if __name__ == "__main__":
    typer.run(main)
