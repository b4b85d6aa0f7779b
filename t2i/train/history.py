"""History: the loss and other figures of every step, saved with the checkpoint and written as CSV for `dvc plots`."""

import math
from typing import Any, NamedTuple, SupportsFloat

import torch
from torch import Tensor

from t2i.core.files import to_csv


class Figures(NamedTuple):
    """The figures of one optimizer step; numbers in fp32 that may still be computed on a device, or floats."""

    loss: SupportsFloat
    """Weighted loss."""
    mse: SupportsFloat
    """Unweighted loss, which can be compared between weightings."""
    grad_norm: SupportsFloat
    """Norm of the gradients before clipping."""
    learning_rate: float


COLUMNS = Figures._fields


class History:
    """One row of COLUMNS per step; rows stay on the device until they are read."""

    def __init__(self, rows: Tensor | None = None) -> None:
        self._read: list[list[float]] = [] if rows is None else rows.tolist()
        self._pending: list[Figures] = []

    def append(self, row: Figures) -> None:
        """Adds the row of a step without waiting for the device."""
        self._pending.append(row._replace(learning_rate=torch.tensor(row.learning_rate).item()))  # fp32, as in a checkpoint

    def rows(self) -> list[list[float]]:
        """Returns all rows so far; copies those that are still on the device.

        Raises:
            ValueError: if the loss or the gradients of a step are not finite; names the first such step.
        """
        if self._pending:
            fresh = [list(map(float, row)) for row in self._pending]
            for step, row in enumerate(fresh, start=len(self._read) + 1):
                loss, grad_norm = row[COLUMNS.index("loss")], row[COLUMNS.index("grad_norm")]
                if not (math.isfinite(loss) and math.isfinite(grad_norm)):
                    advice = "lower `train.learning_rate`, or set `train.precision` to bf16 or fp32"
                    raise ValueError(f"step {step}: the loss is {loss} and the gradient norm is {grad_norm}: {advice}")
            self._read += fresh
            self._pending = []
        return self._read

    def tensor(self) -> Tensor:
        """Returns the rows as an fp32 tensor [steps, columns], for a checkpoint."""
        return torch.tensor(self.rows(), dtype=torch.float32).view(-1, len(COLUMNS))

    def windows(self, steps: int) -> list[dict[str, Any]]:
        """Returns the mean of every `steps` steps, with the number of the last of them; the last window may be shorter."""
        rows = self.rows()
        means = []
        for start in range(0, len(rows), steps):
            window = rows[start : start + steps]
            columns = (sum(values) / len(window) for values in zip(*window, strict=True))
            means.append({"step": start + len(window), **dict(zip(COLUMNS, columns, strict=True))})
        return means

    def last_tenth(self) -> dict[str, Any]:
        """Returns the number of steps and the mean losses of the last tenth of the steps, with six digits."""
        rows = self.rows()
        tenth = rows[-max(1, -(-len(rows) // 10)) :]
        loss, mse, *_ = (sum(values) / len(values) for values in zip(*tenth, strict=True))
        return {"steps": len(rows), "loss": float(f"{loss:.6g}"), "mse": float(f"{mse:.6g}")}

    def csv(self, steps: int) -> str:
        """Returns the windows of `steps` steps as CSV."""
        return to_csv(self.windows(steps))
