"""Training state: everything that a step of training changes, and its way into a checkpoint and back."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from t2i.train import checkpoint
from t2i.train.ema import Ema
from t2i.train.history import History
from t2i.train.optim import optimizer_tensors, restore_optimizer


@dataclass
class TrainingState:
    """What goes on from step to step."""

    unet: nn.Module
    """This process's own, not wrapped."""
    ema: Ema
    optimizer: torch.optim.Optimizer
    scaler: Any
    """fp16's loss scaler, or None."""
    history: History
    step: int = 0
    """Optimizer steps taken."""

    def save(self, work: Path, keep: int) -> None:
        """Writes a checkpoint, and removes all but the newest `keep`."""
        weights: dict[str, Tensor] = dict(self.unet.named_parameters())
        tensors: dict[str, dict[str, Tensor]] = {
            "unet": weights,
            "ema": self.ema.shadow,
            "optimizer": optimizer_tensors(self.optimizer, weights),
            "history": {"rows": self.history.tensor()},
        }
        state = {
            "step": self.step,
            "ema_updates": self.ema.updates,
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
        }
        checkpoint.save(work, checkpoint.Checkpoint(tensors, state), keep)

    def restore(self, work: Path, *, discard_damaged: bool) -> None:
        """Takes everything from the newest checkpoint that verifies, if there is one."""
        found = checkpoint.load_newest(work, discard_damaged=discard_damaged)
        if found is None:
            return
        self.unet.load_state_dict(found.tensors["unet"])
        self.ema.shadow = {name: tensor.to(self.ema.device, copy=True) for name, tensor in found.tensors["ema"].items()}
        self.ema.updates = found.state["ema_updates"]
        restore_optimizer(self.optimizer, dict(self.unet.named_parameters()), found.tensors["optimizer"])
        if self.scaler is not None:
            self.scaler.load_state_dict(found.state["scaler"])
        self.history = History(found.tensors["history"]["rows"])
        self.step = found.state["step"]
