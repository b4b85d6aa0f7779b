"""The base: which pretrained pipeline is fine-tuned, and which CLIP measures it."""

from pydantic import Field

from t2i.core.params import Section

NOT_TAKEN = ("safety_checker", "feature_extractor", "image_encoder")
"""Parts of a pipeline that neither training nor sampling here uses, whatever lies there."""


class Base(Section):
    """Section `base`: what is fine-tuned, and what measures it."""

    family: str
    """Kind of model: a module of t2i/model/families."""
    local: str
    """A folder with a pipeline in diffusers' layout: the base, unless `hub` names one. Must exist, since DVC watches it."""
    hub: str | None
    """Hub id of the base, such as stable-diffusion-v1-5/stable-diffusion-v1-5; null: the folder `local`."""
    revision: str | None
    """Branch, tag or commit on the Hub; resolved to a commit, which the run records. null: the default branch."""
    variant: str | None
    """Variant of the weights on the Hub, such as fp16; null: the plain ones."""
    vae: str | None
    """Another AutoencoderKL than the base's: a folder, or a Hub id such as stabilityai/sd-vae-ft-mse, with `@` and a revision
    where another than the default branch is wanted; null: the base's."""
    clip_skip: int = Field(ge=0)
    """How many of the text encoder's last layers are left out, as diffusers counts `clip_skip`; for good, in the copy."""
    clip: str
    """The CLIPModel that measures: a folder, or a Hub id such as openai/clip-vit-large-patch14, with `@` as in `vae`."""
