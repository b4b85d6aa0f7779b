"""Verb: draw prompts with a pipeline, each image with what made it in its metadata."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from t2i.core.files import whole
from t2i.data.digests import fingerprint, sha256_of
from t2i.evaluate.grid import draw_grid
from t2i.model.family import Family
from t2i.model.sampling import Drawing, draw


def sample(
    how: Drawing, families: Mapping[str, Family], prompts: Sequence[str], out: Path, *, seed: int, num: int
) -> list[Path]:
    """Draws `num` images of every prompt with every pipeline, and a grid of all.

    Args:
        how: steps, guidance, size, precision.
        families: the pipelines, by the names that their images bear.
        prompts: what to draw.
        out: folder for PROMPT-SEED[-NAME].png and grid.png; what stands there under other names stays.
        seed: of the first image of a prompt; the next has seed + 1. The same seed gives each pipeline the same noise.
        num: images a prompt.

    Returns:
        The images' files, then the grid's.
    """
    wanted = [(prompt, seed + n) for prompt in prompts for n in range(num)]
    drawn: dict[str, list[Image.Image]] = {}
    files: list[Path] = []
    out.mkdir(parents=True, exist_ok=True)
    for name, family in families.items():
        drawn[name] = draw(how, family, [prompt for prompt, _ in wanted], [(its_seed, "") for _, its_seed in wanted])
        model = sha256_of(family.folder / "unet" / "diffusion_pytorch_model.safetensors")
        for (prompt, its_seed), image in zip(wanted, drawn[name], strict=True):
            files.append(out / f"{_slug(prompt)}-{its_seed}{f'-{name}' if len(families) > 1 else ''}.png")
            with whole(files[-1]) as partial:
                image.save(partial, "PNG", pnginfo=_made_by(how, prompt, its_seed, family.folder, model))
    rows = [(f"{prompt} ({its_seed})", [its[at] for its in drawn.values()]) for at, (prompt, its_seed) in enumerate(wanted)]
    with whole(out / "grid.png") as partial:
        draw_grid(rows, list(drawn), partial)
    return [*files, out / "grid.png"]


def _made_by(how: Drawing, prompt: str, seed: int, folder: Path, model: str) -> PngInfo:
    facts = {"prompt": prompt, "seed": seed, "model": folder, "model_sha256": model} | {
        name: getattr(how, name) for name in ("negative_prompt", "num_inference_steps", "guidance_scale", "precision")
    }
    info = PngInfo()
    for name, value in facts.items():
        info.add_itxt(name, str(value))
    return info


def _slug(prompt: str) -> str:
    """A prompt as part of a file's name; one that is changed by it bears a hash, so that no two prompts share a name."""
    slug = re.sub(r"\W+", "-", prompt.lower()).strip("-")[:60]
    return slug if slug.replace("-", " ") == prompt else f"{slug}-{fingerprint(prompt)[:6]}"
