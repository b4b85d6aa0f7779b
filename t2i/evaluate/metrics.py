"""Metrics: one function each, on unit-normalised CLIP features. docs/metrics.md says what each is good for."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def cmmd(real: Float[Tensor, "n d"], drawn: Float[Tensor, "m d"]) -> float:
    """Returns CMMD, the squared maximum mean discrepancy times 1000 (Jayasumana et al. 2024, arXiv 2401.09603).

    Gaussian kernel of sigma 10, biased estimate. With so wide a kernel it is nearly the squared distance of the means:
    it sees a change of look at once, and content hardly.
    """

    def mean_kernel(x: Tensor, y: Tensor) -> Tensor:
        return torch.exp(-torch.cdist(x.double(), y.double()).square() / (2 * 10.0**2)).mean()

    return 1000 * (mean_kernel(real, real) + mean_kernel(drawn, drawn) - 2 * mean_kernel(real, drawn)).item()


def kid(real: Float[Tensor, "n d"], drawn: Float[Tensor, "m d"]) -> float:
    """Returns KID on CLIP features, times 1000 (Binkowski et al. 2018, arXiv 1801.01401).

    The unbiased squared maximum mean discrepancy under the kernel (x.y + 1)^3 of unit features, which is KID's
    (x.y / d + 1)^3 of features of norm sqrt(d). It sees spread as well as mean; equal distributions give 0 on average.
    """

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x.double() @ y.double().T + 1) ** 3

    def mean_without_self(x: Tensor) -> Tensor:
        k = kernel(x, x)
        return (k.sum() - k.diagonal().sum()) / (len(x) * (len(x) - 1))

    return 1000 * (mean_without_self(real) + mean_without_self(drawn) - 2 * kernel(real, drawn).mean()).item()


def found(images: Float[Tensor, "n d"], prompts: Float[Tensor, "n d"]) -> Bool[Tensor, " n"]:
    """Returns which images have the highest cosine with their own prompt among all prompts."""
    scores = images @ prompts.T
    return scores.diagonal() >= scores.max(dim=1).values - 1e-6  # equal prompts differ by rounding, and share the first rank


def prompt_retrieval(images: Float[Tensor, "n d"], prompts: Float[Tensor, "n d"]) -> float:
    """Returns the share of images that are found by their own prompt."""
    return found(images, prompts).double().mean().item()


def clip_score(images: Float[Tensor, "n d"], prompts: Float[Tensor, "n d"]) -> float:
    """Returns the mean cosine of images and their prompts, times 100; only differences on the same prompts mean anything."""
    return 100 * (images * prompts).sum(dim=1).double().mean().item()


class Nearest(NamedTuple):
    """How near each of some images is to the training image that is nearest to it by CLIP."""

    distance: Float[Tensor, " n"]
    """1 - cosine."""
    rmse: Float[Tensor, " n"]
    """Root mean square difference of the pixels, which are in [-1, 1]."""


def copied(drawn: Nearest, heldout: Nearest) -> Bool[Tensor, " n"]:
    """Returns which drawn images are copies: nearer to a training image than held-out real images are to theirs.

    Nearer than all but the nearest twentieth of the held-out ones, by CLIP and in pixels both; so about a twentieth,
    at most, of new images pass for copies, since datasets hold pictures that are nearly alike.
    """
    near = torch.quantile(heldout.distance, 0.05), torch.quantile(heldout.rmse, 0.05)
    return (drawn.distance < near[0]) & (drawn.rmse < near[1])


def interval(
    statistic: Callable[[Int[Tensor, " n"]], float], count: int, resamples: int, seed: int, *, centred: bool
) -> tuple[float, float]:
    """Returns a statistic's 95 % bootstrap interval over records (Efron 1979, doi 10.1214/aos/1176344552).

    Args:
        statistic: gives the figure of some of the records, by place; the same one may come twice.
        count: number of records.
        resamples: how often as many records are drawn, with replacement.
        seed: of the draws.
        centred: whether to move the percentiles so that the resamples' mean lies on the estimate: repeated records raise
            a discrepancy of distributions.
    """
    generator = torch.Generator().manual_seed(seed)
    draws = [statistic(torch.randint(count, (count,), generator=generator)) for _ in range(resamples)]
    values = torch.tensor(draws, dtype=torch.float64)
    low, high = torch.quantile(values, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    shift = statistic(torch.arange(count)) - values.mean().item() if centred else 0.0
    return low + shift, high + shift


class Metric(NamedTuple):
    """How a figure is shown, and how its interval is taken."""

    better: Literal[-1, 1]
    """1: higher is better; -1: lower."""
    says: str
    """What it means, for the page."""
    real: str | None = None
    """The figure that says what real images score."""
    centred: bool = False
    """Whether the interval is moved onto the estimate: a distance of distributions grows where records repeat."""


METRICS = {
    "cmmd": Metric(
        -1, "Distance of the looks, by CLIP. Lower is nearer; the real images' is the floor.", "cmmd_floor", centred=True
    ),
    "kid": Metric(-1, "Distance of the looks and of their spread, by CLIP. Lower is nearer.", "kid_floor", centred=True),
    "prompt_retrieval": Metric(
        1, "Fraction of the samples whose own prompt CLIP ranks first: the content.", "prompt_retrieval_real"
    ),
    "clip_score": Metric(1, "How well samples fit their prompts, by CLIP."),
    "heldout_loss": Metric(-1, "Denoising error on records that were not trained on."),
    "train_loss": Metric(-1, "The same on records that were."),
    "overfit_gap": Metric(-1, "Held-out less training error: grows if training images are learnt by heart."),
    "copy_rate": Metric(-1, "Fraction of the samples that are nearly a training image."),
    "retention_retrieval": Metric(1, "Content of prompts outside the dataset: what the fine-tune has not forgotten."),
}
"""Every figure that base and model both have, in the order of the page."""
