"""Verb: sample and measure the base, once for all the models that are fine-tuned from it."""

from pathlib import Path

from t2i.clip import Clip
from t2i.family import Family
from t2i.metrics import Metrics, cmmd, measure, prompt_retrieval, rounded
from t2i.sampling import Evaluate, Inputs, heldout, sample, some_images
from t2i.work import write_json


def evaluate_base(
    params: Evaluate, family: Family, inputs: Inputs, samples: Path, report: Path, *, batch_size: int, device: str
) -> Metrics:
    """Writes the base's images and metrics.json, with what real images score beside it.

    Returns:
        The metrics of metrics.measure, `cmmd_floor` (real against as many other real images), `prompt_retrieval_real`.
    """
    records, clip = heldout(params, inputs), Clip(inputs.clip, device, batch_size)
    drawn = sample(params, family, records, samples, batch_size=batch_size, device=device)
    metrics = measure(params, family, inputs, records, drawn, clip, batch_size=batch_size, device=device)
    real = clip.image_features(records.real)
    others = clip.image_features([image for _, image in some_images(inputs, "train", len(records.keys), params.seed)])
    metrics["cmmd_floor"] = cmmd(real, others)
    metrics["prompt_retrieval_real"] = prompt_retrieval(real, clip.text_features(records.prompts))
    write_json(report, rounded(metrics))
    return rounded(metrics)
