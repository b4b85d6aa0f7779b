"""CLIP skip: removes the last layers of a text encoder from its copy (`base.clip_skip`)."""

import re
from pathlib import Path

from t2i.core.files import write_json
from t2i.model.layout import read_object, setting


def skip_layers(text_encoder: Path, count: int) -> None:
    """Removes the last `count` layers from a configuration, so that the output equals diffusers' `clip_skip`.

    Raises:
        ValueError: if no layer would be left.
    """
    layers = setting(text_encoder, "num_hidden_layers")
    if count >= layers:
        raise ValueError(f"`base.clip_skip` is {count}, but the text encoder has {layers} layers")
    write_json(text_encoder / "config.json", read_object(text_encoder / "config.json") | {"num_hidden_layers": layers - count})


def remove_skipped_layers(text_encoder: Path) -> None:
    """Removes the weights of the layers that the configuration does not have."""
    from safetensors.torch import load_file, save_file

    kept = setting(text_encoder, "num_hidden_layers")

    def has_layer(name: str) -> bool:
        layer = re.match(r"(?:text_model\.)?encoder\.layers\.(\d+)\.", name)
        return layer is None or int(layer[1]) < kept

    for file in text_encoder.glob("*.safetensors"):
        tensors = {name: tensor for name, tensor in load_file(file).items() if has_layer(name)}
        save_file(tensors, file, metadata={"format": "pt"})
