"""Views: which crops of an image are stored, and how they are made."""

import math
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from t2i.core.params import Section
from t2i.data.chance import hash_fraction
from t2i.data.crops import Interpolation, Place, Size
from t2i.data.decoding import decode
from t2i.data.members import Member
from t2i.data.pixels import View, size_of, views_of
from t2i.data.records import Split


class CenterCrop(Section):
    """One view, cropped from the middle."""

    name: Literal["center"]

    def __call__(self, seed: int, key: str) -> list[Place]:
        """Returns the places of a record's crops."""
        del seed, key
        return [(0.5, 0.5)]


class RandomCrop(Section):
    """Several views, at positions that depend only on the seed, the record and the view."""

    name: Literal["random"]
    views: int = Field(ge=1)
    """Number of crops per image. Training uses one of them each time it reads the image."""

    def __call__(self, seed: int, key: str) -> list[Place]:
        """Returns the places of a record's crops."""
        names = [f"{seed}:{key}:{n}" for n in range(self.views)]
        return [(hash_fraction(f"{name}:down"), hash_fraction(f"{name}:across")) for name in names]


Side = Annotated[int, Field(ge=8)]


class EncodeImages(Section):
    """Section `encode.images`."""

    resolution_px: Side | Annotated[list[Side], Field(min_length=2, max_length=2)]
    """Size of the images that the model learns from and draws: a number for squares, or `[height, width]`. Multiples of 8."""
    interpolation: Interpolation
    """Filter used to resize images."""
    crop: Annotated[CenterCrop | RandomCrop, Field(discriminator="name")]
    """Which crops of an image of other proportions are stored."""
    flip: bool
    """Whether to also store each view mirrored. Leave it off if left and right matter."""
    background: str = Field(pattern="^#[0-9a-fA-F]{6}$")
    """Background colour for transparent images, `#rrggbb`."""
    seed: int
    """Decides the positions of random crops."""
    precision: Literal["fp32", "bf16"]
    """Precision of the VAE. bf16 is meant for GPUs that compute it faster than fp32, which has not been measured here; an image
    whose moments overflow is encoded in fp32. The stage fails if the mean PSNR is more than 0.1 dB lower than in fp32."""
    psnr_records: int = Field(ge=1)
    """Number of records per split that are decoded from their moments, to measure what the VAE loses."""
    min_psnr: float
    """The stage fails if the mean PSNR in decibels is lower: the VAE does not fit these images, or the pixels are wrong."""

    @property
    def size_px(self) -> Size:
        """Height and width of the views."""
        return size_of(self.resolution_px)

    def check_factor(self, vae_factor: int) -> None:
        """Raises a ValueError if the VAE cannot encode images of this size, or diffusers' pipelines cannot draw them."""
        factor = math.lcm(vae_factor, 8)
        if any(side % factor for side in self.size_px):
            raise ValueError(
                f"`encode.images.resolution_px` is {self.resolution_px}, wanted multiples of {factor}: the VAE makes one "
                f"latent of {vae_factor} x {vae_factor} pixels, and diffusers draws multiples of 8"
            )

    def views(self, split: Split | None, key: str) -> list[tuple[Place, bool]]:
        """Returns place and flip of each view of a record. A held-out record has one: centred, not flipped."""
        if split == "heldout":
            return [((0.5, 0.5), False)]
        flips = [False, True] if self.flip else [False]
        return [(place, flipped) for place in self.crop(self.seed, key) for flipped in flips]

    def count(self, split: Split) -> int:
        """Returns the number of views per image of a split."""
        return len(self.views(split, ""))


def views(section: EncodeImages, member: Member, content: bytes) -> Iterator[View]:
    """Yields the views of an image that are stored. A held-out image has one: centred, not flipped."""
    try:
        image = decode(content, section.background)
    except ValueError as error:
        raise ValueError(f"{member.shard}: record {member.key}: {error}") from None
    yield from views_of(image, section.size_px, section.interpolation, section.views(member.split, member.key))
