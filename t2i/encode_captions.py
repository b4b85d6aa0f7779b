"""Verb: run the text encoder over every caption once, and keep the conditioning."""

import json
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from tqdm import tqdm

from t2i.family import Family
from t2i.params import Params
from t2i.records import SPLITS
from t2i.shards import pack, write_manifest, write_shard
from t2i.work import digest_of, fresh, sha256_of, write_json


class EncodeCaptions(Params):
    """Section `encode.captions`."""

    records_per_shard: int = Field(ge=1)
    """Records in a tar."""
    validation_prompts: list[str]
    """Prompts that are drawn while training runs, to be looked at."""


def encode_captions(
    params: EncodeCaptions, family: Family, base: Path, captions: Path, out: Path, drawn: Path, *, batch_size: int, device: str
) -> dict[str, Any]:
    """Writes the conditioning of every caption in captions.jsonl to shards in `out`, and that of a dropped prompt.

    The validation prompts' goes to the folder `drawn`, apart: nothing that is measured hangs on them.

    Returns:
        Metrics: counts of records and captions, and of captions longer than the tokenizer lets through.
    """
    rows = [json.loads(line) for line in captions.open(encoding="utf-8")]
    made_by = {
        "captions": sha256_of(captions),
        "text": {folder.name: digest_of(folder) for folder in sorted(base.glob("t*")) if folder.is_dir()},
        "params": params.model_dump(exclude={"validation_prompts"}),
        "torch": torch.__version__.split("+")[0],
    }
    text = family.load_text(device)
    truncated, shards = 0, []
    with fresh(out) as folder, tqdm(total=len(rows), desc="encoding", unit=" records") as progress:
        (folder / "empty.safetensors").write_bytes(pack(_encode(family, text, [""], batch_size), "the empty prompt"))
        for split in SPLITS:
            own = [row for row in rows if row["split"] == split]
            for number, start in enumerate(range(0, len(own), params.records_per_shard)):
                chunk = own[start : start + params.records_per_shard]
                unique = list(dict.fromkeys(caption for row in chunk for caption in row["captions"]))
                truncated += family.count_truncated(text, unique)
                encoded = _encode(family, text, unique, batch_size)
                place = {caption: at for at, caption in enumerate(unique)}
                contents = {}
                for row in chunk:
                    at = [place[caption] for caption in row["captions"]]
                    packed = pack({name: t[at] for name, t in encoded.items()}, f"captions of {row['key']}")
                    contents[row["key"]] = ("safetensors", packed)
                shards.append(write_shard(folder / f"{split}-{number:05d}.tar", contents))
                progress.update(len(chunk))
        write_manifest(folder, shards, made_by | {"dtype": "float16"})
    _keep_prompts(family, text, params.validation_prompts, drawn, batch_size)
    return {"records": len(rows), "captions": sum(len(row["captions"]) for row in rows), "truncated": truncated}


def _keep_prompts(family: Family, text: Any, prompts: list[str], out: Path, batch_size: int) -> None:
    with fresh(out) as folder:
        write_json(folder / "prompts.json", prompts)
        if prompts:
            encoded = _encode(family, text, prompts, batch_size)
            (folder / "embeds.safetensors").write_bytes(pack(encoded, "the validation prompts"))


def _encode(family: Family, text: Any, captions: list[str], batch_size: int) -> dict[str, Tensor]:
    batches = [family.encode_prompts(text, captions[at : at + batch_size]) for at in range(0, len(captions), batch_size)]
    return {name: torch.cat([batch[name].cpu() for batch in batches]) for name in batches[0]}
