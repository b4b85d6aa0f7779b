"""Samples and measures the base model. All models fine-tuned from it reuse the result."""

from pathlib import Path

from t2i.evaluate.evaluator import Evaluation, Evaluator, rounded
from t2i.evaluate.metrics import cmmd, kid, prompt_retrieval
from t2i.model.sampling import Sampler


def evaluate_base(evaluator: Evaluator, sampler: Sampler, samples: Path, report: Path) -> Evaluation:
    """Writes the base's samples and metrics, together with the metrics of real images.

    Returns:
        The result of Evaluator.evaluate, plus `cmmd_floor` and `kid_floor` (held-out images against equally many training
        images) and `prompt_retrieval_real`.
    """
    evaluation = evaluator.evaluate(sampler, samples)
    count = min(len(evaluator.real), len(evaluator.train))
    evaluation.metrics["cmmd_floor"] = rounded(cmmd(evaluator.real[:count], evaluator.train[:count]))
    evaluation.metrics["kid_floor"] = rounded(kid(evaluator.real[:count], evaluator.train[:count]))
    evaluation.metrics["prompt_retrieval_real"] = rounded(prompt_retrieval(evaluator.real, evaluator.prompts))
    evaluation.write(report)
    return evaluation
