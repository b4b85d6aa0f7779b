"""Trains the CLIP of base/openmoji from scratch: its text encoder conditions the UNet, and the whole CLIP measures.

The loss is CLIP's symmetric cross-entropy (Radford et al. 2021, arXiv 2103.00020) of captions and drawings in any style.
Most captions are a name. Some also say the colours (`red heart, white outlines on dark blue`): to measure looks, a CLIP must
know the words for them, as a CLIP trained on the web does. But such captions teach names less well, so they are few.
"""

import json
import math
import time
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from drawings import COLOURS, Layers, codes, colour_names, draw_layers, in_any_style, in_style, shifted
from pydantic import Field
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

from t2i.core.params import Section, load_section
from t2i.fetch.sources.openmoji import names


class ClipSection(Section):
    """Section `clip` of the recipe's params.yaml."""

    size_px: int
    patch_px: int
    width: int
    layers: int
    """Layers of each tower at first."""
    image_layers: int
    """Layers of the image tower in the end."""
    heads: int
    vocabulary: int
    max_tokens: int
    dropout: float
    share_with_look: float = Field(ge=0, le=1)
    """Fraction of the captions that say the colours of outlines and ground."""
    batch_size: int
    steps: int
    """Steps that train both towers."""
    image_steps: int
    """Further steps that train only the deepened image tower, against the frozen text tower (LiT, arXiv 2111.07991)."""
    learning_rate: float
    """Peak in both parts; 200 steps of warm-up, then a cosine to zero."""
    weight_decay: float
    seed: int


def main(
    out: Annotated[Path, typer.Option(help="Folder for the CLIPModel, its tokenizer and its image processor.")] = Path(
        "data/clip"
    ),
    params_file: Annotated[Path, typer.Option("--params", help="The recipe's parameter file.")] = Path("params.yaml"),
) -> None:
    """Trains the CLIP, prints the fraction of held-out captions that it finds, and saves it."""
    p = load_section(params_file, "clip", ClipSection)
    torch.manual_seed(p.seed)
    generator = torch.Generator().manual_seed(p.seed)
    spoken = [f"{colour} outlines on" for colour in COLOURS] * 20  # often enough to enter the vocabulary as words
    tokenizer = train_tokenizer([*(names()[code] for code in codes(unseen=False)), *spoken], p.vocabulary, p.max_tokens)
    tower = {
        "hidden_size": p.width,
        "intermediate_size": 4 * p.width,
        "num_hidden_layers": p.layers,
        "num_attention_heads": p.heads,
        "attention_dropout": p.dropout,
    }
    special = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    clip = CLIPModel(
        CLIPConfig(
            text_config=tower
            | special
            | {"vocab_size": len(tokenizer), "max_position_embeddings": p.max_tokens, "projection_dim": p.width},
            vision_config=tower | {"image_size": p.size_px, "patch_size": p.patch_px, "projection_dim": p.width},
            projection_dim=p.width,
        )
    )
    train(clip, tokenizer, p, p.steps, generator)
    clip = deepened(clip, p.image_layers)
    clip.text_model.requires_grad_(False)
    clip.text_projection.requires_grad_(False)
    train(clip, tokenizer, p, p.image_steps, generator)

    clip.half().save_pretrained(out)
    tokenizer.save_pretrained(out)
    CLIPImageProcessor(
        size={"shortest_edge": p.size_px},
        crop_size={"height": p.size_px, "width": p.size_px},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    ).save_pretrained(out)


