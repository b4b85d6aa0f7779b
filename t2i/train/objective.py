"""The objective: the loss that training minimizes."""

from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from t2i.core.params import Section
from t2i.data.batches import Batch, Batches
from t2i.data.cached import CachedRecords
from t2i.data.crops import Size
from t2i.data.order import Order
from t2i.model.diffusion import add_noise, prediction_target, rectified, snr
from t2i.model.family import Family
from t2i.model.latents import sample_latents
from t2i.model.prediction import PredictionType
from t2i.train.timesteps import Timesteps, cumulated_probabilities, timesteps_of
from t2i.train.weighting import Weighting, loss_weights


class ObjectiveSection(Section):
    """Section `train.objective`."""

    prediction_type: PredictionType | None
    """What the UNet learns to predict; also set in the exported scheduler. null: what the base predicts."""
    zero_terminal_snr: bool
    """Rescales the schedule so that its last timestep is pure noise (Lin et al. 2023, arXiv 2305.08891); v_prediction only."""
    ztsnr_floor: float = Field(gt=0, le=1)
    """Weight of that last timestep if the weighting gives it a weight of 0."""
    weighting: Weighting
    """Weight of the error at each timestep: `uniform`, `min_snr` or `soft_min_snr` (with `gamma`), or `debiased`."""
    timesteps: Timesteps
    """How timesteps are drawn: `uniform`, or with a `multiplier` for `later` or `earlier` ones (`portion`) or a `range`."""
    noise_offset: float = Field(ge=0)
    """Standard deviation of a random offset per channel, added to the noise so that the UNet learns brightness; 0: off."""
    input_perturbation: float = Field(ge=0)
    """Extra noise in the input of the UNet but not in its target (Ning et al. 2023, arXiv 2301.11706); 0: off."""
    dream_detail_preservation: float | None = Field(ge=0)
    """Power of DREAM (Zhou et al. 2023, arXiv 2312.00210; 1 in the paper); one more forward pass; epsilon only; null: off."""

    @model_validator(mode="after")
    def _can_be_learnt(self) -> "ObjectiveSection":
        if self.prediction_type == "epsilon" and self.zero_terminal_snr:
            raise ValueError(
                "`prediction_type` epsilon excludes `zero_terminal_snr`: set v_prediction, or `zero_terminal_snr: false`"
            )
        if self.prediction_type == "v_prediction" and self.dream_detail_preservation is not None:
            raise ValueError("`dream_detail_preservation` works only with epsilon: set it to null to train v_prediction")
        return self

    def scheduler_changes(self) -> dict[str, Any]:
        """Returns the changes to the scheduler configuration of the base, with the names of diffusers."""
        changes: dict[str, Any] = {"prediction_type": self.prediction_type} if self.prediction_type else {}
        return changes | ({"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"} if self.zero_terminal_snr else {})


class Objective:
    """Computes the loss of a batch.

    Args:
        section: `train.objective`.
        family: gives the scaling factor and the noise schedule, and calls the UNet.
        device: device of the UNet.

    Raises:
        ValueError: if DREAM is set and the model predicts v, or the schedule lacks the timesteps that the section names.
    """

    def __init__(self, section: ObjectiveSection, family: Family, device: torch.device | str) -> None:
        if section.dream_detail_preservation is not None and family.prediction_type != "epsilon":
            raise ValueError(
                "`train.objective.dream_detail_preservation` works only with epsilon, but the base predicts v: set it to null"
            )
        self.section, self.family = section, family
        self.alphas_cumprod = family.alphas_cumprod.to(device)
        self._cumulated = cumulated_probabilities(section.timesteps(len(self.alphas_cumprod)))

    def batches(
        self, records: CachedRecords, order: Order, batch_size: int, use_flips: bool, prompt_dropout: float, seed: int
    ) -> Batches:
        """Returns the batches of training."""
        return Batches(
            records,
            view_conditioning=self.family.view_conditioning,
            order=order,
            batch_size=batch_size,
            use_flips=use_flips,
            prompt_dropout=prompt_dropout,
            timesteps_at=partial(timesteps_of, self._cumulated),
            noise_offset=self.section.noise_offset,
            input_perturbation=self.section.input_perturbation,
            seed=seed,
        )

    def size_px(self, records: CachedRecords) -> Size:
        """Returns the height and width of the images that the records were encoded from."""
        _, height, width = records.shape
        return height * self.family.vae_factor, width * self.family.vae_factor

    def loss(self, unet: nn.Module, batch: Batch) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Returns the weighted and the unweighted denoising loss of a batch, each averaged over its images.

        Everything outside the UNet is computed in fp32.
        """
        p, family, draws = self.section, self.family, batch.draws
        a = self.alphas_cumprod[draws.timesteps]
        latents = sample_latents(batch.moments, draws.epsilon, family.scaling_factor, family.shift_factor)
        noisy_latents = add_noise(latents, draws.input_noise, a)
        target = prediction_target(latents, draws.noise, a, family.prediction_type)
        if (power := p.dream_detail_preservation) is not None:
            with torch.no_grad():
                guess = family.predict(unet, noisy_latents, draws.timesteps, batch.conditioning).float().detach()
            noisy_latents, target = rectified(noisy_latents, target, guess, a, power)

        prediction = family.predict(unet, noisy_latents, draws.timesteps, batch.conditioning)
        errors = (prediction.float() - target).square().mean(dim=(1, 2, 3))
        weights = loss_weights(snr(a), family.prediction_type, p.weighting, p.ztsnr_floor)
        return (weights * errors).mean(), errors.mean().detach()
