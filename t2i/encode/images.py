"""Runs the VAE once over every view of every image and stores the moments."""

from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from hashlib import sha256
from importlib.metadata import version
from itertools import chain, groupby, tee
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from t2i.core.params import load_section
from t2i.data.caches import DTYPE
from t2i.data.crops import Geometry
from t2i.data.decoding import EXTENSIONS
from t2i.data.digests import digest_of, sha256_of
from t2i.data.index import Index
from t2i.data.manifest import check_hashes
from t2i.data.members import Member
from t2i.data.reader import Reader
from t2i.data.records import SPLITS
from t2i.data.shards import pack
from t2i.data.storage import MANIFEST, Storage
from t2i.encode.moments import encode_views
from t2i.encode.pool import Pool
from t2i.encode.roundtrip import check_precision, check_psnr, psnr_in_fp32, psnr_of_records
from t2i.encode.shard_set import ShardSet
from t2i.encode.store import Found, identity
from t2i.encode.views import EncodeImages
from t2i.model.family import Family, file_of, open_family
from t2i.model.runtime import Runtime, numbered

DECIDED_BY = (
    *(
        f"data/{name}.py"
        for name in ("chance", "crops", "decoding", "index", "members", "pixels", "reader", "records", "shards")
    ),
    *(f"encode/{name}.py" for name in ("decoder", "images", "moments", "pool", "shard_set", "store", "views")),
    *(f"model/{name}.py" for name in ("family", "precision", "pretrained", "vae")),
)
"""The code that decides the moments. Finished records are reused only if this code is unchanged."""

DECIDE_A_RECORD = ("resolution_px", "interpolation", "background", "precision")
"""The parameters that decide the moments of a view. Which views a record has is part of its identity."""


class _Shard(NamedTuple):
    """A shard to make, and the images that must be encoded for it."""

    name: str
    found: Found
    missing: list[Member]


