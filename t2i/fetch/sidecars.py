"""Sidecars: captions in text files beside the images, photos/0001.txt beside photos/0001.png; and kohya's folders.

Each line of a caption file that is not blank is one caption. The name of a folder of kohya, such as `10_sks dog`, says how
often training uses its images in an epoch, and is the caption of its images that have no caption file.
"""

import re
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import AfterValidator

from t2i.core.params import Section
from t2i.data.records import is_blank
from t2i.fetch.inside import Inside
from t2i.fetch.metadata import ROWS
from t2i.fetch.source import (
    IMAGES,
    Dataset,
    Extensions,
    Record,
    broken,
    check_not_utf_16,
    files_in,
    in_experiment,
    record_of,
)

_MOST_REPEATS = 10_000
"""A larger number in the name of a folder is taken for a mistake."""


def _of_texts(extensions: list[str]) -> list[str]:
    for extension in extensions:
        if f".{extension}" in IMAGES:
            raise ValueError(f"got {extension!r}, the extension of an image, wanted those of caption files, such as txt")
    return extensions


CaptionExtensions = Annotated[Extensions, AfterValidator(_of_texts)]


class Sidecar(Section):
    """The captions of an image are the lines of the text file beside it that has the same name and another extension."""

    name: Literal["sidecar"]
    extensions: CaptionExtensions
    """Extensions of caption files, such as [txt, caption]. An image has one caption file; two are an error."""

    def __call__(self, local: Path) -> Dataset:
        """Returns the images of a folder, with the captions beside them.

        Raises:
            ValueError: if no image has a caption file.
        """
        stems = _stems(local, self.extensions)
        if not any(stem.images and stem.texts for stem in stems):
            one = f"photos/0001.{self.extensions[0]}"
            raise ValueError(
                f"{local}: no image has a caption file beside it, wanted files such as photos/0001.png and {one} "
                f"(`fetch.source.captions`){_elsewhere(local, stems, self.extensions)}"
            )
        return Dataset(_records(local, stems, self.extensions, kohya=False), {"source": f"folder {local.name}"})


class Kohya(Section):
    """As `sidecar`, and folders named `10_sks dog` say how often their images are used, and what they show."""

    name: Literal["kohya"]
    extensions: CaptionExtensions
    """Extensions of caption files, such as [txt, caption]. An image without one has the folder's words as its caption."""

    def __call__(self, local: Path) -> Dataset:
        """Returns the images of a folder, with their captions and repeats.

        Raises:
            ValueError: if no image is in a folder whose name begins with a number and `_`.
        """
        stems = _stems(local, self.extensions)
        if not any(stem.images and _named(stem.path, local) for stem in stems):
            above = "; `fetch.local` is the folder above it" if _FOLDER.fullmatch(local.name) else ""
            raise ValueError(
                f"{local}: no image in a folder such as `10_sks dog`, wanted the number of repeats, `_` and words "
                f"(`fetch.source.captions`){above or _elsewhere(local, stems, self.extensions)}"
            )
        return Dataset(_records(local, stems, self.extensions, kohya=True), {"source": f"folder {local.name}"})


class Stem(NamedTuple):
    """The files that have the same path apart from their extension."""

    path: Path
    """The path without an extension."""
    images: list[Path]
    texts: list[Path]
    """The caption files."""


def _elsewhere(local: Path, stems: Iterable[Stem], extensions: Iterable[str]) -> str:
    """Returns what to add to the message about a folder without captions of one kind: it may have those of another."""
    if in_experiment(local):
        return "; if the checkout has them, neither git nor DVC tracks them: `dvc add` them there"
    listed = f"extensions: [{', '.join(extensions)}]"
    has = {
        f"{{name: sidecar, {listed}}}": any(stem.images and stem.texts for stem in stems),
        f"{{name: kohya, {listed}}}": any(stem.images and _named(stem.path, local) for stem in stems),
        "{name: metadata, column: text}": any(files_in(local, f"**/{name}") for name in ROWS),
    }
    return next((f"; for what is there, set it to {form}" for form, is_there in has.items() if is_there), "")


