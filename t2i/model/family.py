"""Families: the interface of a model family such as Stable Diffusion 1.x, and how to open one.

A family is a module in t2i/model/families with a class `Family` that implements this protocol. It hides its conditioning:
`encode_prompts` returns named tensors, the caches store them unchanged, and `predict` receives them again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn

from t2i.core.params import ParamsError, load_section, plugins, resolve_plugin
from t2i.data.crops import Geometry, Size
from t2i.data.pixels import to_image
from t2i.model.base import Base
from t2i.model.layout import parts, read_object
from t2i.model.precision import Precision
from t2i.model.prediction import PredictionType
from t2i.model.pretrained import Change

_FAMILIES = "t2i.model.families"

Conditioning = dict[str, Tensor]
"""Named tensors [b, ...]: all inputs of the UNet other than latents and timesteps."""


@dataclass(frozen=True)
class Drawing:
    """Settings for drawing images."""

    num_inference_steps: int
    guidance_scale: float
    size_px: Size
    precision: Precision
    """Precision of the computations of the UNet and of its weights."""
    batch_size: int
    device: str
    offload: bool
    """Whether only the network in use is on the device."""
    negative_prompt: str = ""


@runtime_checkable
class Family(Protocol):
    """A checkpoint in diffusers layout; each part is loaded on first use."""

    pipeline_class: str
    """The class of diffusers that draws from text; the checkpoint may state a related one."""
    folder: Path
    """Folder of the checkpoint."""
    alphas_cumprod: Float[Tensor, " timesteps"]
    prediction_type: PredictionType
    scaling_factor: float
    shift_factor: float
    vae_factor: int
    """Width and height in pixels of one latent."""

    @staticmethod
    def owns(index: Mapping[str, Any]) -> bool:
        """Returns whether a pipeline is of this family, from its model_index.json."""
        ...

    @staticmethod
    def check_base(folder: Path) -> None:
        """Checks that a pipeline can be encoded and trained: its configurations and, if they are there, its weights.

        Raises:
            ValueError: names the part, what was got, what was wanted, and a remedy.
        """
        ...

    def load_vae(self, device: str) -> nn.Module:
        """Returns the VAE in fp32, frozen."""
        ...

    def encode_pixels(self, vae: nn.Module, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b m _ _"]:
        """Returns the unscaled moments."""
        ...

    def decode_latents(self, vae: nn.Module, latents: Float[Tensor, "b c _ _"]) -> Float[Tensor, "b 3 h w"]:
        """Returns the pixels of scaled latents."""
        ...

    def load_text(self, device: str) -> Any:
        """Returns the tokenizers and the text encoders in fp32, frozen, for `encode_prompts`."""
        ...

    def encode_prompts(self, text: Any, captions: Sequence[str]) -> Conditioning:
        """Returns the conditioning of the captions."""
        ...

    def encode_empty_prompt(self, text: Any) -> Conditioning:
        """Returns the conditioning [1, ...] of the empty prompt, as the exported pipeline has it without a negative prompt."""
        ...

    def count_truncated(self, text: Any, captions: Sequence[str]) -> int:
        """Returns the number of captions that the tokenizer truncates."""
        ...

    def view_conditioning(self, geometry: Geometry, latents: Size) -> Conditioning:
        """Returns what the UNet is told about one view, without a batch axis; `latents` is the size of its latents."""
        ...

    def load_unet(self, *, random: bool) -> nn.Module:
        """Returns the UNet in fp32, with the weights of the checkpoint, changed by an adapter, or, if `random`, random ones."""
        ...

    def check_fit(self, unet: nn.Module, moments: Float[Tensor, "_ m h w"], conditioning: Conditioning) -> None:
        """Raises a ValueError if the cached records do not fit the UNet."""
        ...

    def predict(
        self, unet: nn.Module, noisy_latents: Float[Tensor, "b c h w"], timesteps: Int[Tensor, " b"], conditioning: Conditioning
    ) -> Float[Tensor, "b c h w"]:
        """Returns the prediction of the UNet."""
        ...

    def export(self, weights: Mapping[str, Tensor], out: Path, precision: Precision) -> None:
        """Writes a complete pipeline: this checkpoint with the given UNet weights and the changed scheduler."""
        ...

    def sample(
        self,
        prompts: Sequence[str],
        generators: Sequence[torch.Generator],
        how: Drawing,
    ) -> list[Image.Image]:
        """Returns one image per prompt, drawn by the complete pipeline; called in the context `computing_in`."""
        ...

    def sample_latents(
        self,
        unet: nn.Module,
        conditioning: Conditioning,
        unconditional: Conditioning,
        noise: Float[Tensor, "b c h w"],
        generators: Sequence[torch.Generator],
        *,
        num_inference_steps: int,
        guidance_scale: float,
    ) -> Float[Tensor, "b c h w"]:
        """Returns scaled latents sampled from noise and cached conditioning, without loading the VAE or the text encoder.

        `generators`, one per image, are used by schedulers that draw noise at every step.
        """
        ...


def decoded(family: Family, latents: Float[Tensor, "b c _ _"], device: str) -> list[Image.Image]:
    """Returns the images of scaled latents, decoded one by one; loads the VAE."""
    vae = family.load_vae(device)
    return [to_image(family.decode_latents(vae, one[None].to(device))[0]) for one in latents.float()]


def file_of(family: Family) -> str:
    """Returns the path of the module of a family, relative to t2i/."""
    return f"{type(family).__module__.removeprefix('t2i.').replace('.', '/')}.py"


def open_family(
    params_file: Path, folder: Path, written_by: str, scheduler_changes: Mapping[str, Any] = MappingProxyType({})
) -> Family:
    """Opens the checkpoint in a folder with the family that `base.family` names.

    Args:
        params_file: path of params.yaml.
        folder: the checkpoint, in diffusers layout.
        written_by: the command that writes the folder, for the message if it is missing.
        scheduler_changes: changes to its scheduler configuration, with the names of diffusers.

    Raises:
        ValueError: if the folder has no pipeline.
    """
    name = load_section(params_file, "base", Base).family
    if not (folder / "model_index.json").is_file():
        raise ValueError(f"{folder}: no pipeline here; run `{written_by}` or `dvc repro`, or give another folder")
    return load_family(name, folder, scheduler_changes)


def load_family(
    name: str, folder: Path, scheduler_changes: Mapping[str, Any] = MappingProxyType({}), change: Change | None = None
) -> Family:
    """Opens the checkpoint in a folder with the family `name`.

    Args:
        name: name of a module in t2i/model/families.
        folder: the checkpoint, in diffusers layout.
        scheduler_changes: changes to its scheduler configuration, with the names of diffusers.
        change: changes each weight of its UNet, as an adapter does.
    """
    family: Family = _named(name)(folder, scheduler_changes, change)
    return family


def check_base(name: str, folder: Path) -> None:
    """Checks that the family `name` can train the pipeline in a folder, from what is there: its weights may be missing.

    Raises:
        ValueError: if not; says why, and names the family that the pipeline belongs to.
    """
    family, index = _named(name), read_object(folder / "model_index.json")
    if not family.owns(index):
        known = plugins(_FAMILIES)
        owners = [other for other in known if _named(other).owns(index)]
        remedy = (
            f"set `base.family: {owners[0]}`" if owners else f"no family here can ({', '.join(known)}): choose another base"
        )
        has = ", ".join(parts(folder)) or "no parts"
        raise ValueError(f"is a {index.get('_class_name')} ({has}), which family {name} cannot train; {remedy}")
    family.check_base(folder)


def _named(name: str) -> Any:
    """Returns the class of a family."""
    try:
        return resolve_plugin(_FAMILIES, name).Family
    except ParamsError as error:
        raise ParamsError(f"`base.family`: {error}") from None
