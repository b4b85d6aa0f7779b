"""Cached records: the moments and the conditioning of a split, joined by key; opened without reading the list of records."""

from collections.abc import Callable, Collection, Iterable
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Float
from torch import Tensor

from t2i.data.crops import Geometry, Size
from t2i.data.footprint import shard_sizes, windows_bytes
from t2i.data.index import Index
from t2i.data.order import Epoch, Order
from t2i.data.reader import Reader, Stored
from t2i.data.records import Split, read_repeats
from t2i.data.storage import Folders, Storage

ViewConditioning = Callable[[Geometry, Size], dict[str, Tensor]]
"""Returns what the UNet is told about a view, from its geometry and the size of its latents: `Family.view_conditioning`."""


_OTHERS = "they were made from different datasets; run `dvc repro`"


class CachedRecords:
    """The cached records of a split, numbered in the order of the shards of moments.

    Args:
        latents: folder of the moments.
        embeds: folder of the embeddings.
        split: `train` or `heldout`.
        storage: where their shards are; None: in the folders.

    Raises:
        ValueError: if a set is not complete, or they have different numbers of records. Methods: if a record is damaged, or is
            in one set only.
    """

    def __init__(self, latents: Path, embeds: Path, split: Split, storage: Storage | None = None) -> None:
        self._split = split
        self.storage = storage or Folders()
        """Where the shards are."""
        self._latents, self._embeds = (Index(folder, split, storage=self.storage) for folder in (latents, embeds))
        if (images := len(self._latents)) != (texts := len(self._embeds)):
            raise ValueError(f"{latents} has {images} {split} records, but {embeds} has {texts}: {_OTHERS}")
        repeats = read_repeats(embeds) if split == "train" else {}
        numbers = self.numbers(repeats)
        self._repeats = {numbers[key]: count for key, count in repeats.items()}
        self._reader = Reader(self.storage)
        self.empty = self._reader.file(embeds / "empty.safetensors")
        """The conditioning of the empty prompt."""

    def __len__(self) -> int:
        return len(self._latents)

    def epoch(self, order: Order) -> Epoch:
        """Returns the records of an epoch of training, in an order that divides the shards of moments into windows."""
        return Epoch(self._latents.sizes, self._repeats, order)

    def shards(self, numbers: Iterable[int]) -> dict[Path, int]:
        """Returns the paths and sizes in bytes of shards of moments, by number, and of the embeddings of their records.

        Leaves out those that are in the folders.
        """
        found: dict[Path, int] = {}
        for places in map(self._latents.places_in, numbers):
            found |= self._latents.elsewhere(places) | self._embeds.elsewhere(places)
        return found

    @property
    def elsewhere(self) -> bool:
        """Whether there are shards that are not in the folders."""
        return bool(self.shards(range(len(self._latents.sizes))))

    def window_bytes(self, order: Order, batch_size: int) -> int:
        """Returns the most bytes of both sets in the windows in which a batch can be; see `windows_bytes`."""
        latents, embeds = (shard_sizes(index.files, self._split) for index in (self._latents, self._embeds))
        return windows_bytes(latents, embeds, order, batch_size)

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the moments of the first record."""
        _, channels, height, width = self.image(0).fields["moments"].shape
        return channels, height, width

    def key(self, record: int) -> str:
        """Returns the key of a record."""
        return self._latents[record].key

    def numbers(self, keys: Collection[str]) -> dict[str, int]:
        """Returns the numbers of the records with these keys, by key."""
        return self._latents.places(keys)

    def image(self, record: int) -> Stored:
        """Returns `moments`, `original_size`, `crop` and `flipped` of a record's views."""
        return self._reader.stored(self._latents[record])

    def text(self, record: int) -> Stored:
        """Returns the conditioning of a record's captions."""
        return self._reader.stored(self._embeds.find(self.key(record), record))

    def moments(self, record: int) -> Float[Tensor, "views m h w"]:
        """Returns the moments of a record's views."""
        return self.image(record).tensor("moments")

    def conditioning(self, record: int, of_view: ViewConditioning) -> dict[str, Tensor]:
        """Returns the conditioning of a record's first view and first caption, without a batch axis."""
        text, image = self.text(record), self.image(record)
        return {name: text.tensor(name)[0] for name in text.fields} | of_view(geometry(image, 0), latent_size(image))


def geometry(image: Stored, view: int) -> Geometry:
    """Returns the geometry of a view."""
    (height, width), (top, left) = (image.row(name, view).view(np.int32).tolist() for name in ("original_size", "crop"))
    return Geometry((height, width), (top, left), bool(image.row("flipped", view)[0]))


def latent_size(image: Stored) -> Size:
    """Returns the height and width of the moments of a record."""
    *_, height, width = image.fields["moments"].shape
    return height, width
