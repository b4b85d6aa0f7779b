"""The objective: what a step of training lowers."""

from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from t2i.core.params import Section
from t2i.data.batches import Batch, Batches, CachedRecords
from t2i.model.diffusion import add_noise, prediction_target, rectified, snr
from t2i.model.family import Family
from t2i.model.latents import sample_latents
from t2i.model.prediction import PredictionType
from t2i.train.timesteps import Timesteps, cumulated_probabilities, draw_timestep
from t2i.train.weighting import Weighting, loss_weights


class ObjectiveSection(Section):
    """`train.objective`."""

    prediction_type: PredictionType | None
    """What the UNet learns to predict, and the exported scheduler takes it for; null: what the base predicts."""
    zero_terminal_snr: bool
    """Rescales the schedule so that its last timestep is noise alone (Lin et al. 2023, arXiv 2305.08891); v_prediction only."""
    ztsnr_floor: float = Field(gt=0, le=1)
    """Weight of that timestep, where the weighting would leave it none."""
    weighting: Weighting
    """Weight of each timestep's error: `uniform`, `min_snr` or `soft_min_snr` with `gamma`, or `debiased`."""
    timesteps: Timesteps
    """Which are drawn: `uniform`; or more of the `later` or `earlier` ones (`portion`), or of a `range`, by a `multiplier`."""
    noise_offset: float = Field(ge=0)
    """Standard deviation of a number a channel that is added to the noise, so that brightness is learnt too; 0: none."""
    input_perturbation: float = Field(ge=0)
    """Noise added to the noise in the UNet's input, not in its target (Ning et al. 2023, arXiv 2301.11706); 0: none."""
    dream_detail_preservation: float | None = Field(ge=0)
    """DREAM's power (Zhou et al. 2023, arXiv 2312.00210), 1 in the paper: a forward pass more; epsilon only; null: without."""

    @model_validator(mode="after")
    def _can_be_learnt(self) -> "ObjectiveSection":
        if self.prediction_type == "epsilon" and self.zero_terminal_snr:
            raise ValueError("`prediction_type` epsilon is 0 / 0 at zero terminal SNR: set one of the two otherwise")
        if self.prediction_type == "v_prediction" and self.dream_detail_preservation is not None:
            raise ValueError("`dream_detail_preservation` is for epsilon alone: set it to null to train v_prediction")
        return self

    def scheduler_changes(self) -> dict[str, Any]:
        """Returns what the base's scheduler is overruled by, in diffusers' names."""
        changes: dict[str, Any] = {"prediction_type": self.prediction_type} if self.prediction_type else {}
        return changes | ({"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"} if self.zero_terminal_snr else {})


class Objective:
    """What decides a batch's loss, besides the batch.

    Args:
        section: `train.objective`.
        family: gives scaling and schedule, and calls the UNet.
        device: the UNet's.

    Raises:
        ValueError: where DREAM is asked for and the base predicts v.
    """

    def __init__(self, section: ObjectiveSection, family: Family, device: torch.device | str) -> None:
        if section.dream_detail_preservation is not None and family.prediction_type != "epsilon":
            raise ValueError(
                "`train.objective.dream_detail_preservation` is for epsilon alone, and the base predicts v: set it to null"
            )
        self.section, self.family = section, family
        self.alphas_cumprod = family.alphas_cumprod.to(device)

    def batches(self, records: CachedRecords, batch_size: int, use_flips: bool, prompt_dropout: float, seed: int) -> Batches:
        """Returns the batches whose loss is lowered."""
        return Batches(
            records,
            batch_size=batch_size,
            use_flips=use_flips,
            prompt_dropout=prompt_dropout,
            timestep_at=partial(draw_timestep, cumulated_probabilities(self.section.timesteps(len(self.alphas_cumprod)))),
            noise_offset=self.section.noise_offset,
            input_perturbation=self.section.input_perturbation,
            seed=seed,
        )

    def loss(self, unet: nn.Module, batch: Batch) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Returns the weighted denoising loss of a batch, averaged over its images, and the same unweighted.

        All but the UNet is fp32.
        """
        p, family, draws = self.section, self.family, batch.draws
        a = self.alphas_cumprod[draws.timesteps]
        latents = sample_latents(batch.moments, draws.epsilon, family.scaling_factor, family.shift_factor)
        noisy_latents = add_noise(latents, draws.input_noise, a)
        target = prediction_target(latents, draws.noise, a, family.prediction_type)
        if (power := p.dream_detail_preservation) is not None:
            with torch.no_grad():
                guess = family.predict(unet, noisy_latents, draws.timesteps, batch.conditioning).float()
            noisy_latents, target = rectified(noisy_latents, target, guess, a, power)

        prediction = family.predict(unet, noisy_latents, draws.timesteps, batch.conditioning)
        errors = (prediction.float() - target).square().mean(dim=(1, 2, 3))
        weights = loss_weights(snr(a), family.prediction_type, p.weighting, p.ztsnr_floor)
        return (weights * errors).mean(), errors.mean().detach()
