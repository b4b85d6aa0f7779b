"""Verdict: what the metrics of a run say about the model, in words. docs/metrics.md has the thresholds."""

from typing import Literal, NamedTuple

from t2i.evaluate.advice import StageMetrics, copying, few_heldout, forgetting, overfitting, unreadable

SHARE_LEARNT, SHARE_PARTLY = 0.75, 0.4
"""Least share of the way from the base's CMMD to that of real images, for a look that is learnt, or partly learnt."""
SAME_LOOK = 2.0
"""The base already draws in the look of the images if its CMMD is below this multiple of that of real images."""
KEPT = 0.75
"""Least share of the prompt retrieval of the base, or of real images if that is lower, that content which is kept has."""

LOST = 0.5
"""The base's knowledge is lost if the retention retrieval is below this fraction of the base's."""

Word = Literal["use", "check", "do not use"]
TITLES: dict[Word, str] = {
    "use": "Use this model.",
    "check": "Look at the pictures before you use this model.",
    "do not use": "Do not use this model.",
}


class Verdict(NamedTuple):
    """Whether to use a model, and why."""

    word: Word
    reasons: list[str]
    """One sentence for the look, one for the content, and one for each other finding."""

    @property
    def title(self) -> str:
        """The verdict as a sentence."""
        return TITLES[self.word]


def verdict(figures: StageMetrics) -> Verdict:
    """Returns the verdict on the fine-tuned model: the worst of what the findings deserve."""
    found = [_look(figures), _content(figures), *_memory(figures)]
    words: list[Word] = ["use", "check", "do not use"]
    return Verdict(max((word for word, _ in found), key=words.index), [reason for _, reason in found])


def _look(f: StageMetrics) -> tuple[Word, str]:
    now, base, floor = (f.evaluation[name] for name in ("cmmd", "cmmd_base", "cmmd_floor"))
    figures = f"CMMD {base:.2g} for the base, {now:.2g} now, {floor:.2g} between real images"
    if base < SAME_LOOK * floor:
        return "do not use", f"Look: nothing to learn, the base already draws like these images ({figures})."
    share = (base - now) / (base - floor)
    if share >= SHARE_LEARNT:
        return "use", f"Look: learnt ({figures})."
    if share >= SHARE_PARTLY:
        return "check", f"Look: learnt in part ({figures})."
    return "do not use", f"Look: not learnt ({figures})."


def _content(f: StageMetrics) -> tuple[Word, str]:
    now, base, real = (f.evaluation[f"prompt_retrieval{of}"] for of in ("", "_base", "_real"))
    figures = f"CLIP matches {base:.0%} of the base's samples, {now:.0%} now and {real:.0%} of the real images to their prompts"
    if f.intervals["prompt_retrieval"][1] < KEPT * min(base, real):
        return "do not use", f"Content: lost, the samples no longer show what the prompts say ({figures})."
    if unreadable(f):
        return "check", f"Content: not known, this CLIP does not recognize what such images show ({figures})."
    if max(now, base) < KEPT * real:
        return "check", f"Content: not learnt, neither model draws what the prompts say ({figures})."
    return "use", f"Content: kept ({figures})."


def _memory(f: StageMetrics) -> list[tuple[Word, str]]:
    found: list[tuple[Word, str]] = []
    if copying(f):
        found.append(("do not use", "Memory: the samples repeat training images, which the model has learnt by heart."))
    elif overfitting(f):
        found.append(("check", "Memory: the model has begun to learn the training images by heart."))
    if forgetting(f):
        now, base = f.evaluation["retention_retrieval"], f.evaluation["retention_retrieval_base"]
        figures = f"CLIP recognizes {base:.0%} of the base's samples and {now:.0%} now"
        if f.intervals["retention_retrieval"][1] < LOST * base:
            found.append(("do not use", f"Other prompts: lost, the model no longer draws what the base knew ({figures})."))
        else:
            found.append(("check", f"Other prompts: forgotten in part, the base draws them better ({figures})."))
    if few_heldout(f):
        found.append(("check", f"Certainty: low, only {f.evaluation['prompts']} held-out images are measured."))
    return found
