"""Motifs: which prompts name something that the captions of a dataset name too."""

import re
from collections.abc import Iterable, Sequence


def in_captions(prompts: Sequence[str], captions: Iterable[str]) -> list[str]:
    """Returns the prompts whose words stand in a caption, one after another; articles and `photo of` do not count."""
    wanted = {prompt: _words(prompt) for prompt in prompts}
    found = set()
    for caption in captions:
        text = _words(caption)
        found |= {prompt for prompt, words in wanted.items() if prompt not in found and words in text}
    return [prompt for prompt in prompts if prompt in found]


def strange_to(prompts: Sequence[str], captions: Iterable[str]) -> list[str]:
    """Returns the prompts that have no word in common with any caption."""
    known = {word for caption in captions for word in _words(caption).split()}
    return [prompt for prompt in prompts if known.isdisjoint(_words(prompt).split())]


_IGNORED = {"a", "an", "the", "of", "photo", "picture", "image", "drawing"}


def _words(text: str) -> str:
    """Returns the words of a text in lower case, each between spaces."""
    words = [word for word in re.findall(r"\w+", text.lower()) if word not in _IGNORED]
    return f" {' '.join(words)} "
