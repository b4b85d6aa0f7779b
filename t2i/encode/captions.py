"""Runs the text encoder once over every caption and stores the conditioning."""

import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from tqdm import tqdm

from t2i.core.files import fresh, write_json
from t2i.core.params import Section
from t2i.data.caches import DTYPE, text_digests
from t2i.data.digests import sha256_of
from t2i.data.records import REPEATS, SPLITS, Prompt, read_captions
from t2i.data.shards import pack
from t2i.encode.shard_set import ShardSet, shard_set
from t2i.encode.store import identity
from t2i.model.family import Conditioning, Family, file_of
from t2i.model.precision import Precision, computing_in, without_overflows
from t2i.model.runtime import device_in_words


class EncodeCaptions(Section):
    """Section `encode.captions`."""

    records_per_shard: int = Field(ge=1)
    """Number of records per tar."""
    precision: Literal["fp32", "bf16"]
    """Precision of the text encoders. In bf16, a caption whose embeddings overflow is encoded in fp32."""
    validation_prompts: list[Prompt]
    """Prompts that are sampled during training, so that you can look at the progress."""


DECIDED_BY = (
    *(f"data/{name}.py" for name in ("chance", "index", "members", "records", "shards")),
    *(f"encode/{name}.py" for name in ("captions", "shard_set", "store")),
    *(f"model/{name}.py" for name in ("family", "precision", "pretrained", "text")),
)
"""The code that decides the embeddings. Finished records are reused only if this code is unchanged."""


def encode_captions(
    section: EncodeCaptions,
    family: Family,
    base: Path,
    captions: Path,
    out: Path,
    validation_prompts: Path,
    *,
    batch_size: int,
    device: str,
) -> dict[str, Any]:
    """Writes the conditioning of every caption in captions.jsonl, and of the empty prompt, to `out`.

    The repeats of the records go there too, if one is used more than once in an epoch. The conditioning of the validation
    prompts goes to the folder `validation_prompts`, because no metric depends on it.

    Returns:
        Metrics: the numbers of records, of captions, and of captions longer than the tokenizer's limit.
    """
    rows = list(read_captions(captions))
    network = {"text": text_digests(base), "dtype": DTYPE, "torch": torch.__version__.split("+")[0]}
    made_by = network | {"captions": sha256_of(captions), "params": section.model_dump(exclude={"validation_prompts"})}
    versions = {name: version(name) for name in ("diffusers", "tokenizers", "transformers")}
    records_by = network | versions | {"precision": section.precision}
    unique = list(dict.fromkeys(caption for row in rows for caption in row["captions"]))
    with shard_set("encode-captions", made_by, records_by, [*DECIDED_BY, file_of(family)], out) as made:
        print(
            f"encoding {len(unique)} captions on {device_in_words(device)}; finished records: {made.folder.parent}",
            file=sys.stderr,
        )
        text = family.load_text(device)
        compute = partial(_compute, section.precision, device)
        encode = partial(_encode, lambda captions: compute(lambda: family.encode_prompts(text, captions)), batch_size)
        made.add_file("empty.safetensors", pack(compute(lambda: family.encode_empty_prompt(text)), "the empty prompt"))
        if repeats := {row["key"]: row["repeats"] for row in rows if row["split"] == "train" and row["repeats"] != 1}:
            made.add_file(REPEATS, json.dumps(repeats, indent=2, sort_keys=True).encode())
        _write(made, encode, rows, section.records_per_shard)
        _keep_prompts(encode, section.validation_prompts, validation_prompts)
    counted = sum(len(row["captions"]) for row in rows)
    return {"records": len(rows), "captions": counted, "truncated": family.count_truncated(text, unique)}


def _write(
    made: ShardSet, encode: Callable[[list[str]], Conditioning], rows: list[dict[str, Any]], records_per_shard: int
) -> None:
    with tqdm(total=len(rows), desc="encoding", unit=" records") as progress:
        for name, chunk in _shards(rows, records_per_shard):
            found = made.find({row["key"]: identity(row["captions"]) for row in chunk})
            missing = set(found.missing)
            new = _encode_shard(encode, [row for row in chunk if row["key"] in missing])
            made.add(name, found, partial(_packed, new))
            progress.update(len(chunk))
        made.wait()


def _shards(rows: list[dict[str, Any]], most: int) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Yields the name and the records of every shard."""
    for split in SPLITS:
        own = [row for row in rows if row["split"] == split]
        for number, start in enumerate(range(0, len(own), most)):
            yield f"{split}-{number:05d}.tar", own[start : start + most]


def _encode_shard(encode: Callable[[list[str]], Conditioning], rows: list[dict[str, Any]]) -> dict[str, Conditioning]:
    """Returns the conditioning of records, by key. A caption that occurs twice is encoded once."""
    if not rows:
        return {}
    unique = list(dict.fromkeys(caption for row in rows for caption in row["captions"]))
    encoded, place = encode(unique), {caption: at for at, caption in enumerate(unique)}
    return {
        row["key"]: {name: t[[place[caption] for caption in row["captions"]]] for name, t in encoded.items()} for row in rows
    }


def _packed(records: dict[str, Conditioning]) -> dict[str, bytes]:
    return {key: pack(tensors, f"captions of {key}") for key, tensors in records.items()}


def _keep_prompts(encode: Callable[[list[str]], Conditioning], prompts: list[str], out: Path) -> None:
    with fresh(out) as folder:
        write_json(folder / "prompts.json", prompts)
        if prompts:
            (folder / "embeds.safetensors").write_bytes(pack(encode(prompts), "the validation prompts"))


def _encode(encode: Callable[[list[str]], Conditioning], batch_size: int, captions: list[str]) -> Conditioning:
    """Returns the conditioning of captions. Each batch has the full size, so that the other captions never change a bit."""
    padded = captions + [""] * (-len(captions) % batch_size)
    batches = [encode(padded[at : at + batch_size]) for at in range(0, len(captions), batch_size)]
    return {name: torch.cat([batch[name] for batch in batches])[: len(captions)] for name in batches[0]}


def _compute(precision: Precision, device: str, encode: Callable[[], Conditioning]) -> Conditioning:
    """Returns what `encode` returns, on the CPU; the captions that overflow in a reduced precision are those of fp32."""
    with computing_in(precision, device):
        computed = encode()
    if precision != "fp32":
        computed = without_overflows(computed, encode)
    return {name: tensor.cpu() for name, tensor in computed.items()}
