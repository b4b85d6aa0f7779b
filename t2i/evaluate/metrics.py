"""Metrics on unit-normalised CLIP features, one function each. docs/metrics.md explains what each one measures."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def cmmd(real: Float[Tensor, "n d"], drawn: Float[Tensor, "m d"]) -> float:
    """Returns CMMD, the squared maximum mean discrepancy times 1000 (Jayasumana et al. 2024, arXiv 2401.09603).

    Gaussian kernel with sigma 10, biased estimate. The kernel is wide, so CMMD is nearly proportional to the squared distance
    between the means: it is sensitive to the style of the images, and hardly to their content.
    """

    def mean_kernel(x: Tensor, y: Tensor) -> Tensor:
        return torch.exp(-torch.cdist(x.double(), y.double()).square() / (2 * 10.0**2)).mean()

    return 1000 * (mean_kernel(real, real) + mean_kernel(drawn, drawn) - 2 * mean_kernel(real, drawn)).item()


def kid(real: Float[Tensor, "n d"], drawn: Float[Tensor, "m d"]) -> float:
    """Returns KID on CLIP features, times 1000 (Binkowski et al. 2018, arXiv 1801.01401).

    The unbiased squared maximum mean discrepancy with the kernel (x.y + 1)^3 on unit features, which equals KID's
    (x.y / d + 1)^3 on features of norm sqrt(d). It is sensitive to spread as well as mean. Equal distributions give 0 on
    average.
    """

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x.double() @ y.double().T + 1) ** 3

    def mean_without_self(x: Tensor) -> Tensor:
        k = kernel(x, x)
        return (k.sum() - k.diagonal().sum()) / (len(x) * (len(x) - 1))

    return 1000 * (mean_without_self(real) + mean_without_self(drawn) - 2 * kernel(real, drawn).mean()).item()


def found(images: Float[Tensor, "n d"], prompts: Float[Tensor, "n d"]) -> Bool[Tensor, " n"]:
    """Returns which images have their highest cosine similarity with their own prompt, among all prompts."""
    scores = images @ prompts.T
    return scores.diagonal() >= scores.max(dim=1).values - 1e-6  # scores of equal prompts differ by rounding: they share a rank


def prompt_retrieval(images: Float[Tensor, "n d"], prompts: Float[Tensor, "n d"]) -> float:
    """Returns the fraction of images whose own prompt ranks first."""
    return found(images, prompts).double().mean().item()


def clip_score(images: Float[Tensor, "n d"], prompts: Float[Tensor, "n d"]) -> float:
    """Returns the mean cosine similarity of images and their prompts, times 100. Compare it only on the same prompts."""
    return 100 * (images * prompts).sum(dim=1).double().mean().item()


class Nearest(NamedTuple):
    """The distance of each image to its nearest training image by CLIP."""

    distance: Float[Tensor, " n"]
    """1 - cosine similarity."""
    rmse: Float[Tensor, " n"]
    """Root mean square difference of pixels in [-1, 1]."""


def copied(drawn: Nearest, heldout: Nearest) -> Bool[Tensor, " n"]:
    """Returns which drawn images are copies: nearer to a training image than 95 % of held-out images, in CLIP and pixels.

    Datasets contain images that are nearly alike. With this threshold, at most about 5 % of new images count as copies.
    """
    near = torch.quantile(heldout.distance, 0.05), torch.quantile(heldout.rmse, 0.05)
    return (drawn.distance < near[0]) & (drawn.rmse < near[1])


def interval(
    statistic: Callable[[Int[Tensor, " n"]], float], count: int, resamples: int, seed: int, *, centred: bool
) -> tuple[float, float]:
    """Returns the 95 % bootstrap interval of a statistic over records (Efron 1979, doi 10.1214/aos/1176344552).

    Args:
        statistic: returns the value over the records at the given indices, which may repeat.
        count: the number of records.
        resamples: the number of resamples, each of `count` records drawn with replacement.
        seed: the seed of the draws.
        centred: whether to shift the percentiles so that the mean of the resamples equals the estimate. Distances between
            distributions need it: repeated records increase them.
    """
    generator = torch.Generator().manual_seed(seed)
    draws = [statistic(torch.randint(count, (count,), generator=generator)) for _ in range(resamples)]
    values = torch.tensor(draws, dtype=torch.float64)
    low, high = torch.quantile(values, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    shift = statistic(torch.arange(count)) - values.mean().item() if centred else 0.0
    return low + shift, high + shift


class Metric(NamedTuple):
    """How a metric is shown and how its interval is computed."""

    better: Literal[-1, 1]
    """1: higher is better; -1: lower is better."""
    says: str
    """What it means, for the report."""
    real: str | None = None
    """The name of the metric that holds the value of real images."""
    centred: bool = False
    """Whether the interval is shifted onto the estimate (see `interval`)."""


METRICS = {
    "cmmd": Metric(
        -1,
        "Distance to the style of real images, by CLIP. Lower is better; the value of real images is the floor.",
        "cmmd_floor",
        centred=True,
    ),
    "kid": Metric(-1, "Distance to the style and variety of real images, by CLIP. Lower is better.", "kid_floor", centred=True),
    "prompt_retrieval": Metric(
        1,
        "Content: fraction of the samples whose own prompt CLIP ranks first among all prompts. Higher is better.",
        "prompt_retrieval_real",
    ),
    "clip_score": Metric(1, "Similarity of samples and their prompts, by CLIP. Higher is better."),
    "heldout_loss": Metric(-1, "Denoising loss on held-out records. Lower is better."),
    "train_loss": Metric(-1, "Denoising loss on training records. Lower is better."),
    "overfit_gap": Metric(-1, "Held-out loss minus training loss. It grows if the model memorizes training images."),
    "copy_rate": Metric(-1, "Fraction of the samples that nearly equal a training image. Lower is better."),
    "retention_retrieval": Metric(
        1, "Prompt retrieval on prompts outside the dataset. It drops if the model forgets what the base can draw."
    ),
}
"""Every metric of both base and fine-tuned model, in the order of the report."""
