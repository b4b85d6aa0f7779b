"""The base: the pretrained pipeline that is fine-tuned, and the CLIP that evaluates it."""

from typing import Literal

from pydantic import Field

from t2i.core.params import LocalPath, Section

NOT_TAKEN = ("safety_checker", "feature_extractor", "image_encoder")
"""Parts of a pipeline that are never used here, even if the folder has them."""


class Base(Section):
    """Section `base`: the pipeline to fine-tune, and the CLIP that evaluates it."""

    family: str
    """Model family: the name of a module in t2i/model/families."""
    local: LocalPath
    """Folder of the base, a pipeline in diffusers layout, or a single file (.safetensors) as ComfyUI and A1111 use them; or a
    folder with one single file. Ignored if `hub` is set. Must exist, because DVC tracks it."""
    config: LocalPath | None
    """Where the configurations and tokenizers of a single file come from: a Hub id, with `@` as in `vae`, or a folder inside
    the folder `local`. Used only for a single file, which has none of its own."""
    hub: str | None
    """Hub id of the base, such as stable-diffusion-v1-5/stable-diffusion-v1-5; null: use the folder `local`."""
    revision: str | None
    """Branch, tag or commit on the Hub. The run resolves it to a commit and records that. null: the default branch."""
    variant: str | None
    """Variant of the weights on the Hub, such as fp16; null: the default weights."""
    vae: LocalPath | None
    """An AutoencoderKL that replaces the one of the base: a folder, or a Hub id such as stabilityai/sd-vae-ft-mse. Append `@`
    and a revision for another branch, tag or commit than the default. null: the VAE of the base."""
    clip_skip: int = Field(ge=0)
    """Number of last layers of the text encoder to remove from the copy, counted as `clip_skip` in diffusers."""
    empty_prompt: Literal["auto", "zeros", "encoded"]
    """What stands for the empty prompt, in training and in the exported pipeline: `zeros`, or its encoding. `auto`: as in the
    base. Stable Diffusion 1.x and 2.x always encode it."""
    clip: LocalPath
    """The CLIPModel for evaluation: a folder, or a Hub id such as openai/clip-vit-large-patch14, with `@` as in `vae`."""
