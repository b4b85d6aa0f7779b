"""Validation: how training goes, measured and drawn at some of its steps, from the caches alone.

<work>/validation/step-00000100.safetensors    latents [prompts, c, h, w]: sampled from the validation prompts, EMA weights
                                               {raw,ema}_{heldout,train} [timesteps]: denoising errors
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from t2i.batches import CachedRecords, derived_seed
from t2i.denoising import denoising_errors, fixed_records
from t2i.ema import Ema
from t2i.family import Family
from t2i.records import SPLITS, Split
from t2i.runtime import Validation


@dataclass(frozen=True)
class Validator:
    """Measures and draws; its files in a run's work folder are the same whenever, and however often, a step is validated."""

    params: Validation
    family: Family
    latents: Path
    embeds: Path
    batch_size: int
    folder: Path

    def run(self, step: int, steps: int, unet: nn.Module, ema: Ema) -> None:
        """Validates the UNet after a step that is due (0: before the first), with its own weights and with the EMA's.

        What is on disk from before a restart stands.
        """
        path = self.folder / f"step-{step:08d}.safetensors"
        if (step % self.params.every_steps and step != steps) or path.exists():
            return
        device = next(unet.parameters()).device
        unet.eval()
        found = {f"raw_{split}": errors for split, errors in self._errors(unet, device).items()}
        with ema.applied(dict(unet.named_parameters())):
            found |= {f"ema_{split}": errors for split, errors in self._errors(unet, device).items()}
            if self._prompts is not None:
                found["latents"] = self._draw(unet, self._prompts, device)
        unet.train()
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        save_file({name: tensor.float().cpu().contiguous() for name, tensor in found.items()}, partial)
        partial.rename(path)

    def rows(self) -> list[dict[str, float | int]]:
        """Returns a row a validated step: denoising errors by weights and split, and `overfit_gap`, held-out less training."""
        rows = []
        for path in sorted(self.folder.glob("step-*.safetensors")):
            errors = {name: t.mean().item() for name, t in sorted(load_file(path).items()) if name != "latents"}
            rows.append(
                {
                    "step": int(path.stem.removeprefix("step-")),
                    **errors,
                    "overfit_gap": errors["ema_heldout"] - errors["ema_train"],
                }
            )
        return rows

    @cached_property
    def _records(self) -> dict[Split, CachedRecords]:
        return {split: CachedRecords(self.latents, self.embeds, split) for split in SPLITS}

    @cached_property
    def _prompts(self) -> dict[str, Tensor] | None:
        path = self.embeds / "validation.safetensors"
        return {name: t.float() for name, t in load_file(path).items()} if path.exists() else None

    def _errors(self, unet: nn.Module, device: torch.device) -> dict[Split, Tensor]:
        p, errors = self.params, {}
        for split, records in self._records.items():
            places = fixed_records(records, p.records, p.seed)
            of_each = denoising_errors(
                unet, self.family, records, places, p.timesteps_per_record, p.seed, self.batch_size, device
            )
            errors[split] = of_each.mean(dim=0)
        return errors

    def _draw(self, unet: nn.Module, prompts: dict[str, Tensor], device: torch.device) -> Tensor:
        empty = {name: t.float().to(device) for name, t in load_file(self.embeds / "empty.safetensors").items()}
        _, moments, height, width = self._records["train"].moments(0).shape
        count = len(next(iter(prompts.values())))
        generators = [torch.Generator().manual_seed(derived_seed(self.params.seed, "validation", n)) for n in range(count)]
        noise = torch.stack([torch.randn(moments // 2, height, width, generator=generator) for generator in generators])
        return torch.cat(
            [
                self.family.sample_latents(
                    unet,
                    {name: t[at : at + self.batch_size].to(device) for name, t in prompts.items()},
                    empty,
                    noise[at : at + self.batch_size].to(device),
                    num_inference_steps=self.params.num_inference_steps,
                    guidance_scale=self.params.guidance_scale,
                )
                for at in range(0, count, self.batch_size)
            ]
        )
