"""Advice: what the figures of a run warn of, each with what to try."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class Figures:
    """Metrics of the stages."""

    evaluation: Mapping[str, float | int]
    intervals: Mapping[str, list[float]]
    """95 % intervals of those."""
    images: Mapping[str, float | int]
    captions: Mapping[str, float | int]


class Warning(NamedTuple):
    """Something that a user would want to know before they trust a model."""

    what: str
    """What was found, with its figures."""
    to_try: str
    """What to change."""


def warnings(figures: Figures) -> list[Warning]:
    """Returns what there is to warn of, the gravest first."""
    checks = (overfitting, copying, forgetting, no_gain, truncation, loss_of_detail)
    return [warning for check in checks if (warning := check(figures)) is not None]


def overfitting(f: Figures) -> Warning | None:
    """Warns where the gap, as a share of the training loss, exceeds the base's share by more than a quarter, beyond chance."""
    heldout, train = f.evaluation["heldout_loss"], f.evaluation["train_loss"]
    of_base = f.evaluation["overfit_gap_base"] / f.evaluation["train_loss_base"]
    if f.intervals["overfit_gap"][0] / train - of_base <= 0.25:
        return None
    return Warning(
        f"Overfitting: the denoising loss is {heldout:.3g} on held-out records and {train:.3g} on those trained on.",
        "Fewer `train.steps`, a lower `train.learning_rate`, or more images.",
    )


def copying(f: Figures) -> Warning | None:
    """Warns where more samples than a twentieth, which real images would score, are all but training images."""
    if f.intervals["copy_rate"][0] <= 0.05:
        return None
    return Warning(
        f"Copying: {f.evaluation['copy_rate']:.0%} of the samples lie nearer to a training image than 95 % of held-out images.",
        "Remove duplicates from the dataset, add images, or train for fewer steps; the nearest pairs are shown below.",
    )


def forgetting(f: Figures) -> Warning | None:
    """Warns where more than a quarter of what the base drew right, of what the dataset has not, is lost, beyond chance."""
    if "retention_retrieval" not in f.evaluation:
        return None
    if f.intervals["retention_retrieval"][1] >= 0.75 * f.evaluation["retention_retrieval_base"]:
        return None
    now, before = f.evaluation["retention_retrieval"], f.evaluation["retention_retrieval_base"]
    return Warning(
        f"Forgetting: CLIP finds the prompt of {now:.0%} of the samples of what the dataset has not; the base's: {before:.0%}.",
        "A lower `train.learning_rate`, fewer `train.steps`, or images of such things in the dataset.",
    )


def no_gain(f: Figures) -> Warning | None:
    """Warns where the held-out loss is not below the base's."""
    now, before = f.evaluation["heldout_loss"], f.evaluation.get("heldout_loss_base")
    if before is None or now < before:  # None: the base is asked for something else
        return None
    return Warning(
        f"No gain: the held-out loss is {now:.3g}, the base's {before:.3g}.",
        "Look at the loss curves: a `train.learning_rate` too high or too low, or too few `train.steps`.",
    )


def truncation(f: Figures) -> Warning | None:
    """Warns where captions are longer than the tokenizer lets through."""
    if not f.captions["truncated"]:
        return None
    return Warning(
        f"{f.captions['truncated']:.0f} of {f.captions['captions']:.0f} captions are cut short: their ends are not learnt.",
        "Shorten them; what matters first.",
    )


def loss_of_detail(f: Figures) -> Warning | None:
    """Warns where the VAE loses so much that the eye sees it."""
    if f.images["psnr_mean"] >= 24:
        return None
    return Warning(
        f"Decoded back from their latents, images have a PSNR of {f.images['psnr_mean']:.1f} dB: detail is lost.",
        "A larger `encode.images.resolution_px`, or a base whose VAE knows such images.",
    )
