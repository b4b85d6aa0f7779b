"""Runs the text encoder once over every caption and stores the conditioning."""

import json
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field

from t2i.core.files import fresh, write_json
from t2i.core.params import Section, load_section
from t2i.data.caches import DTYPE, text_digests
from t2i.data.digests import sha256_of
from t2i.data.records import REPEATS, SPLITS, Prompt, read_captions
from t2i.data.shards import pack
from t2i.data.storage import Storage
from t2i.encode.shard_set import ShardSet
from t2i.encode.store import identity
from t2i.model.family import Conditioning, Family, file_of, open_family
from t2i.model.precision import computing_in, without_overflows
from t2i.model.runtime import Runtime, numbered


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


class Captions:
    """The job of encoding captions: shards of the conditioning of every caption, and of the empty prompt.

    The repeats of the records go there too, if one is used more than once in an epoch.

    Args:
        section: the parameters.
        family: the checkpoint whose text encoders encode.
        base: its folder.
        captions: the file captions.jsonl.
        validation_prompts: output folder for the conditioning of the validation prompts, because no metric depends on it.
        batch_size: number of captions that are encoded at once.
        device: the device of the text encoders.
        storage: where the shards are.
    """

    kind = "encode-captions"

    def __init__(
        self,
        section: EncodeCaptions,
        family: Family,
        base: Path,
        captions: Path,
        validation_prompts: Path,
        *,
        batch_size: int,
        device: str,
        storage: Storage,
    ) -> None:
        self.storage = storage
        self._section, self._family, self._validation_prompts = section, family, validation_prompts
        self._batch_size, self._device = batch_size, device
        self._rows = list(read_captions(captions))
        self._shards = dict(_shards(self._rows, section.records_per_shard))
        self.shards = {name: len(rows) for name, rows in self._shards.items()}
        network = {"text": text_digests(base), "dtype": DTYPE, "torch": torch.__version__.split("+")[0]}
        self.made_by = network | {
            "captions": sha256_of(captions),
            "params": section.model_dump(exclude={"validation_prompts"}),
        }
        versions = {name: version(name) for name in ("diffusers", "tokenizers", "transformers")}
        self.records_by = network | versions | {"precision": section.precision}
        self.code = (*DECIDED_BY, file_of(family))

    def check(self, shards: Collection[str]) -> None:
        """Has nothing to check: the captions were read as a whole."""

    def encode(self, made: ShardSet, shards: Sequence[str]) -> Iterator[int]:
        """Makes some shards; yields numbers of records that are done, found or encoded."""
        for name in shards:
            rows = self._shards[name]
            found = made.find(name, {row["key"]: identity(row["captions"]) for row in rows})
            missing = set(found.missing)
            new = self._conditioning([row for row in rows if row["key"] in missing])
            made.add(name, found, partial(_packed, new))
            yield len(rows)
        made.wait()

    def finish(self, made: ShardSet) -> dict[str, Any]:
        """Adds the empty prompt and the repeats, and writes the validation prompts.

        Returns:
            Metrics: the numbers of records, of captions, and of captions longer than the tokenizer's limit.
        """
        empty = self._compute(lambda: self._family.encode_empty_prompt(self._text))
        made.add_file("empty.safetensors", pack(empty, "the empty prompt"))
        if repeats := {row["key"]: row["repeats"] for row in self._rows if row["split"] == "train" and row["repeats"] != 1}:
            made.add_file(REPEATS, json.dumps(repeats, indent=2, sort_keys=True).encode())
        self._keep_prompts()
        captions = [caption for row in self._rows for caption in row["captions"]]
        truncated = self._family.count_truncated(self._text, list(dict.fromkeys(captions)))
        return {"records": len(self._rows), "captions": len(captions), "truncated": truncated}

    def close(self) -> None:
        """Holds nothing that must be freed."""

    def _keep_prompts(self) -> None:
        prompts = self._section.validation_prompts
        with fresh(self._validation_prompts) as folder:
            write_json(folder / "prompts.json", prompts)
            if prompts:
                (folder / "embeds.safetensors").write_bytes(pack(self._encoded(prompts), "the validation prompts"))

    @cached_property
    def _text(self) -> Any:
        return self._family.load_text(self._device)

    def _conditioning(self, rows: list[dict[str, Any]]) -> dict[str, Conditioning]:
        """Returns the conditioning of records, by key. A caption that occurs twice is encoded once."""
        if not rows:
            return {}
        unique = list(dict.fromkeys(caption for row in rows for caption in row["captions"]))
        encoded, place = self._encoded(unique), {caption: at for at, caption in enumerate(unique)}
        return {
            row["key"]: {name: t[[place[caption] for caption in row["captions"]]] for name, t in encoded.items()}
            for row in rows
        }

    def _encoded(self, captions: list[str]) -> Conditioning:
        """Returns the conditioning of captions. Each batch has the full size, so that the other captions never change a bit."""
        size = self._batch_size
        padded = captions + [""] * (-len(captions) % size)
        batches = [
            self._compute(partial(self._family.encode_prompts, self._text, padded[at : at + size]))
            for at in range(0, len(captions), size)
        ]
        return {name: torch.cat([batch[name] for batch in batches])[: len(captions)] for name in batches[0]}

    def _compute(self, encode: Callable[[], Conditioning]) -> Conditioning:
        """Returns what `encode` returns, on the CPU; the captions that overflow in a reduced precision are those of fp32."""
        with computing_in(self._section.precision, self._device):
            computed = encode()
        if self._section.precision != "fp32":
            computed = without_overflows(computed, encode)
        return {name: tensor.cpu() for name, tensor in computed.items()}


def open_captions(
    params_file: Path, base: Path, captions: Path, validation_prompts: Path, number: int, processes: int
) -> Captions:
    """Opens the job in one of several processes of this machine.

    Args:
        params_file: path of params.yaml.
        base: folder of the checkpoint.
        captions: the file captions.jsonl.
        validation_prompts: output folder of the validation prompts.
        number: the number of its device, counted from 0.
        processes: the number of processes; they share nothing here.
    """
    del processes
    runtime = load_section(params_file, "runtime", Runtime)
    return Captions(
        load_section(params_file, "encode.captions", EncodeCaptions),
        open_family(params_file, base, "t2i fetch base"),
        base,
        captions,
        validation_prompts,
        batch_size=runtime.encode_batch_size,
        device=numbered(runtime.torch_device(), number),
        storage=runtime.storage(),
    )


def _shards(rows: list[dict[str, Any]], most: int) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Yields the name and the records of every shard."""
    for split in SPLITS:
        own = [row for row in rows if row["split"] == split]
        for number, start in enumerate(range(0, len(own), most)):
            yield f"{split}-{number:05d}.tar", own[start : start + most]


def _packed(records: dict[str, Conditioning]) -> dict[str, bytes]:
    return {key: pack(tensors, f"captions of {key}") for key, tensors in records.items()}
