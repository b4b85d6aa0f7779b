"""Evaluation: the metrics of the base and of a fine-tuned model, on the same prompts, seeds and records."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from t2i.core.files import fresh, to_csv, write_json, write_text
from t2i.data.cached import CachedRecords
from t2i.data.pixels import to_pixels
from t2i.data.records import SPLITS, Split
from t2i.evaluate.clip import Clip
from t2i.evaluate.heldout import DataFolders, HeldOut, heldout, images_of, some_keys
from t2i.evaluate.metrics import METRICS, Nearest, clip_score, cmmd, copied, found, interval, kid
from t2i.evaluate.section import Evaluate
from t2i.model.denoising import denoising_errors, fixed_records, timestep_grid
from t2i.model.family import Drawing, Family
from t2i.model.precision import DTYPES
from t2i.model.pretrained import frozen
from t2i.model.runtime import Runtime, device_in_words
from t2i.model.sampling import Sampler

Statistic = Callable[[Int[Tensor, " n"]], float]
"""Returns the value of a metric over the records at the given indices."""


@dataclass(frozen=True)
class Evaluation:
    """The measurements of one model."""

    metrics: dict[str, float | int]
    """Values by metric, to five significant digits: differences beyond that are rounding."""
    intervals: dict[str, list[float]]
    """95 % intervals by metric, for the metrics that have one."""
    timesteps: list[dict[str, float | int]]
    """Mean denoising errors, one row per timestep."""
    nearest: list[dict[str, Any]]
    """Each sample with its nearest training image, the nearest pair first."""

    def write(self, report: Path) -> None:
        """Writes metrics.json, intervals.json, timesteps.csv and nearest.json to a folder."""
        write_json(report / "metrics.json", self.metrics)
        write_json(report / "intervals.json", self.intervals)
        write_text(report / "timesteps.csv", to_csv(self.timesteps))
        write_json(report / "nearest.json", self.nearest)


class Evaluator:
    """Measures models on one dataset. The features of the data are computed once and serve for every model."""

    def __init__(self, section: Evaluate, data: DataFolders, clip: Path, runtime: Runtime) -> None:
        self.section, self.data, self.runtime = section, data, runtime
        self.batch_size, self.device = runtime.encode_batch_size, runtime.torch_device()
        self.clip = Clip(clip, self.device, self.batch_size)
        self.records: HeldOut = heldout(section, data)
        self.real = self.clip.image_features(self.records.real)
        self.prompts = self.clip.text_features(self.records.prompts)
        self.train_keys = some_keys(data, "train", section.train_images, section.seed)
        self.train = self.clip.image_features(images_of(data, "train", self.train_keys))

    def draw(self, sampler: Sampler, prompts: Sequence[str], keys: Sequence[str], guidance_scale: float) -> list[Image.Image]:
        """Returns one image per prompt, drawn from noise that depends on the seed and the prompt's key."""
        p = self.section
        how = Drawing(
            num_inference_steps=p.num_inference_steps,
            guidance_scale=guidance_scale,
            size_px=self.records.size_px,
            precision=p.precision,
            batch_size=self.batch_size,
            device=self.device,
            offload=self.runtime.offload,
        )
        return sampler.draw(how, prompts, [(p.seed, key) for key in keys])

    def evaluate(self, sampler: Sampler, samples: Path) -> Evaluation:
        """Samples and measures a model; writes its images to `samples`/KEY.png and `samples`/retention/NUMBER.png."""
        family, retention = sampler.family, self.section.retention_prompts
        counts = f"{len(self.records.keys)} held-out and {len(retention)} retention prompts"
        steps, device = self.section.num_inference_steps, device_in_words(self.device)
        errors = self._errors(family)  # first, so that its UNet is gone before the pipeline loads another
        print(f"sampling {counts}, {steps} steps each, on {device}", file=sys.stderr)
        drawn = self.draw(sampler, self.records.prompts, self.records.keys, self.section.guidance_scale)
        kept = self.draw(sampler, retention, [f"retention:{prompt}" for prompt in retention], self.section.guidance_scale)
        _save(drawn, self.records.keys, kept, samples)

        images = self.clip.image_features(drawn)
        place, near = self._nearest(images, drawn)
        copies = copied(near, self._nearest(self.real, self.records.real)[1])
        heldout_errors, train_errors = (errors[split].mean(dim=1) for split in ("heldout", "train"))
        statistics: dict[str, tuple[int, Statistic]] = {
            "cmmd": (len(drawn), lambda rows: cmmd(self.real[rows], images[rows])),
            "kid": (len(drawn), lambda rows: kid(self.real[rows], images[rows])),
            "prompt_retrieval": (len(drawn), _mean(found(images, self.prompts))),
            "clip_score": (len(drawn), lambda rows: clip_score(images[rows], self.prompts[rows])),
            "copy_rate": (len(drawn), _mean(copies)),
            "heldout_loss": (len(heldout_errors), _mean(heldout_errors)),
            "train_loss": (len(train_errors), _mean(train_errors)),
            "overfit_gap": (len(heldout_errors), _mean(heldout_errors - train_errors)),
        }
        if retention:
            right = found(self.clip.image_features(kept), self.clip.text_features(retention))
            statistics["retention_retrieval"] = (len(kept), _mean(right))
        metrics, intervals = self.figures(statistics)
        return Evaluation(
            {"prompts": len(drawn)} | metrics, intervals, self._by_timestep(family, errors), self._pairs(place, near, copies)
        )

    def figures(self, statistics: dict[str, tuple[int, Statistic]]) -> tuple[dict[str, float | int], dict[str, list[float]]]:
        """Returns values and 95 % intervals by metric. Each statistic comes with the number of its records."""
        metrics: dict[str, float | int] = {}
        intervals = {}
        for name, (count, statistic) in statistics.items():
            metrics[name] = rounded(statistic(torch.arange(count)))
            centred = METRICS[name].centred
            low, high = interval(statistic, count, self.section.resamples, self.section.seed, centred=centred)
            intervals[name] = [rounded(low), rounded(high)]
        return metrics, intervals

    def _nearest(self, features: Tensor, images: Sequence[Image.Image]) -> tuple[list[int], Nearest]:
        """Returns the indices of the nearest training images, and their distances."""
        cosine, place = (features @ self.train.T).max(dim=1)
        theirs = images_of(self.data, "train", [self.train_keys[at] for at in place.tolist()])
        pairs = zip(images, theirs, strict=True)
        rmse = [(to_pixels(one) - to_pixels(other)).square().mean().sqrt() for one, other in pairs]
        return place.tolist(), Nearest(1 - cosine, torch.stack(rmse))

    def _errors(self, family: Family) -> dict[Split, Float[Tensor, "records timesteps"]]:
        """Returns the denoising errors of the same number of records of each split."""
        unet = frozen(family.load_unet(random=False).to(DTYPES[self.section.precision]), self.device)
        records = {split: CachedRecords(self.data.latents, self.data.embeds, split, self.data.storage) for split in SPLITS}
        count = min(self.section.prompts, *map(len, records.values()))
        return {
            split: denoising_errors(
                unet,
                family,
                fixed_records(its, count, self.section.seed, family.view_conditioning),
                self.section.timesteps_per_record,
                self.section.seed,
                precision=self.section.precision,
                batch_size=self.batch_size,
                device=self.device,
            )
            for split, its in records.items()
        }

    def _pairs(self, place: list[int], near: Nearest, copies: Tensor) -> list[dict[str, Any]]:
        return [
            {
                "key": self.records.keys[at],
                "train_key": self.train_keys[place[at]],
                "distance": rounded(near.distance[at].item()),
                "rmse": rounded(near.rmse[at].item()),
                "copied": bool(copies[at]),
            }
            for at in near.distance.argsort().tolist()
        ]

    def _by_timestep(self, family: Family, errors: dict[Split, Tensor]) -> list[dict[str, float | int]]:
        grid = timestep_grid(len(family.alphas_cumprod), self.section.timesteps_per_record)
        return [
            {"timestep": timestep} | {f"{split}_loss": rounded(of[:, at].mean().item()) for split, of in errors.items()}
            for at, timestep in enumerate(grid)
        ]


def rounded(value: float) -> float:
    """Returns a number rounded to five significant digits."""
    return float(f"{value:.5g}")


def _mean(values: Tensor) -> Statistic:
    return lambda rows: values[rows].double().mean().item()


def _save(drawn: Sequence[Image.Image], keys: Sequence[str], kept: Sequence[Image.Image], samples: Path) -> None:
    with fresh(samples) as folder:
        (folder / "retention").mkdir()
        for key, image in zip(keys, drawn, strict=True):
            image.save(folder / f"{key}.png")
        for number, image in enumerate(kept):
            image.save(folder / "retention" / f"{number:03d}.png")
