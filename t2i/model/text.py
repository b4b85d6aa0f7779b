"""The text encoders of a pipeline: CLIP text models with their tokenizers, loaded and checked."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor, nn

from t2i.model.checks import ANOTHER_BASE, in_one_line
from t2i.model.layout import read_object
from t2i.model.pretrained import frozen, load_pretrained

_VOCABULARY = ("vocab.json", "merges.txt")


class TextEncoder(NamedTuple):
    """A text model with the tokenizer that belongs to it."""

    tokenizer: Any
    model: nn.Module

    def tokens(self, captions: Sequence[str]) -> Int[Tensor, "b tokens"]:
        """Returns the tokens of captions on the device of the model, padded or truncated to the tokenizer's length."""
        padded = self.tokenizer(list(captions), padding="max_length", truncation=True, return_tensors="pt")
        tokens: Tensor = padded.input_ids.to(self.model.device)
        return tokens

    def truncates(self, captions: Sequence[str]) -> list[bool]:
        """Returns which captions are longer than the tokenizer's length."""
        lengths = [len(tokens) for tokens in self.tokenizer(list(captions), verbose=False).input_ids]
        return [length > self.tokenizer.model_max_length for length in lengths]


def load_text_encoder(kind: Any, tokenizer: Path, encoder: Path, device: str) -> TextEncoder:
    """Returns a text model of the class `kind` in fp32, frozen, with its tokenizer."""
    from transformers import CLIPTokenizer

    model = frozen(load_pretrained(kind, encoder), device)
    return TextEncoder(CLIPTokenizer.from_pretrained(tokenizer), model)


class TextShape(NamedTuple):
    """The shape of a text model's output."""

    tokens: int
    width: int
    """Width of a hidden state."""
    pooled: int
    """Width of the projected embedding of the whole text, which only models with a projection have."""


def check_text(tokenizer: Path, encoder: Path) -> TextShape:
    """Returns the shape of a CLIP text model's output, after checking that its tokenizer fits.

    Raises:
        ValueError: if a file of the tokenizer is missing, or it gives other tokens than the encoder takes.
    """
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    check_vocabulary(tokenizer)
    try:
        config = CLIPTextConfig.from_dict(read_object(encoder / "config.json"))
        most, vocabulary = int(config.max_position_embeddings), int(config.vocab_size)
        loaded = CLIPTokenizer.from_pretrained(tokenizer)
        length, largest = loaded.model_max_length, max(loaded.get_vocab().values())
        if isinstance(length, int) and 2 < length <= most:
            loaded([""], padding="max_length", truncation=True)
        with torch.device("meta"):
            CLIPTextModel(config)
    except Exception as error:  # json, tokenizers and transformers raise many types
        raise ValueError(
            f"{tokenizer.name}, {encoder.name}: cannot be loaded ({in_one_line(error)}); restore their files"
        ) from None
    if not isinstance(length, int) or not 2 < length <= most:
        stated = "none" if isinstance(length, int) and length > 10**9 else repr(length)
        raise ValueError(
            f"{tokenizer.name}/tokenizer_config.json: got model_max_length {stated}, wanted a number from 3 to {most}, the "
            f'text encoder\'s max_position_embeddings: write "model_max_length": {most}'
        )
    if largest >= vocabulary:
        raise ValueError(
            f"{tokenizer.name}: has tokens up to {largest}, but the embeddings of {encoder.name} end at {vocabulary - 1} "
            f"(vocab_size): they are of different models; restore both, or {ANOTHER_BASE}"
        )
    return TextShape(length, int(config.hidden_size), int(config.projection_dim))


def check_vocabulary(tokenizer: Path) -> None:
    """Checks that a CLIP tokenizer knows words: without its files, transformers loads an empty vocabulary.

    Raises:
        ValueError: if a file is missing, or has no words.
    """
    whole, missing = tokenizer / "tokenizer.json", [name for name in _VOCABULARY if not (tokenizer / name).is_file()]
    if missing and not whole.is_file():
        raise ValueError(f"{tokenizer / missing[0]}: missing; restore it, or add tokenizer.json")
    stored = (read_object(whole).get("model") or {}).get("vocab") if whole.is_file() else read_object(tokenizer / "vocab.json")
    if not stored:
        raise ValueError(f"{whole if whole.is_file() else tokenizer / 'vocab.json'}: no words; restore the original file")
