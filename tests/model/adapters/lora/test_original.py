import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

from t2i.model.adapters.lora.original import original_name
from t2i.tools.published import SIZES

SMALL = {"sample_size": 16, "norm_num_groups": 4, "cross_attention_dim": 8, "attention_head_dim": 2}
SD1 = SMALL | {"block_out_channels": [4, 8, 8, 8]}
SD2 = SD1 | {"use_linear_projection": True, "attention_head_dim": [1, 2, 2, 2]}
SDXL = SMALL | {
    "block_out_channels": [4, 8, 8],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "transformer_layers_per_block": [1, 2, 3],
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 32,
}
TINY = SMALL | {
    "block_out_channels": [4, 8],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 1,
}


def unet(options):
    with torch.device("meta"):
        return UNet2DConditionModel(**options)


@pytest.mark.parametrize("options", [SD1, SD2, SDXL, TINY], ids=["SD1", "SD2", "SDXL", "tiny"])
def test_diffusers_reads_the_original_names_back(options):
    built = unet(options)
    tensors = built.state_dict()
    original = {f"model.diffusion_model.{original_name(name, built.config)}": tensor for name, tensor in tensors.items()}
    assert len(original) == len(tensors)
    read = convert_ldm_unet_checkpoint(original, built.config)
    assert read.keys() == tensors.keys()
    assert all(read[name] is tensor for name, tensor in tensors.items())


@pytest.mark.parametrize("options", [SD1, SDXL, TINY], ids=["SD1", "SDXL", "tiny"])
def test_modules_are_named_like_their_tensors(options):
    built = unet(options)
    for name in built.state_dict():
        module, _, tensor = name.rpartition(".")
        assert f"{original_name(module, built.config)}.{tensor}" == original_name(name, built.config)


@pytest.mark.parametrize(
    ("name", "sd15", "sdxl"),
    [
        (
            "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
            "input_blocks.4.1.transformer_blocks.0.attn1.to_q",
            None,
        ),
        ("down_blocks.0.downsamplers.0.conv", "input_blocks.3.0.op", None),
        ("mid_block.attentions.0.proj_in", "middle_block.1.proj_in", None),
        ("mid_block.resnets.1", "middle_block.2", None),
        ("up_blocks.0.upsamplers.0.conv", "output_blocks.2.1.conv", "output_blocks.2.2.conv"),
        ("up_blocks.1.upsamplers.0.conv", "output_blocks.5.2.conv", None),
        ("up_blocks.2.resnets.2.conv_shortcut", "output_blocks.8.0.skip_connection", None),
    ],
)
def test_names_of_the_published_unets(name, sd15, sdxl):
    assert original_name(name, unet(SIZES["sd15"].unet).config) == sd15
    assert original_name(name, unet(SIZES["sdxl"].unet).config) == (sdxl or sd15)


@pytest.mark.parametrize(
    "name",
    ["encoder_hid_proj.weight", "down_blocks.9.resnets.0.conv1", "mid_block.resnets.0.conv9", "down_blocks.0", "conv_inn"],
)
def test_a_module_without_original_name_is_refused(name):
    with pytest.raises(ValueError, match=name):
        original_name(name, unet(TINY).config)


def test_block_types_without_original_name_are_refused():
    config = unet(TINY | {"down_block_types": ["ResnetDownsampleBlock2D", "CrossAttnDownBlock2D"]}).config
    with pytest.raises(ValueError, match=r"down_blocks\.0\.downsamplers\.0\.conv1\.weight"):
        original_name("down_blocks.0.downsamplers.0.conv1.weight", config)
