"""Change: how far training moved the weights of the UNet."""

import sys
from pathlib import Path

from safetensors import safe_open

from t2i.model.pretrained import Change

_LEAST = 1e-6
"""Relative change of the weights below which a run has taught nothing; a step of AdamW at a rate of 1e-6 gives about 1e-5."""


def say_if_unchanged(unet: Path, change: Change) -> None:
    """Prints a note if a run has taught nothing; see `relative_change`."""
    if (moved := relative_change(unet, change)) < _LEAST:
        print(
            f"note: the run taught nothing: its weights differ from the base's by {moved:.1e} of their norm; raise "
            "`train.learning_rate`, or train longer",
            file=sys.stderr,
        )


def relative_change(unet: Path, change: Change) -> float:
    """Returns the norm of what training added to the weights that it changed, divided by the norm of those of the base.

    Args:
        unet: folder of the base's UNet; its tensors are read one by one.
        change: returns each weight after training.
    """
    moved = whole = 0.0
    for file in sorted(unet.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                before = tensors.get_tensor(name).float()
                after = change(name, before)
                if after is not before:
                    before = before.double()
                    moved += (after.detach().cpu().double() - before).square().sum().item()
                    whole += before.square().sum().item()
    return (moved / whole) ** 0.5 if whole else float("inf")
