"""Trackers: send the figures and pictures of training to experiment trackers, through Accelerate."""

import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from t2i.data.pixels import to_image
from t2i.model.family import Family


def check_installed(names: Sequence[str]) -> None:
    """Raises a ValueError if the package of a tracker is not installed; Accelerate would silently ignore the tracker."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ValueError(
                f"`runtime.trackers` has {name}, which is not installed: pip install 't2i[trackers]', or remove it"
            )


class Trackers:
    """The trackers that `runtime.trackers` lists; only the first process has any."""

    def __init__(self, names: Sequence[str], family: Family, project: str, folder: Path, parameters: Mapping[str, Any]) -> None:
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        self._family = family
        os.environ.setdefault("WANDB_MODE", "offline")
        if names:
            folder.mkdir(parents=True, exist_ok=True)
        live = folder / "dvclive"
        dvclive = {"dir": str(live), "resume": live.exists(), "save_dvc_exp": False, "dvcyaml": None}
        options: dict[str, dict[str, Any]] = {
            "tensorboard": {"logging_dir": str(folder)},
            "wandb": {"dir": str(folder)},
            "dvclive": dvclive,
        }
        self._trackers = [LOGGER_TYPE_TO_CLASS[name](project, **options[name]) for name in names]
        for tracker in self._trackers:
            tracker.start()
            tracker.store_init_configuration(flat(parameters))

    def steps(self, step: int, rows: list[list[float]], columns: tuple[str, ...]) -> None:
        """Logs the mean figures of some steps, the last of which is `step`."""
        means = torch.tensor(rows, dtype=torch.float64).mean(dim=0).tolist()
        self._log(step, dict(zip(columns, means, strict=True)))

    def validation(self, step: int, found: Mapping[str, Tensor], check: Callable[[], None]) -> None:
        """Logs the mean errors of a validation, and its `latents` as pictures; loads the VAE on the CPU to decode them.

        `check` is called before each picture; its exception ends the work.
        """
        self._log(step, {f"validation/{name}": t.mean().item() for name, t in found.items() if name != "latents"})
        if "latents" in found and self._trackers:
            self._pictures(step, found["latents"], check)

    def finish(self) -> None:
        """Flushes and closes the trackers."""
        for tracker in self._trackers:
            tracker.finish()

    def _log(self, step: int, values: Mapping[str, float]) -> None:
        for tracker in self._trackers:
            tracker.log(values, step=step)

    def _pictures(self, step: int, latents: Tensor, check: Callable[[], None]) -> None:
        vae, drawn = self._family.load_vae("cpu"), []
        for one in latents:
            check()
            drawn.append(np.asarray(to_image(self._family.decode_latents(vae, one[None])[0])))
        pictures = np.stack(drawn)
        for tracker in self._trackers:
            match tracker.name:
                case "dvclive":  # it has no log_images and counts steps itself
                    for number, picture in enumerate(pictures):
                        tracker.tracker.log_image(f"validation-{number}-step-{step:08d}.png", picture)
                case "tensorboard":
                    tracker.log_images({"validation": pictures}, step, dataformats="NHWC")
                case _:
                    tracker.log_images({"validation": list(pictures)}, step)


def flat(parameters: Mapping[str, Any], place: str = "") -> dict[str, str | int | float]:
    """Returns parameters by dotted name, a form that every tracker accepts."""
    found: dict[str, str | int | float] = {}
    for name, value in parameters.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{place}{name}.")
        else:
            found[f"{place}{name}"] = value if isinstance(value, int | float) else str(value)
    return found
