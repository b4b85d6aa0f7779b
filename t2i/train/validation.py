"""Validation: denoising errors and sampled latents during training, computed from the caches only.

<work>/validation-HASH/step-00000100.safetensors    latents [prompts, c, h, w]: sampled with the EMA weights
                                                    {raw,ema}_{heldout,train} [timesteps]: denoising errors

HASH is computed from the validation parameters and the prompts, so results of different settings never mix.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from t2i.core.files import whole
from t2i.data.cached import CachedRecords
from t2i.data.chance import derived_seed
from t2i.data.digests import digest_of, fingerprint
from t2i.data.reader import read_tensors
from t2i.data.records import Split
from t2i.model.denoising import FixedRecord, denoising_errors, fixed_records
from t2i.model.family import Family, decoded
from t2i.model.precision import Precision
from t2i.model.runtime import Runtime
from t2i.train.engine import Prepared


@dataclass(frozen=True)
class Validator:
    """Measures errors and samples latents; its results for a step do not depend on when or how often the step is validated."""

    runtime: Runtime
    precision: Precision
    """`train.precision`."""
    family: Family
    records: dict[Split, CachedRecords]
    prompts: Path
    """Folder with embeds.safetensors, written by `encode captions`."""
    work: Path

    @cached_property
    def folder(self) -> Path:
        """Folder of the results."""
        decided_by = self.runtime.validation.model_dump(exclude={"every_steps"})
        return self.work / f"validation-{fingerprint(decided_by, digest_of(self.prompts))}"

    def run(self, step: int, prepared: Prepared) -> dict[str, Tensor] | None:
        """Validates the UNet after `step` steps if a validation is due, with its own weights and with the EMA weights.

        Returns:
            The tensors for `keep`; None if no validation is due, or the step was validated before a restart.
        """
        if (step % self.runtime.validation.every_steps and step != prepared.steps) or self._file(step).exists():
            return None
        with prepared.evaluated(averaged=False) as unet:
            found = {f"raw_{split}": errors for split, errors in self._errors(unet, prepared.device).items()}
        with prepared.evaluated(averaged=True) as unet:
            found |= {f"ema_{split}": errors for split, errors in self._errors(unet, prepared.device).items()}
            if (self.prompts / "embeds.safetensors").exists():
                found["latents"] = self._draw(unet, prepared.device)
        found = {name: tensor.float().cpu().contiguous() for name, tensor in found.items()}
        for name, tensor in found.items():
            if not tensor.isfinite().all():
                raise ValueError(f"validation after step {step}: {name} is not finite: lower `train.learning_rate`")
        return found

    def keep(self, step: int, found: dict[str, Tensor]) -> None:
        """Writes what `run` found after `step` steps. Until then, a restart validates the step again."""
        with whole(self._file(step)) as partial:
            save_file(found, partial)

    def pictures(self, step: int) -> list[tuple[str, Image.Image]]:
        """Returns the validation prompts with what the EMA weights drew for them after `step` steps; decodes on the CPU."""
        prompts = json.loads((self.prompts / "prompts.json").read_text(encoding="utf-8"))
        drawn = read_tensors(self._file(step)).get("latents")
        return [] if drawn is None else list(zip(prompts, decoded(self.family, drawn, "cpu"), strict=True))

    def _file(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}.safetensors"

    def rows(self) -> list[dict[str, float | int]]:
        """Returns one row per validated step: mean errors by weights and split, and `overfit_gap` (held-out minus training)."""
        rows: list[dict[str, float | int]] = []
        for path in sorted(self.folder.glob("step-*.safetensors")):
            errors = {name: t.mean().item() for name, t in sorted(read_tensors(path).items()) if name != "latents"}
            gap = errors["ema_heldout"] - errors["ema_train"]
            rows.append({"step": int(path.stem.removeprefix("step-")), **errors, "overfit_gap": gap})
        return rows

    @cached_property
    def _measured(self) -> dict[Split, list[FixedRecord]]:
        """The records of each split that errors are measured on."""
        p, of_view = self.runtime.validation, self.family.view_conditioning
        count = min(p.records, *map(len, self.records.values()))
        return {split: fixed_records(records, count, p.seed, of_view) for split, records in self.records.items()}

    def _errors(self, unet: nn.Module, device: torch.device) -> dict[Split, Tensor]:
        p, errors = self.runtime.validation, {}
        for split, records in self._measured.items():
            of_each = denoising_errors(
                unet,
                self.family,
                records,
                p.timesteps_per_record,
                p.seed,
                precision=self.precision,
                batch_size=self.runtime.encode_batch_size,
                device=device,
            )
            errors[split] = of_each.mean(dim=0)
        return errors

    def _draw(self, unet: nn.Module, device: torch.device) -> Tensor:
        p, most = self.runtime.validation, self.runtime.encode_batch_size
        prompts = {name: t.float().to(device) for name, t in read_tensors(self.prompts / "embeds.safetensors").items()}
        empty = {name: t.float().to(device) for name, t in self.records["train"].empty.tensors().items()}
        count = len(next(iter(prompts.values())))
        moments, height, width = self.records["train"].shape
        generators = [torch.Generator().manual_seed(derived_seed(p.seed, "validation", number)) for number in range(count)]
        noise = torch.stack([torch.randn(moments // 2, height, width, generator=generator) for generator in generators])
        return torch.cat(
            [
                self.family.sample_latents(
                    unet,
                    {name: t[at : at + most] for name, t in prompts.items()},
                    empty,
                    noise[at : at + most].to(device),
                    generators[at : at + most],
                    num_inference_steps=p.num_inference_steps,
                    guidance_scale=p.guidance_scale,
                )
                for at in range(0, count, most)
            ]
        )