def train(clip: CLIPModel, tokenizer: CLIPTokenizer, p: ClipSection, steps: int, generator: torch.Generator) -> None:
    """Trains the unfrozen weights of a CLIP in place, and prints the fraction of held-out captions that it finds."""
    seen, unseen = codes(unseen=False), codes(unseen=True)[:200]
    seen_layers, unseen_layers = draw_layers(seen, p.size_px), draw_layers(unseen, p.size_px)
    tokenize = partial(tokenizer, padding=True, truncation=True, return_tensors="pt")
    unseen_tokens = tokenize([names()[code] for code in unseen]).input_ids
    clip.set_attn_implementation("eager")  # in bf16 on a CPU, the backward pass of torch's fused attention is slower
    decayed = [w for w in clip.parameters() if w.ndim > 1]
    others = [w for w in clip.parameters() if w.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": p.weight_decay}, {"params": others, "weight_decay": 0.0}],
        betas=(0.9, 0.98),
        fused=True,
    )
    started = time.monotonic()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = p.learning_rate * min(1, (step + 1) / 200) * 0.5 * (1 + math.cos(math.pi * step / steps))
        rows = torch.randperm(len(seen), generator=generator)[: p.batch_size]
        drawn = in_any_style(shifted(Layers(*(layer[rows] for layer in seen_layers)), 4, generator), generator)
        looks = [
            f", {outline} outlines on {ground}"
            for outline, ground in zip(colour_names(drawn.outline), colour_names(drawn.ground), strict=True)
        ]
        said = (torch.rand(len(rows), generator=generator) < p.share_with_look).tolist()
        captions = [names()[seen[row]] + look * say for row, look, say in zip(rows.tolist(), looks, said, strict=True)]
        clip.train()
        with torch.autocast("cpu", torch.bfloat16):
            loss = clip(input_ids=tokenize(captions).input_ids, pixel_values=drawn.pixels, return_loss=True).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(clip.parameters(), 1.0)
        optimizer.step()
        clip.logit_scale.data.clamp_(max=math.log(100))
        if step % 250 == 249 or step == steps - 1:
            found = {
                style: round(measure(clip, unseen_tokens, in_style(unseen_layers, style)), 3) for style in ("plain", "night")
            }
            print(
                f"step {step + 1}/{steps}  loss {loss.item():.3f}  found {found}  {time.monotonic() - started:.0f} s",
                flush=True,
            )


def deepened(clip: CLIPModel, image_layers: int) -> CLIPModel:
    """Returns a CLIP with more layers in its image tower; they add zero at first, so its outputs are unchanged."""
    config = CLIPConfig.from_dict(clip.config.to_dict())
    config.vision_config.num_hidden_layers = image_layers
    deeper = CLIPModel(config)
    deeper.load_state_dict(clip.state_dict(), strict=False)
    for layer in deeper.vision_model.encoder.layers[clip.config.vision_config.num_hidden_layers :]:
        for last in (layer.self_attn.out_proj, layer.mlp.fc2):
            torch.nn.init.zeros_(last.weight)
            torch.nn.init.zeros_(last.bias)
    return deeper


def train_tokenizer(captions: list[str], vocabulary: int, max_tokens: int) -> CLIPTokenizer:
    """Trains a CLIP tokenizer on captions; the special tokens come last, since transformers pools at the largest id."""
    trained = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    trained.normalizer = normalizers.Lowercase()
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())  # sorted, since its order differs from run to run
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(alphabet) - 2, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    trained.train_from_iterator(captions, trainer)
    state = json.loads(trained.to_str())["model"]
    words = dict(state["vocab"])
    for word in [*(f"{character}</w>" for character in alphabet), "<|startoftext|>", "<|endoftext|>"]:
        words.setdefault(word, len(words))
    merges = [tuple(merge) for merge in state["merges"]]
    return CLIPTokenizer(vocab=words, merges=merges, model_max_length=max_tokens)


@torch.no_grad()
def measure(clip: CLIPModel, tokens: torch.Tensor, pixels: torch.Tensor) -> float:
    """Returns the fraction of drawings whose own name has the highest cosine among all names."""
    clip.eval()
    return (
        (clip(input_ids=tokens, pixel_values=pixels).logits_per_image.argmax(dim=1) == torch.arange(len(tokens)))
        .float()
        .mean()
        .item()
    )


if __name__ == "__main__":
    typer.run(main)
