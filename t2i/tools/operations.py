"""Operations: the number of floating-point operations that encoding and training take with a published base.

Counted by PyTorch from the sizes of tensors, without memory or weights; a multiplication and an addition are two operations.
"""

from functools import cache
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from t2i.tools.published import SIZES, VAE, BaseSize, unet_inputs, unet_of


class Operations(NamedTuple):
    """Numbers of operations."""

    view: int
    """Of the VAE, to encode one view of an image."""
    caption: int
    """Of the text encoders, to encode one caption."""
    image: int
    """Of the forward and backward pass of the UNet, to train on one image; all of its weights are trained."""


@cache
def operations(name: BaseSize, size_px: int) -> Operations:
    """Returns the numbers of operations with images of `size_px` x `size_px` pixels."""
    from diffusers import AutoencoderKL
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        unet, vae = unet_of(name), AutoencoderKL(**VAE)
        with _counter() as of_image:
            unet(**unet_inputs(unet, size_px)).sample.sum().backward()
        with _counter() as of_view, torch.no_grad():
            vae.encode(torch.empty(1, 3, size_px, size_px))
        caption = 0
        for sizes in SIZES[name].text:
            config = CLIPTextConfig(**sizes)
            text = CLIPTextModel(config)
            with _counter() as of_caption, torch.no_grad():
                text(torch.zeros(1, config.max_position_embeddings, dtype=torch.long))
            caption += of_caption.get_total_flops()
    return Operations(of_view.get_total_flops(), caption, of_image.get_total_flops())


def _counter() -> FlopCounterMode:
    return FlopCounterMode(display=False)
