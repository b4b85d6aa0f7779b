"""CLIP models (Radford et al. 2021, arXiv 2103.00020), which compare images with texts: loads and checks one."""

from pathlib import Path
from typing import Any, NamedTuple

from t2i.model.checks import in_one_line
from t2i.model.layout import read_object
from t2i.model.pretrained import load_pretrained
from t2i.model.text import check_vocabulary


class ClipParts(NamedTuple):
    """What a CLIP consists of."""

    model: Any
    """A CLIPModel in fp32."""
    tokenizer: Any
    processor: Any
    """Makes the model's input from images."""


def load_clip(folder: Path) -> ClipParts:
    """Returns a CLIP from a folder."""
    from transformers import CLIPModel

    return ClipParts(load_pretrained(CLIPModel, folder), *_inputs(folder))


def check_clip(folder: Path) -> None:
    """Checks that a folder holds a whole CLIP: its configurations and, if they are there, its weights.

    Raises:
        ValueError: names the file, what was got, and what was wanted.
    """
    config = read_object(folder / "config.json")
    missing = [part for part in ("text_config", "vision_config") if not isinstance(config.get(part), dict)]
    if config.get("model_type") != "clip" or missing:
        kind = next(iter(config.get("architectures") or []), config.get("_class_name") or config.get("model_type"))
        raise ValueError(
            f"config.json: is for a {kind}, wanted one for a CLIPModel, which reads texts and images, such as that of "
            "openai/clip-vit-large-patch14"
        )
    read_object(folder / "preprocessor_config.json")
    check_vocabulary(folder)
    try:
        _inputs(folder)[0]([""], padding=True, truncation=True)
    except Exception as error:  # json, tokenizers and transformers raise many types
        cause = in_one_line(error)
        raise ValueError(f"its tokenizer or preprocessor_config.json cannot be loaded ({cause}); restore its files") from None
    if any(folder.glob("*.safetensors")):
        load_clip(folder)


def _inputs(folder: Path) -> tuple[Any, Any]:
    from transformers import AutoTokenizer, CLIPImageProcessorPil

    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False), CLIPImageProcessorPil.from_pretrained(folder)
