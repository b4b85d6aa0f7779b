"""Verb: sample and measure the base, once for all the models that are fine-tuned from it."""

from pathlib import Path

from t2i.evaluate.evaluator import Evaluation, Evaluator, rounded
from t2i.evaluate.metrics import cmmd, kid, prompt_retrieval
from t2i.model.family import Family


def evaluate_base(evaluator: Evaluator, family: Family, samples: Path, report: Path) -> Evaluation:
    """Writes the base's images and figures, with what real images score beside them.

    Returns:
        What Evaluator.evaluate finds, `cmmd_floor` and `kid_floor` (real against as many other real images) and
        `prompt_retrieval_real`.
    """
    evaluation = evaluator.evaluate(family, samples)
    count = min(len(evaluator.real), len(evaluator.train))
    evaluation.metrics["cmmd_floor"] = rounded(cmmd(evaluator.real[:count], evaluator.train[:count]))
    evaluation.metrics["kid_floor"] = rounded(kid(evaluator.real[:count], evaluator.train[:count]))
    evaluation.metrics["prompt_retrieval_real"] = rounded(prompt_retrieval(evaluator.real, evaluator.prompts))
    evaluation.write(report)
    return evaluation