def _stems(local: Path, extensions: Iterable[str]) -> list[Stem]:
    """Returns the images and the caption files in a folder, sorted; what has a name that begins with a dot is left out."""
    ends = sorted((f".{extension}" for extension in extensions), key=len, reverse=True)
    found: dict[Path, Stem] = {}
    for path in files_in(local, "**/*"):
        is_image = path.suffix.lower() in IMAGES
        end = path.suffix if is_image else next((end for end in ends if path.name.lower().endswith(end)), "")
        if end and not any(part.startswith(".") for part in path.relative_to(local).parts):
            name = path.with_name(path.name[: -len(end)])
            stem = found.setdefault(name, Stem(name, [], []))
            (stem.images if is_image else stem.texts).append(path)
    return sorted(found.values(), key=lambda stem: stem.path)


def _records(local: Path, stems: Iterable[Stem], extensions: list[str], *, kohya: bool) -> Iterator[Record]:
    inside = Inside(local)
    for stem in stems:
        for path in stem.images or stem.texts:
            within = path.relative_to(local).as_posix()
            place = f"{local}/{within}"
            try:
                repeats, words = _of_folder(path, local) if kohya else (1, None)
                captions = _captions(stem, extensions, words)
            except ValueError as error:
                yield broken(place, str(error), within)
            else:
                yield record_of(place, partial(inside.read, within), captions, within, repeats)


_FOLDER = re.compile(r"([0-9]+)_(.+)", re.DOTALL)


def _named(path: Path, local: Path) -> re.Match[str] | None:
    """Returns the number and the words in the name of the nearest folder of kohya around a file; None if there is none."""
    parts = path.relative_to(local).parts[:-1]
    return next(filter(None, map(_FOLDER.fullmatch, reversed(parts))), None)


def _of_folder(path: Path, local: Path) -> tuple[int, str | None]:
    """Returns the repeats and the caption that a file has from its folder; 1 and None if no folder around it has them."""
    if (named := _named(path, local)) is None:
        return 1, None
    if not 1 <= (repeats := int(named[1])) <= _MOST_REPEATS:
        raise ValueError(f"wrong repeats: folder {named[0]!r} says {repeats}, wanted 1 to {_MOST_REPEATS}: rename the folder")
    return repeats, named[2]


def _captions(stem: Stem, extensions: Iterable[str], words: str | None) -> list[str]:
    """Returns the captions of an image.

    Args:
        stem: its files.
        extensions: extensions of caption files.
        words: its caption if it has no caption file; None: it then has none.

    Raises:
        ValueError: if it has no caption, or it is not clear which one; the message is `kind: detail`.
    """
    if not stem.images:
        raise ValueError("missing image: no image of this name beside the caption file")
    if len(stem.texts) > 1:
        two = " and ".join(path.name for path in stem.texts)
        raise ValueError(f"two caption files: {two}; remove one, or its extension from `fetch.source.captions.extensions`")
    if stem.texts and len(stem.images) > 1:
        two = " and ".join(path.name for path in stem.images)
        raise ValueError(f"two images for one caption file: {two} for {stem.texts[0].name}; rename one, or remove it")
    if stem.texts:
        return _lines(stem.texts[0])
    if words is None:
        names = " or ".join(f"{stem.path.name}.{extension}" for extension in extensions)
        raise ValueError(f"no caption: no {names} beside the image (`fetch.source.captions.extensions`)")
    return [words]


def _lines(path: Path) -> list[str]:
    """Returns the lines of a caption file that are not blank."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"no caption: {path.name}: {error.strerror}") from None
    check_not_utf_16(content[:16], f"caption is not UTF-8: {path.name}")
    # A byte that is not UTF-8 becomes a lone surrogate; screening then rejects the caption.
    lines = re.split(r"\r\n|\r|\n", content.decode("utf-8-sig", errors="surrogateescape"))
    captions = [line.strip() for line in lines if not is_blank(line)]
    if not captions:
        raise ValueError(f"no caption: {path.name} is {'blank' if content else 'empty'}")
    return captions
