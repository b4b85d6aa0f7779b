"""Screening: which records cannot be used, why, and what becomes of them."""

import csv
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

from t2i.data.pixels import decode, identify
from t2i.fetch.bounds import Bounded

OnBad = Literal["error", "skip"]


def check_captions(captions: tuple[Any, ...]) -> None:
    """Lets through what a text encoder can read: at least one caption, each of them text.

    Raises:
        ValueError: as `kind: detail`.
    """
    if not captions:
        raise ValueError("no caption: an empty list")
    for caption in captions:
        if caption is None:
            raise ValueError("null caption: wanted text")
        got = f"got {repr(caption)[:80]}"
        if not isinstance(caption, str):
            raise ValueError(f"caption that is no text: {got}")
        if not caption.strip():
            raise ValueError(f"blank caption: {got}")
        if "\0" in caption:
            raise ValueError(f"caption with a NUL: {got}")
        if any("\ud800" <= character <= "\udfff" for character in caption):
            raise ValueError(f"caption that is no Unicode: {got}")


def check_image(content: bytes, max_pixels: int, min_side_px: int) -> str:
    """Returns the extension of an image that is whole: its size is read from the header, then every pixel is decoded.

    The decoding is what `fetch dataset` costs beside reading and writing: once an image, some 10 ms a megapixel.

    Raises:
        ValueError: as `kind: detail`.
    """
    extension = identify(content, max_pixels, min_side_px)
    decode(content, "#ffffff")
    return extension


@contextmanager
def image_check(max_pixels: int, min_side_px: int, max_decode_seconds: float) -> Iterator[Callable[[bytes], str]]:
    """Gives check_image in a process of its own, which may take 512 MB and 40 bytes a pixel of max_pixels, and so much time.

    The limits hold whatever the decoder: a progressive JPEG can repeat a scan of 60 megapixels thousands of times (40 ms for 90
    bytes), a JPEG 2000 of 140 kB ask for 11 GB. What passes is decoded by the same code wherever it is decoded again, and costs
    no more there: `encode images` needs no limits of its own.
    """
    check = partial(check_image, max_pixels=max_pixels, min_side_px=min_side_px)
    with Bounded(check, max_decode_seconds, 2**29 + 40 * max_pixels) as bounded:

        def checked(content: bytes) -> str:
            try:
                return bounded(content)
            except TimeoutError as error:
                raise ValueError(f"too slow an image: decoding it takes {error} (`fetch.max_decode_seconds`)") from None
            except MemoryError as error:
                raise ValueError(f"too large an image: decoding it takes {error} (`fetch.max_pixels`)") from None
            except ChildProcessError as error:
                raise ValueError(f"not a readable image: decoding it fails, {error}") from None

        yield checked


class Screen:
    """Ends the work at the first bad record, or leaves such records out and keeps count."""

    def __init__(self, on_bad: OnBad, max_bad_fraction: float) -> None:
        self.looked_at = 0
        self.skipped: list[tuple[str, str]] = []
        self._on_bad, self._max_bad_fraction = on_bad, max_bad_fraction

    def leave_out(self, place: str, reason: str) -> None:
        """Notes a bad record.

        Args:
            place: where its source has it.
            reason: `kind: detail`; kinds are counted.

        Raises:
            ValueError: where bad records are errors.
        """
        if self._on_bad == "error":
            raise ValueError(f"{place}: {reason}; mend it, or set `fetch.on_bad: skip` to leave such records out")
        self.skipped.append((place, " ".join(reason.split())))

    def kinds(self) -> dict[str, int]:
        """Returns how many records were left out for each kind of reason, the most frequent first."""
        return dict(Counter(reason.partition(":")[0] for _, reason in self.skipped).most_common())

    def check_fraction(self) -> None:
        """Raises ValueError where more than the allowed share of the records that were looked at is bad."""
        if len(self.skipped) > self._max_bad_fraction * self.looked_at:
            counts = ", ".join(f"{count} {kind}" for kind, count in self.kinds().items())
            place, reason = self.skipped[0]
            raise ValueError(
                f"{len(self.skipped)} of {self.looked_at} records that were looked at cannot be used ({counts}), wanted at "
                f"most a share of {self._max_bad_fraction}: mend the dataset, or change `fetch.max_bad_fraction`; "
                f"the first is {place}: {reason}"
            )

    def write(self, path: Path) -> None:
        """Writes the records that were left out as CSV, in the order of the source: record, reason."""
        with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(("record", "reason"))
            rows.writerows(self.skipped)
