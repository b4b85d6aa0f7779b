"""Trains the VAE of base/openmoji from scratch: an AutoencoderKL f4 that rebuilds emoji in any style.

It minimises the squared error of the pixels plus kl_weight times the KL divergence of the latents from N(0, 1)
(Rombach et al. 2022, arXiv 2112.10752, appendix G), on crops of emoji in random colours.
"""

import math
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from diffusers import AutoencoderKL
from drawings import Layers, codes, draw_layers, in_any_style, in_style
from pydantic import Field

from t2i.core.params import Section, load_section


class VaeSection(Section):
    """Section `vae` of the recipe's params.yaml."""

    channels: list[int]
    latent_channels: int
    size_px: int
    crop_px: int
    """Side of the random crops that training uses, in pixels: the margins of an emoji teach little."""
    batch_size: int
    steps: int
    """Steps of one cycle."""
    cycles: int
    """Number of cycles of the learning rate; a restart replaces a longer run (SGDR, arXiv 1608.03983)."""
    learning_rate: float
    """Peak; each cycle has 100 steps of warm-up, then a cosine to zero."""
    kl_weight: float = Field(ge=0)
    seed: int


def main(
    out: Annotated[Path, typer.Option(help="Folder for the VAE.")] = Path("data/vae"),
    params_file: Annotated[Path, typer.Option("--params", help="The recipe's parameter file.")] = Path("params.yaml"),
) -> None:
    """Trains the VAE, prints its PSNR on held-out emoji, and saves it."""
    p = load_section(params_file, "vae", VaeSection)
    torch.manual_seed(p.seed)
    generator = torch.Generator().manual_seed(p.seed)
    seen, unseen = (draw_layers(codes(unseen=which), p.size_px) for which in (False, True))
    levels = len(p.channels)
    vae = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
        block_out_channels=p.channels,
        latent_channels=p.latent_channels,
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=p.size_px,
    )
    optimizer = torch.optim.AdamW(vae.parameters(), lr=p.learning_rate, weight_decay=1e-4, fused=True)
    started = time.monotonic()
    total = p.cycles * p.steps
    for step in range(total):
        at = step % p.steps
        for group in optimizer.param_groups:
            group["lr"] = p.learning_rate * min(1, (at + 1) / 100) * 0.5 * (1 + math.cos(math.pi * at / p.steps))
        rows = torch.randint(len(seen.fills), (p.batch_size,), generator=generator)
        top, left = torch.randint(p.size_px - p.crop_px + 1, (2,), generator=generator).tolist()
        window = (slice(None), slice(None), slice(top, top + p.crop_px), slice(left, left + p.crop_px))
        pixels = in_any_style(Layers(*(layer[rows][window] for layer in seen)), generator).pixels
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(pixels).latent_dist
            rebuilt = vae.decode(posterior.sample(generator)).sample
        loss = (rebuilt.float() - pixels).square().mean() + p.kl_weight * posterior.kl().float().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        if step % 500 == 499:
            psnr = {style: round(measure(vae, in_style(unseen, style)), 2) for style in ("plain", "night")}
            print(
                f"step {step + 1}/{total}  loss {loss.item():.5f}  held-out PSNR {psnr}  {time.monotonic() - started:.0f} s",
                flush=True,
            )

    with torch.no_grad():
        moments = vae.encode(in_style(Layers(*(layer[:512] for layer in seen)), "plain")).latent_dist
    vae.register_to_config(scaling_factor=round(1 / moments.mean.std().item(), 5))
    vae.half().save_pretrained(out)


@torch.no_grad()
def measure(vae: AutoencoderKL, pixels: torch.Tensor) -> float:
    """Returns the mean PSNR, in decibels, of pixels in [-1, 1] decoded from the mean of their latents."""
    rebuilt = torch.cat([vae.decode(vae.encode(batch).latent_dist.mean).sample.clamp(-1, 1) for batch in pixels.split(32)])
    mse = ((rebuilt - pixels) / 2).square().mean(dim=(1, 2, 3))
    return (-10 * mse.log10()).mean().item()


if __name__ == "__main__":
    typer.run(main)
