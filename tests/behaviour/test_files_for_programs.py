"""Each kind of file of a LoRA in each program: what reads it changes the UNet alike, and what cannot read it says so.

SD1, SD2, SDXL x the PEFT file, the kohya file, the merged pipeline, the single file x diffusers, ComfyUI's rule, A1111's rule.
The reference is the UNet with PEFT's layers, as it was trained. Alpha differs from the rank, and the factors are random.
"""

from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from safetensors.torch import load_file
from torch import Tensor

from t2i.model.adapter import Facts
from t2i.model.adapters.lora.adapter import Adapter
from t2i.model.family import load_family
from t2i.tools.export import export_folder, export_single_file, exported
from tests import readers, tiny
from tests.projects import PLAIN

STRENGTH = 0.7
AS_PUBLISHED = {"layers_per_block": 2}
AS_PUBLISHED_1_AND_2 = {
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
}
"""A1111's rule takes for granted what all published UNets have: two resnets in a block, and where the attentions are."""


class Files(NamedTuple):
    """A base, a LoRA for it, and what is made of both."""

    base: Path
    lora: Path
    base_file: Path
    merged: Path
    merged_file: Path
    trained: dict[str, Tensor]
    """The weights of the UNet in memory, merged by PEFT at STRENGTH; names of diffusers."""


def bases(kind: str, folder: Path) -> Path:
    base = tiny.make_sdxl(folder) if kind == "SDXL" else tiny.make_base(folder, text_layers=2, linear=kind == "SD2")
    config = UNet2DConditionModel.load_config(base / "unet") | AS_PUBLISHED | ({} if kind == "SDXL" else AS_PUBLISHED_1_AND_2)
    torch.manual_seed(5)
    UNet2DConditionModel.from_config(config).save_pretrained(base / "unet")
    return base


@pytest.fixture(scope="module", params=["SD1", "SD2", "SDXL"])
def made(request, tmp_path_factory) -> Files:
    folder = tmp_path_factory.mktemp("files")
    base = bases(request.param, folder / "base")
    lora = Adapter(name="lora", rank=3, alpha=5.0, dropout=0.0, targets="conv", dora=False)
    unet: Any = UNet2DConditionModel.from_pretrained(base / "unet")
    factors = lora.inject(unet, "fp32")
    generator = torch.Generator().manual_seed(1)
    for factor in factors.values():
        factor.data = 0.1 * torch.randn(factor.shape, generator=generator)
    section = {"learning_rate": 1e-4, "objective": PLAIN, "optimizer": {"name": "adamw"}, "seed": 0}
    facts = Facts(section, 1, 2, (32, 32), {}, {"source": "base"}, {"source": "images"})
    family = load_family("sdxl" if request.param == "SDXL" else "stable_diffusion", base)
    (folder / "lora").mkdir()
    lora.export(unet, factors, family, facts, folder / "lora", "fp32")

    what = exported(folder / "lora", base, STRENGTH)
    export_folder(what, folder / "merged", "fp32", force=False)
    export_single_file(what, folder / "merged.safetensors", "fp32", force=False)
    export_single_file(exported(base, base, None), folder / "base.safetensors", "fp32", force=False)
    for layer in unet.modules():
        if hasattr(layer, "lora_A"):
            layer.set_scale("default", STRENGTH)
            layer.merge()
    trained = {name.replace(".base_layer", ""): t for name, t in unet.state_dict().items() if ".lora_" not in name}
    return Files(base, folder / "lora", folder / "base.safetensors", folder / "merged", folder / "merged.safetensors", trained)


def pipeline_of(base: Path) -> Any:
    kind = "StableDiffusionXLPipeline" if (base / "text_encoder_2").is_dir() else "StableDiffusionPipeline"
    return getattr(diffusers, kind)


def in_diffusers(made: Files, form: str) -> dict[str, Tensor]:
    """Returns the weights of the UNet that diffusers' loader of each form ends with."""
    kind = pipeline_of(made.base)
    if form == "merged pipeline":
        return dict(kind.from_pretrained(made.merged).unet.state_dict())
    if form == "single file":
        read = kind.from_single_file(str(made.merged_file), config=str(made.base), local_files_only=True)
        return dict(read.unet.state_dict())
    pipeline = kind.from_pretrained(made.base)
    pipeline.load_lora_weights(made.lora, weight_name=FILES[form])
    pipeline.fuse_lora(lora_scale=STRENGTH)
    pipeline.unload_lora_weights()
    return dict(pipeline.unet.state_dict())


def in_program(made: Files, form: str, read: Any) -> dict[str, Tensor]:
    """Returns the same of a program's reader, by diffusers' names: its own converter knows them."""
    if form in FILES:
        weights = read(made.base_file, made.lora / FILES[form], STRENGTH)
    else:
        weights = read(made.merged if form == "merged pipeline" else made.merged_file)
    config = dict(UNet2DConditionModel.load_config(made.base / "unet"))
    return dict(convert_ldm_unet_checkpoint({f"{readers.PREFIX}{name}": t for name, t in weights.items()}, config))


FILES = {"PEFT file": "pytorch_lora_weights.safetensors", "kohya file": "lora.safetensors"}
PROGRAMS = {"ComfyUI": readers.comfyui, "A1111": readers.a1111}
READ_BY = {
    "PEFT file": {"diffusers"},
    "kohya file": {"diffusers", "ComfyUI", "A1111"},
    "merged pipeline": {"diffusers"},  # a folder
    "single file": {"diffusers", "ComfyUI", "A1111"},
}


@pytest.mark.parametrize("program", ["diffusers", *PROGRAMS])
@pytest.mark.parametrize("form", READ_BY)
def test_a_program_reads_the_same_change_or_says_that_it_cannot(made, form, program) -> None:
    if program not in READ_BY[form]:
        with pytest.raises(readers.CannotReadError):
            in_program(made, form, PROGRAMS[program])
        return
    found = in_diffusers(made, form) if program == "diffusers" else in_program(made, form, PROGRAMS[program])
    before = load_file(made.base / "unet/diffusion_pytorch_model.safetensors")
    assert readers.same(found, made.trained)
    assert readers.change(before, made.trained) > 0.01


@pytest.mark.parametrize("form", READ_BY)
def test_images_of_diffusers_are_those_of_the_merged_pipeline(made, form) -> None:
    kind = pipeline_of(made.base)
    if form in FILES:
        pipeline = kind.from_pretrained(made.base)
        pipeline.load_lora_weights(made.lora, weight_name=FILES[form])
        pipeline.unet.set_adapters(pipeline.unet.active_adapters(), STRENGTH)
    elif form == "single file":
        pipeline = kind.from_single_file(str(made.merged_file), config=str(made.base), local_files_only=True)
    else:
        pipeline = kind.from_pretrained(made.merged)
    reference = kind.from_pretrained(made.base)
    reference.unet.load_state_dict(made.trained)
    torch.testing.assert_close(drawn(pipeline), drawn(reference), atol=1e-5, rtol=0)


def drawn(pipeline: Any) -> Tensor:
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    images = pipeline("square 1", num_inference_steps=2, height=32, width=32, generator=generator, output_type="pt").images
    return torch.as_tensor(images)
