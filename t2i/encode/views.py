"""Views: which square crops of an image are stored, and how they are made."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from t2i.core.params import Section
from t2i.data.chance import hash_fraction
from t2i.data.pixels import Interpolation, View, decode, view
from t2i.data.records import Split
from t2i.data.shards import Member


class CenterCrop(Section):
    """One view, cropped from the middle."""

    name: Literal["center"]


class RandomCrop(Section):
    """Several views, at positions that depend only on the seed, the record and the view."""

    name: Literal["random"]
    views: int = Field(ge=1)
    """Number of crops per image. Training uses one of them each time it reads the image."""


class EncodeImages(Section):
    """Section `encode.images`."""

    resolution_px: int = Field(ge=8)
    """Side of the square images that the model learns from, a multiple of the VAE's downsampling factor."""
    interpolation: Interpolation
    """Filter used to resize images."""
    crop: Annotated[CenterCrop | RandomCrop, Field(discriminator="name")]
    """Which square crops of a larger image are stored."""
    flip: bool
    """Whether to also store each view mirrored. Leave it off if left and right matter."""
    background: str = Field(pattern="^#[0-9a-fA-F]{6}$")
    """Background colour for transparent images, `#rrggbb`."""
    seed: int
    """Decides the positions of random crops."""
    psnr_records: int = Field(ge=1)
    """Number of records per split that are decoded from their moments, to measure what the VAE loses."""
    min_psnr: float
    """The stage fails if the mean PSNR in decibels is lower: the VAE does not fit these images, or the pixels are wrong."""

    def check_factor(self, vae_factor: int) -> None:
        """Raises a ValueError if the resolution is not a multiple of the VAE's downsampling factor."""
        if self.resolution_px % vae_factor:
            raise ValueError(
                f"`encode.images.resolution_px` is {self.resolution_px}, wanted a multiple of {vae_factor}, the VAE's factor"
            )

    def count(self, split: Split) -> int:
        """Returns the number of views per image of a split. A held-out image has one: centred, not flipped."""
        if split == "heldout":
            return 1
        return (self.crop.views if isinstance(self.crop, RandomCrop) else 1) * (2 if self.flip else 1)


def views(section: EncodeImages, member: Member, content: bytes) -> Iterator[View]:
    """Yields the views of an image that are stored. A held-out image has one: centred, not flipped."""
    try:
        image = decode(content, section.background)
    except ValueError as error:
        raise ValueError(f"{member.shard}: record {member.key}: {error}") from None
    places, flips = [(0.5, 0.5)], [False]
    if member.split == "train":
        flips = [False, True] if section.flip else flips
        if isinstance(section.crop, RandomCrop):
            chance = f"{section.seed}:{member.key}"
            places = [
                (hash_fraction(f"{chance}:{n}:down"), hash_fraction(f"{chance}:{n}:across")) for n in range(section.crop.views)
            ]
    for place in places:
        for flipped in flips:
            yield view(image, section.resolution_px, section.interpolation, place, flipped)