class Images:
    """The job of encoding images: one shard of moments for each image shard.

    Args:
        section: the parameters.
        family: the checkpoint whose VAE encodes.
        base: its folder.
        raw: folder of the image shards.
        batch_size: number of views that the VAE encodes at once.
        processes: number of processes that decode images.
        device: the device of the VAE.
        verify: whether to check the hashes of the image shards.
        storage: where the shards are.

    Raises:
        ValueError: if the VAE cannot encode images of this size, image shards are missing, or two records have one key.
    """

    kind = "encode-images"

    def __init__(
        self,
        section: EncodeImages,
        family: Family,
        base: Path,
        raw: Path,
        *,
        batch_size: int,
        processes: int,
        device: str,
        verify: bool,
        storage: Storage,
    ) -> None:
        self.storage = storage
        section.check_factor(family.vae_factor)
        self._section, self._family, self._raw = section, family, raw
        self._batch_size, self._device, self._verify = batch_size, device, verify
        self._pool = Pool(section, batch_size=batch_size, processes=processes)
        params = section.model_dump(exclude={"psnr_records", "min_psnr"})
        network = {"vae": digest_of(base / "vae"), "dtype": DTYPE, "torch": torch.__version__.split("+")[0]}
        self.made_by = network | {"images": sha256_of(raw / MANIFEST), "params": params}
        versions = {name: version(name) for name in ("diffusers", "pillow")}
        self.records_by = network | versions | {name: params[name] for name in DECIDE_A_RECORD}
        self.code = (*DECIDED_BY, file_of(family))
        self._indices = [Index(raw, split, EXTENSIONS.values(), storage) for split in SPLITS]
        for index in self._indices:
            index.unique_keys()
        self._places = {name: (index, places) for index in self._indices for name, places in index.shards().items()}
        self.shards = {name: len(places) for name, (_, places) in self._places.items()}

    def check(self, shards: Collection[str]) -> None:
        """Raises a ValueError if the hash of an image shard is wrong; does nothing if hashes are not to be checked."""
        if self._verify:
            check_hashes(self._raw, shards, self.storage)

    def encode(self, made: ShardSet, shards: Sequence[str]) -> Iterator[int]:
        """Makes some shards; yields numbers of records that are done, found or encoded.

        Raises:
            ValueError: an image cannot be read, or moments overflow float16; names the image.
        """
        unfinished = deque[str]()

        def looked_up() -> Iterator[_Shard]:
            for number, name in enumerate(shards):
                self._need([*unfinished, *shards[number : number + 2]])
                if (shard := self._look_up(made, name)).missing:
                    unfinished.append(name)
                yield shard

        now, ahead = tee(looked_up())
        records = self._encoded(member for shard in ahead for member in shard.missing)
        for shard in now:
            yield len(shard.found.identities) - len(shard.missing)
            new = {}
            for member in shard.missing:
                new[member.key] = next(records)
                yield 1
            made.add(shard.name, shard.found, partial(packed, self._raw / shard.name, new))
            if shard.missing:
                unfinished.popleft()
        made.wait()
        self._need([])

    def finish(self, made: ShardSet) -> dict[str, Any]:
        """Checks what the moments have lost.

        Returns:
            Metrics: the number of records, and the mean and lowest PSNR of the images decoded from their moments.

        Raises:
            ValueError: the PSNR is too low, or lower than with fp32.
        """
        how: dict[str, Any] = {"batch_size": self._batch_size, "device": self._device}
        members = [member for index in self._indices for member in index]
        found = psnr_of_records(self._section, self._family, self._vae, members, made.shards(), self.storage, **how)
        if self._section.precision != "fp32":
            exact = psnr_in_fp32(self._section, self._family, self._vae, members, self.storage, **how)
            check_precision(self._section, found, exact)
        return {"records": len(members), **check_psnr(self._section, found)}

    def close(self) -> None:
        """Ends the processes that decode images."""
        self._pool.close()

    @cached_property
    def _vae(self) -> nn.Module:
        return self._family.load_vae(self._device)

    def _need(self, shards: Sequence[str]) -> None:
        """Has the images of some shards on this disk, and of no others."""
        self.storage.need([path for name in shards for path in self._places[name][0].elsewhere(self._places[name][1])])

    def _look_up(self, made: ShardSet, name: str) -> _Shard:
        """Returns what a shard needs. A record is identified by the bytes of its image and the views that are stored of it."""
        index, places = self._places[name]
        members, reader = {index[at].key: index[at] for at in places}, Reader(self.storage)
        identities = {
            key: identity(sha256(reader.content(member)).hexdigest(), self._section.views(member.split, key))
            for key, member in members.items()
        }
        found = made.find(name, identities)
        return _Shard(name, found, [members[key] for key in found.missing])

    def _encoded(self, members: Iterator[Member]) -> Iterator[dict[str, Tensor]]:
        for first in members:  # without any, no network and no process is needed
            batches = self._pool.batches(chain([first], members))
            yield from records_of(encode_views(self._family, self._vae, batches, self._section.precision, self._device))


def open_images(params_file: Path, base: Path, raw: Path, number: int, processes: int) -> Images:
    """Opens the job in one of several processes of this machine.

    Args:
        params_file: path of params.yaml.
        base: folder of the checkpoint.
        raw: folder of the image shards.
        number: the number of its device, counted from 0.
        processes: the number of processes that share the CPU cores.
    """
    runtime = load_section(params_file, "runtime", Runtime)
    return Images(
        load_section(params_file, "encode.images", EncodeImages),
        open_family(params_file, base, "t2i fetch base"),
        base,
        raw,
        batch_size=runtime.encode_batch_size,
        processes=max(1, runtime.decoding_processes() // processes),
        device=numbered(runtime.torch_device(), number),
        verify=runtime.verify_shards,
        storage=runtime.storage(),
    )


def packed(shard: Path, records: Mapping[str, Mapping[str, Tensor]]) -> dict[str, bytes]:
    """Returns the content of records of a shard, by key."""
    return {key: pack(tensors, f"{shard}: record {key}") for key, tensors in records.items()}


def records_of(views: Iterable[tuple[Member, Geometry, Tensor]]) -> Iterator[dict[str, Tensor]]:
    """Yields the tensors of every record, from its views."""
    for _, group in groupby(views, key=lambda view: view[0]):
        _, geometries, moments = zip(*group, strict=True)
        yield {
            "moments": torch.stack(moments),
            "original_size": torch.tensor([seen.original_size for seen in geometries], dtype=torch.int32),
            "crop": torch.tensor([seen.crop for seen in geometries], dtype=torch.int32),
            "flipped": torch.tensor([seen.flipped for seen in geometries], dtype=torch.uint8),
        }
