"""Views: which squares of an image are kept, and how they are made."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from t2i.core.params import Section
from t2i.data.chance import hash_fraction
from t2i.data.pixels import Interpolation, View, decode, view
from t2i.data.records import Split
from t2i.data.shards import Member


class CenterCrop(Section):
    """One view, from the middle."""

    name: Literal["center"]


class RandomCrop(Section):
    """Several views, at places that depend on the seed, the record and the view alone."""

    name: Literal["random"]
    views: int = Field(ge=1)
    """Crops of each image; training takes one a visit."""


class EncodeImages(Section):
    """Section `encode.images`."""

    resolution_px: int = Field(ge=8)
    """Side of the squares that the model learns, a multiple of the VAE's factor."""
    interpolation: Interpolation
    """Filter of the resize."""
    crop: Annotated[CenterCrop | RandomCrop, Field(discriminator="name")]
    """Which squares of a larger image are kept."""
    flip: bool
    """Whether each view is stored mirrored too; leave it off where left and right matter."""
    background: str = Field(pattern="^#[0-9a-fA-F]{6}$")
    """Ground laid under transparent images, `#rrggbb`."""
    seed: int
    """Decides where random crops lie."""
    psnr_records: int = Field(ge=1)
    """Records of each split that are decoded back from their moments, to measure what the VAE loses."""
    min_psnr: float
    """Mean PSNR in decibels below which the stage fails: the VAE does not know such images, or the pixels are wrong."""

    def check_factor(self, vae_factor: int) -> None:
        """Raises a ValueError where the resolution is no multiple of what a latent stands for."""
        if self.resolution_px % vae_factor:
            raise ValueError(f"`encode.images.resolution_px` {self.resolution_px} is no multiple of the VAE's {vae_factor}")

    def count(self, split: Split) -> int:
        """Returns how many views an image of a split has; a held-out image has one, from the middle, not flipped."""
        if split == "heldout":
            return 1
        return (self.crop.views if isinstance(self.crop, RandomCrop) else 1) * (2 if self.flip else 1)


def views(section: EncodeImages, member: Member, content: bytes) -> Iterator[View]:
    """Yields an image's stored views; a held-out image has one, from the middle, not flipped."""
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
