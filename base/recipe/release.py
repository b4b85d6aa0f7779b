"""Writes the trained pipeline and the whole CLIP to one folder, in float16: the content of base/openmoji."""

import json
from pathlib import Path
from typing import Annotated

import torch
import typer
from diffusers import StableDiffusionPipeline
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

LICENCE = """The weights in this folder were made from OpenMoji and are shared under the same licence.

All emojis designed by OpenMoji, the open-source emoji and icon project (openmoji.org).
License: CC BY-SA 4.0, https://creativecommons.org/licenses/by-sa/4.0/

Changes: neural networks were trained on recoloured drawings of the emoji and on their English names.
"""


def main(
    model: Annotated[Path, typer.Option(help="The trained pipeline.")] = Path("data/model"),
    clip: Annotated[Path, typer.Option(help="The whole CLIP.")] = Path("data/clip"),
    out: Annotated[Path, typer.Option(help="Folder for the base.")] = Path("data/openmoji"),
) -> None:
    """Saves the pipeline and the CLIP in float16, with their licence."""
    pipeline = StableDiffusionPipeline.from_pretrained(
        model, dtype=torch.float16, safety_checker=None, requires_safety_checker=False, use_safetensors=True
    )
    pipeline.save_pretrained(out)
    CLIPModel.from_pretrained(clip, dtype=torch.float16).save_pretrained(out / "clip")
    CLIPTokenizer.from_pretrained(clip).save_pretrained(out / "clip")
    CLIPImageProcessorPil.from_pretrained(clip).save_pretrained(out / "clip")
    for file in out.rglob("*config.json"):
        _without_path(file)
    _without_path(out / "model_index.json")
    (out / "LICENSE.md").write_text(LICENCE, encoding="utf-8")


def _without_path(file: Path) -> None:
    """Removes `_name_or_path`, where a part was loaded from, in its configuration file."""
    config = json.loads(file.read_text(encoding="utf-8"))
    config.pop("_name_or_path", None)
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
