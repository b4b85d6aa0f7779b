"""Screening: finds records that cannot be used, and either stops at the first one or leaves them out."""

import csv
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

from t2i.data.decoding import decode, identify
from t2i.data.records import readable
from t2i.fetch.bounds import Bounded

OnBad = Literal["error", "skip"]


def checked_captions(captions: tuple[Any, ...]) -> tuple[str, ...]:
    """Returns the captions of a record without byte-order marks, each once, after checking that a text encoder can read them.

    Raises:
        ValueError: if there is none, or one cannot be used; the message is `kind: detail`.
    """
    if not captions:
        raise ValueError("no caption: an empty list")
    texts: dict[str, None] = {}
    for caption in captions:
        if caption is None:
            raise ValueError("null caption: wanted text")
        if not isinstance(caption, str):
            raise ValueError(f"caption is not text: got {repr(caption)[:80]}")
        texts[readable(caption, "caption")] = None
    return tuple(texts)


def check_image(content: bytes, max_pixels: int, min_side_px: int) -> str:
    """Checks that an image can be used, and returns its file extension: reads the size in the header, then decodes every pixel.

    Decoding, about 10 ms per megapixel, is the main cost of `fetch dataset` besides reading and writing.

    Raises:
        ValueError: if the image cannot be used; the message is `kind: detail`.
    """
    extension = identify(content, max_pixels, min_side_px)
    decode(content, "#ffffff")
    return extension


@contextmanager
def image_check(max_pixels: int, min_side_px: int, max_decode_seconds: float) -> Iterator[Callable[[bytes], str]]:
    """Yields `check_image`, run in a separate process that may use 512 MB plus 40 bytes per pixel of `max_pixels`.

    The limits work for every decoder. A progressive JPEG can repeat a scan of 60 megapixels thousands of times (40 ms for each
    90 bytes), and a JPEG 2000 file of 140 kB can ask for 11 GB. `encode images` decodes the same images with the same code,
    so it needs no limits of its own.

    Args:
        max_pixels: largest number of pixels allowed.
        min_side_px: smallest width and height allowed.
        max_decode_seconds: most processor time for one image.
    """
    check = partial(check_image, max_pixels=max_pixels, min_side_px=min_side_px)
    with Bounded(check, max_decode_seconds, 2**29 + 40 * max_pixels) as bounded:

        def checked(content: bytes) -> str:
            try:
                return bounded(content)
            except TimeoutError as error:
                raise ValueError(f"image too slow to decode: it takes {error} (`fetch.max_decode_seconds`)") from None
            except MemoryError as error:
                raise ValueError(f"image too large: decoding takes {error} (`fetch.max_pixels`)") from None
            except ChildProcessError as error:
                raise ValueError(f"not a readable image: decoding failed, {error}") from None

        yield checked


class Screen:
    """Stops at the first bad record, or leaves bad records out; counts and lists everything found that is not kept."""

    def __init__(self, on_bad: OnBad, max_bad_fraction: float) -> None:
        self.found = 0
        """Number of records found, and of images that no caption names."""
        self.checked = 0
        """Number of records that were drawn and checked, good or bad."""
        self.over_limit = 0
        """Number of records that were not drawn, or gave way to others, because of the limits per split."""
        self.skipped: list[tuple[str, str]] = []
        self._merged: dict[str, list[tuple[str, str]]] = {}
        self.unnamed: list[tuple[str, str]] = []
        self._on_bad, self._max_bad_fraction = on_bad, max_bad_fraction

    def leave_out(self, place: str, reason: str) -> None:
        """Leaves out a bad record.

        Args:
            place: where the record is in its source.
            reason: `kind: detail`; records are counted by kind.

        Raises:
            ValueError: if `on_bad` is `error`.
        """
        if self._on_bad == "error":
            raise ValueError(f"{place}: {reason}; fix the record, or set `fetch.on_bad: skip` to leave bad records out")
        self.skipped.append((place, " ".join(reason.split())))

    def merge(self, place: str, kept: str) -> None:
        """Notes that a record has the same image as one that is kept, and so gives it its captions."""
        self._merged.setdefault(kept, []).append((place, f"merged: same image as {kept}"))

    def give_way(self, kept: str) -> None:
        """Notes that a kept record gave way to another one, and with it those that were merged with it."""
        self.over_limit += 1 + len(self._merged.pop(kept, ()))

    @property
    def merged(self) -> list[tuple[str, str]]:
        """The records with the same image as one that is kept, and their reasons."""
        return [row for rows in self._merged.values() for row in rows]

    def note_unnamed(self, places: list[str]) -> None:
        """Notes images that no caption names."""
        self.found += len(places)
        self.unnamed += [(place, "unnamed: no caption names this image") for place in places]

    def kinds(self) -> dict[str, int]:
        """Returns the number of bad records for each kind of reason, most frequent first."""
        return dict(Counter(reason.partition(":")[0] for _, reason in self.skipped).most_common())

    def check_fraction(self) -> None:
        """Raises a ValueError if the fraction of bad records among the checked ones is above the limit."""
        if len(self.skipped) > self._max_bad_fraction * self.checked:
            counts = ", ".join(f"{count} {kind}" for kind, count in self.kinds().items())
            place, reason = self.skipped[0]
            raise ValueError(
                f"{len(self.skipped)} of {self.checked} checked records cannot be used ({counts}), wanted at most a fraction "
                f"of {self._max_bad_fraction}: fix the dataset, or change `fetch.max_bad_fraction`; "
                f"the first is {place}: {reason}"
            )

    def write(self, path: Path) -> None:
        """Writes the bad, the merged and the unnamed ones to a CSV file with columns `record` and `reason`."""
        with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(("record", "reason"))
            rows.writerows([*self.skipped, *self.merged, *self.unnamed])
