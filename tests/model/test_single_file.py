import pytest
import torch

from t2i.model.single_file import LAYOUTS, Place, from_original, layout_in, layout_of, place_of, to_original

VAE = {"up_block_types": ["UpDecoderBlock2D"] * 4}


@pytest.mark.parametrize(
    ("name", "original"),
    [
        ("encoder.conv_in.weight", "encoder.conv_in.weight"),
        ("decoder.conv_norm_out.bias", "decoder.norm_out.bias"),
        ("encoder.down_blocks.1.resnets.0.conv_shortcut.weight", "encoder.down.1.block.0.nin_shortcut.weight"),
        ("encoder.down_blocks.2.downsamplers.0.conv.bias", "encoder.down.2.downsample.conv.bias"),
        ("decoder.up_blocks.0.resnets.2.norm1.weight", "decoder.up.3.block.2.norm1.weight"),
        ("decoder.up_blocks.2.upsamplers.0.conv.weight", "decoder.up.1.upsample.conv.weight"),
        ("decoder.mid_block.resnets.1.conv2.bias", "decoder.mid.block_2.conv2.bias"),
        ("encoder.mid_block.attentions.0.group_norm.weight", "encoder.mid.attn_1.norm.weight"),
        ("encoder.mid_block.attentions.0.to_out.0.bias", "encoder.mid.attn_1.proj_out.bias"),
        ("encoder.mid_block.attentions.0.query.bias", "encoder.mid.attn_1.q.bias"),
        ("post_quant_conv.bias", "post_quant_conv.bias"),
    ],
)
def test_names_of_a_vae(name, original) -> None:
    assert place_of(LAYOUTS["sd1"], "vae", name, VAE) == Place(f"first_stage_model.{original}")


def test_a_matrix_of_the_vae_is_a_convolution_in_the_file() -> None:
    place, matrix = place_of(LAYOUTS["sd1"], "vae", "decoder.mid_block.attentions.0.to_q.weight", VAE), torch.randn(4, 3)
    assert place == Place("first_stage_model.decoder.mid.attn_1.q.weight", "conv")
    stored = to_original(place.change, [matrix])
    assert stored.shape == (4, 3, 1, 1)
    for kernel in (stored, stored[..., 0], matrix):  # of two, one and no dimensions
        assert torch.equal(from_original(place, kernel), matrix)


def test_query_key_and_value_are_one_tensor_in_open_clip() -> None:
    names = [f"encoder.layers.7.self_attn.{letter}_proj.weight" for letter in "qkv"]
    places, tensors = [place_of(LAYOUTS["sd2"], "text_encoder", name, {}) for name in names], torch.randn(3, 4, 4)
    assert {place.name for place in places} == {"cond_stage_model.model.transformer.resblocks.7.attn.in_proj_weight"}
    stored = to_original("stacked", list(tensors))
    assert stored.shape == (12, 4)
    assert all(torch.equal(from_original(place, stored), tensor) for place, tensor in zip(places, tensors, strict=True))


def test_the_projection_of_xl_is_transposed() -> None:
    place, matrix = place_of(LAYOUTS["sdxl"], "text_encoder_2", "text_projection.weight", {}), torch.randn(2, 3)
    assert place == Place("conditioner.embedders.1.model.text_projection", "transposed")
    assert torch.equal(to_original(place.change, [matrix]), matrix.T)
    assert torch.equal(from_original(place, matrix.T), matrix)


@pytest.mark.parametrize("name", ["encoder.mid_block.attentions.0.to_x.weight", "encoder.quantize.weight", "conv_in.weight"])
def test_a_tensor_of_another_vae_is_refused(name) -> None:
    with pytest.raises(ValueError, match=name):
        place_of(LAYOUTS["sd1"], "vae", name, VAE)


@pytest.mark.parametrize("name", ["encoder.layers.0.mlp.fc3.weight", "embeddings.type_embedding.weight"])
def test_a_tensor_of_another_text_encoder_is_refused(name) -> None:
    with pytest.raises(ValueError, match=f"text_model.{name}"):
        place_of(LAYOUTS["sdxl"], "text_encoder_2", name, {})


def test_layouts_are_told_by_their_text_encoders() -> None:
    unet = "model.diffusion_model.input_blocks.0.0.weight"
    clip, open_clip = "transformer.text_model.embeddings.token_embedding.weight", "model.token_embedding.weight"
    first, second = f"conditioner.embedders.0.{clip}", f"conditioner.embedders.1.{open_clip}"
    assert layout_in([unet, f"cond_stage_model.{clip}"]) == layout_of(["text_encoder"], {}) == LAYOUTS["sd1"]
    linear = {"use_linear_projection": True}
    assert layout_in([unet, f"cond_stage_model.{open_clip}"]) == layout_of(["text_encoder"], linear) == LAYOUTS["sd2"]
    assert layout_in([unet, first, second]) == layout_of(["text_encoder", "text_encoder_2"], linear) == LAYOUTS["sdxl"]
    assert layout_in([unet]) is layout_in([first, second]) is layout_in([unet, second]) is None
