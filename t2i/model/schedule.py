"""The scheduler of a pipeline: the noise schedule that training uses, and the scheduler that draws images."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_args

from jaxtyping import Float
from torch import Tensor

from t2i.model.layout import parts
from t2i.model.prediction import PredictionType


class Schedule(NamedTuple):
    """The noise levels of the timesteps, and what the UNet predicts."""

    alphas_cumprod: Float[Tensor, " timesteps"]
    prediction_type: PredictionType


def read_schedule(pipeline: Path, changes: Mapping[str, Any]) -> Schedule:
    """Returns the noise schedule of a pipeline.

    Args:
        pipeline: the folder.
        changes: changes to its scheduler configuration, with the names of diffusers.

    Raises:
        ValueError: if the prediction type is not supported, or is epsilon at zero terminal SNR, where it is undefined (0 / 0).
    """
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler.from_pretrained(pipeline, subfolder="scheduler", **changes)
    schedule = Schedule(scheduler.alphas_cumprod.float(), scheduler.config.prediction_type)
    if schedule.prediction_type not in get_args(PredictionType):
        raise ValueError(
            f"{pipeline}: the prediction type is {schedule.prediction_type!r}, wanted {' or '.join(get_args(PredictionType))}"
        )
    if schedule.prediction_type == "epsilon" and schedule.alphas_cumprod[-1] == 0:
        raise ValueError(
            f"{pipeline}: the prediction type epsilon does not work at zero terminal SNR: set "
            + (
                "`train.objective.prediction_type` to v_prediction, or `zero_terminal_snr` to false"
                if changes
                else "prediction_type in scheduler/scheduler_config.json of the base to v_prediction"
            )
        )
    return schedule


def load_scheduler(pipeline: Path, changes: Mapping[str, Any]) -> Any:
    """Returns the scheduler of a pipeline with changes; a DDIMScheduler if it does not support all of them."""
    kind, changes = supporting(pipeline, changes)
    return kind.from_pretrained(pipeline, subfolder="scheduler", **changes)


def supporting(pipeline: Path, changes: Mapping[str, Any]) -> tuple[Any, Mapping[str, Any]]:
    """Returns the class of a pipeline's scheduler, or DDIMScheduler if it does not support all changes, and the changes."""
    import diffusers

    kind = getattr(diffusers, parts(pipeline)["scheduler"][1])
    if changes.keys() - inspect.signature(kind.__init__).parameters.keys():
        return diffusers.DDIMScheduler, {**changes, "clip_sample": False}  # latents are not in [-1, 1]
    return kind, changes
