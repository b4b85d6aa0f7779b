"""Sampling: draws images from prompts; the noise of each image depends only on its seed and name."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial
from types import TracebackType
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from t2i.core.launcher import Tasks
from t2i.core.machine import cores
from t2i.data.chance import derived_seed
from t2i.model.family import Drawing, Family
from t2i.model.precision import computing_in
from t2i.model.runtime import Runtime, numbered


class Chunk(NamedTuple):
    """Images that are drawn together."""

    how: Drawing
    prompts: Sequence[str]
    seeds: Sequence[tuple[int, str]]


class Sampler:
    """Draws images with one model, in this process or in several that share the prompts.

    Args:
        opened: opens the model; called in every process.
        runtime: says which processes share the prompts.
    """

    def __init__(self, opened: Callable[[], Family], runtime: Runtime) -> None:
        self.family, self._opened, self._runtime = opened(), opened, runtime

    @cached_property
    def _workers(self) -> Tasks | None:
        return self._runtime.workers(partial(_start, self._opened))

    def __enter__(self) -> "Sampler":
        """Returns itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Ends the other processes."""
        if workers := self.__dict__.get("_workers"):
            workers.close()

    def draw(self, how: Drawing, prompts: Sequence[str], seeds: Sequence[tuple[int, str]]) -> list[Image.Image]:
        """Returns one image per prompt; the noise of each depends only on its seed and name, not on its place in the list."""
        drawn: list[Image.Image] = []
        starts = range(0, len(prompts), how.batch_size)
        chunks = [Chunk(how, prompts[at : at + how.batch_size], seeds[at : at + how.batch_size]) for at in starts]
        with tqdm(total=len(prompts), desc="sampling", unit=" images") as progress:
            for images in self._drawn(chunks):
                drawn += images
                progress.update(len(images))
        return drawn

    def _drawn(self, chunks: list[Chunk]) -> Iterator[list[Image.Image]]:
        if len(chunks) < 2 or self._workers is None:
            for chunk in chunks:
                yield draw_chunk(self.family, chunk)
            return
        for chunk, answer in [(chunk, self._workers.submit(chunk)) for chunk in chunks]:
            levels = np.frombuffer(answer.result(), np.uint8).reshape(len(chunk.prompts), *chunk.how.size_px, 3)
            yield [Image.fromarray(its) for its in levels]


def draw_chunk(family: Family, chunk: Chunk) -> list[Image.Image]:
    """Returns one image per prompt, all drawn in one pass."""
    generators = [torch.Generator().manual_seed(derived_seed(seed, "sample", name)) for seed, name in chunk.seeds]
    with computing_in(chunk.how.precision, chunk.how.device):
        return family.sample(chunk.prompts, generators, chunk.how)


def _start(opened: Callable[[], Family], number: int, processes: int) -> Callable[[Chunk], bytes]:
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, cores() // processes))
    return partial(_draw, opened(), number)


def _draw(family: Family, number: int, chunk: Chunk) -> bytes:
    """Returns the pixels of a chunk, drawn on the device with this number."""
    how = replace(chunk.how, device=numbered(chunk.how.device, number))
    images = draw_chunk(family, chunk._replace(how=how))
    return np.stack([np.asarray(image) for image in images]).tobytes()
