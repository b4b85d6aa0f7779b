"""Advice: the warnings that the metrics of a run give rise to, each with a remedy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from t2i.data.records import ENOUGH_HELDOUT


@dataclass(frozen=True)
class StageMetrics:
    """Metrics written by the stages."""

    evaluation: Mapping[str, float | int]
    intervals: Mapping[str, list[float]]
    """The 95 % intervals of `evaluation`."""
    images: Mapping[str, float | int]
    captions: Mapping[str, float | int]
    familiar: Sequence[str] = ()
    """The retention prompts that captions of the dataset name."""
    strange: Sequence[str] = ()
    """The validation prompts that have no word in common with any caption."""


READABLE = 0.3
"""Least prompt retrieval of images: below it, this CLIP does not recognize what they show."""


class Warning(NamedTuple):
    """A problem that a user should know of before trusting the model."""

    what: str
    """The problem, with the metrics that show it."""
    to_try: str
    """The remedy."""


def warnings(figures: StageMetrics) -> list[Warning]:
    """Returns all warnings, the most serious first."""
    checks = (
        overfitting,
        copying,
        forgetting,
        no_gain,
        unreadable,
        few_heldout,
        familiar_prompts,
        strange_prompts,
        truncation,
        loss_of_detail,
    )
    return [warning for check in checks if (warning := check(figures)) is not None]


def overfitting(f: StageMetrics) -> Warning | None:
    """Warns if the overfit gap, as a fraction of the training loss, is more than 0.25 above the base's.

    Uses the lower end of the gap's interval, so that chance does not cause the warning.
    """
    heldout, train = f.evaluation["heldout_loss"], f.evaluation["train_loss"]
    of_base = f.evaluation["overfit_gap_base"] / f.evaluation["train_loss_base"]
    if f.intervals["overfit_gap"][0] / train - of_base <= 0.25:
        return None
    return Warning(
        f"Overfitting: the denoising loss is {heldout:.3g} on held-out records and {train:.3g} on training records.",
        "Add images: a run on 20 of them learns them by heart, a run on 1,404 does not.",
    )


def copying(f: StageMetrics) -> Warning | None:
    """Warns if more than 5 % of the samples nearly equal a training image; real held-out images score at most 5 %.

    Uses the lower end of the interval.
    """
    if f.intervals["copy_rate"][0] <= 0.05:
        return None
    return Warning(
        f"Copying: {f.evaluation['copy_rate']:.0%} of the samples are nearer to a training image than 95 % of held-out images.",
        "Add images: a run on 20 of them learns them by heart, a run on 1,404 does not. The nearest pairs are shown below.",
    )


def forgetting(f: StageMetrics) -> Warning | None:
    """Warns if prompt retrieval on the retention prompts is below 75 % of the base's.

    Uses the upper end of the interval. Says nothing if this CLIP does not recognize what the base draws for them.
    """
    if not reads_retention(f):
        return None
    if f.intervals["retention_retrieval"][1] >= 0.75 * f.evaluation["retention_retrieval_base"]:
        return None
    now, before = f.evaluation["retention_retrieval"], f.evaluation["retention_retrieval_base"]
    return Warning(
        f"Forgetting: on prompts outside the dataset, CLIP recognizes {now:.0%} of the samples; of the base's, {before:.0%}.",
        "Train fewer layers (`train.trainable`), or, if `train.learning_rate` is ten times that of a preset, lower it. If the "
        "base does not know images of this kind, choose one that does: for the demonstration's base, neither helps then.",
    )


def reads_retention(f: StageMetrics) -> bool:
    """Returns whether there are retention prompts, and this CLIP recognizes what the base draws for them."""
    return f.evaluation.get("retention_retrieval_base", 0) >= READABLE


def no_gain(f: StageMetrics) -> Warning | None:
    """Warns if the held-out loss is not below the base's."""
    now, before = f.evaluation["heldout_loss"], f.evaluation.get("heldout_loss_base")
    if before is None or now < before:  # None: the two losses are not comparable
        return None
    return Warning(
        f"No gain: the held-out loss is {now:.3g}; the base's is {before:.3g}.",
        "If `train.learning_rate` or `train.steps` are tiny, raise them. Else the base may know such images already.",
    )


def unreadable(f: StageMetrics) -> Warning | None:
    """Warns if the prompt retrieval of real images is below READABLE."""
    if (real := f.evaluation["prompt_retrieval_real"]) >= READABLE:
        return None
    doubtful = "`prompt_retrieval` or `clip_score`" if reads_retention(f) else "`prompt_retrieval` or `retention_retrieval`"
    return Warning(
        f"This CLIP recognizes {real:.0%} of the real images: a low {doubtful} may be its fault and not the model's.",
        "Judge the content by the pictures, or set `base.clip` to a CLIP that knows such images.",
    )


def few_heldout(f: StageMetrics) -> Warning | None:
    """Warns if fewer than ENOUGH_HELDOUT held-out images are measured."""
    if (count := f.evaluation["prompts"]) >= ENOUGH_HELDOUT:
        return None
    return Warning(
        f"Only {count} held-out images are measured: another choice of them could change every figure here.",
        "Raise `fetch.heldout_fraction` (and `evaluate.prompts`, if it is lower), or add images.",
    )


def familiar_prompts(f: StageMetrics) -> Warning | None:
    """Warns if captions of the dataset name what retention prompts name."""
    if not f.familiar:
        return None
    verb = "prompt is" if len(f.familiar) == 1 else "prompts are"
    return Warning(
        f"{len(f.familiar)} retention {verb} in the dataset ({_some(f.familiar)}): for them, `retention_retrieval` does "
        "not measure forgetting.",
        "Set `evaluate.retention_prompts` to things that the base can draw and that your images do not show.",
    )


def strange_prompts(f: StageMetrics) -> Warning | None:
    """Warns if validation prompts have no word in common with the captions."""
    if not f.strange:
        return None
    verb = "prompt has" if len(f.strange) == 1 else "prompts have"
    return Warning(
        f"{len(f.strange)} validation {verb} no word in common with any caption ({_some(f.strange)}): their pictures "
        "during training do not show what the model learns.",
        "Set `encode.captions.validation_prompts` to prompts for what your images show.",
    )


def _some(prompts: Sequence[str]) -> str:
    return ", ".join([*prompts[:5], *(["..."] if len(prompts) > 5 else [])])


def truncation(f: StageMetrics) -> Warning | None:
    """Warns if captions are longer than the tokenizer's limit."""
    if not f.captions["truncated"]:
        return None
    return Warning(
        f"{f.captions['truncated']:.0f} of {f.captions['captions']:.0f} captions are truncated to the tokenizer's limit.",
        "Shorten them, or put what matters first.",
    )


def loss_of_detail(f: StageMetrics) -> Warning | None:
    """Warns if the VAE loses visible detail: a mean PSNR below 24 dB."""
    if f.images["psnr_mean"] >= 24:
        return None
    return Warning(
        f"Lost detail: images encoded and decoded by the VAE have a mean PSNR of {f.images['psnr_mean']:.1f} dB.",
        "See the images after the VAE below. Another VAE (`base.vae`) or base may keep more.",
    )
