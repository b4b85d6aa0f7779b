"""Change: how far training moved the weights of the UNet."""

from pathlib import Path

from safetensors import safe_open

from t2i.model.pretrained import Change


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
