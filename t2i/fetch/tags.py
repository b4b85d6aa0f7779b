"""Tags: the most frequent parts of captions, as programs that manage LoRA files show them (`ss_tag_frequency`)."""

from collections import Counter
from collections.abc import Iterable


def most_frequent(captions: Iterable[str], most: int = 100) -> dict[str, int]:
    """Returns the most frequent comma-separated parts of captions, in lower case, with their counts; ties are alphabetical."""
    parts = (part.strip().lower() for caption in captions for part in caption.split(","))
    counts = Counter(part for part in parts if part)
    return dict(sorted(counts.items(), key=lambda tag: (-tag[1], tag[0]))[:most])
