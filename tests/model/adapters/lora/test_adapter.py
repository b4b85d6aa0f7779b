import copy
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from t2i.core.params import ParamsError, check
from t2i.model.adapters.lora.adapter import Adapter, open_adapter
from t2i.model.adapters.lora.dropout import Dropout
from t2i.model.adapters.lora.files import why_not_kohya
from t2i.model.adapters.lora.merging import by_module, check_fit
from t2i.model.adapters.lora.targets import TARGETS
from t2i.tools.published import SIZES

LORA: dict[str, Any] = {
    "name": "lora",
    "rank": 3,
    "alpha": 6.0,
    "dropout": 0.0,
    "targets": "attention_mlp",
    "dora": False,
}


def unet_of(base) -> UNet2DConditionModel:
    return UNet2DConditionModel.from_pretrained(base / "unet")


def called(unet, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    latents, text = (
        torch.randn(*shape, generator=generator) for shape in ((2, 4, 8, 8), (2, 16, unet.config["cross_attention_dim"]))
    )
    added = {"text_embeds": torch.ones(2, 12), "time_ids": torch.ones(2, 6)}
    return unet(latents, torch.tensor([3, 700]), text, added_cond_kwargs=added).sample


def randomized(factors) -> None:
    generator = torch.Generator().manual_seed(1)
    for name, weight in factors.items():
        change = 0.1 * torch.randn(weight.shape, generator=generator)
        weight.data = weight.data * (1 + change) if "magnitude" in name else change


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("base", ["tiny_base", "tiny_sdxl"])
def test_the_merged_unet_computes_what_peft_does(request, base, targets, dora) -> None:
    unet = unet_of(request.getfixturevalue(base)).eval()
    plain, lora = copy.deepcopy(unet), Adapter(**LORA | {"targets": targets, "dora": dora})
    factors = lora.inject(unet, "fp32")
    assert torch.allclose(called(unet), called(plain), atol=1e-6)  # B is zero at first
    randomized(factors)
    change = lora.change(factors)
    for name, weight in plain.named_parameters():
        weight.data = change(name, weight.data)
    assert (called(unet) - called(plain)).abs().max() < 1e-5 * called(plain).abs().max()
    assert not torch.allclose(called(unet), called(unet_of(request.getfixturevalue(base))), atol=1e-2)


def test_only_the_factors_are_trained_and_stay_in_fp32(tiny_base) -> None:
    unet = unet_of(tiny_base)
    factors = Adapter(**LORA).inject(unet, "bf16")
    for name, weight in unet.named_parameters():
        assert weight.requires_grad == (name in factors)
        assert weight.dtype == (torch.float32 if name in factors else torch.bfloat16)


def test_factors_start_at_a_normal_a_and_a_zero_b(tiny_base) -> None:
    torch.manual_seed(0)
    factors = Adapter(**LORA | {"rank": 16, "targets": "conv"}).inject(unet_of(tiny_base), "bf16")
    a = torch.cat([weight.flatten() for name, weight in factors.items() if "lora_A" in name])
    assert a.std().item() == pytest.approx(1 / 16, rel=0.05)
    assert not torch.equal(a, a.bfloat16().float())  # not rounded to the precision of the base
    assert all(not weight.any() for name, weight in factors.items() if "lora_B" in name)


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("dora", [False, True])
def test_parameters_are_counted_from_the_shapes_of_the_base(tiny_sdxl, targets, dora) -> None:
    unet = unet_of(tiny_sdxl)
    shapes = {name: weight.shape for name, weight in unet.named_parameters()}
    lora = Adapter(**LORA | {"targets": targets, "dora": dora})
    assert lora.count(shapes, "") == sum(weight.numel() for weight in lora.inject(unet, "fp32").values())


@pytest.mark.parametrize(("size", "count"), [("sd15", 192), ("sd21", 192), ("sdxl", 722)])
def test_all_linear_are_the_layers_of_kohyas_trainer(size, count) -> None:
    """Its rule: each linear layer and 1x1 convolution in a Transformer2DModel; with `conv_dim`, also each layer of others."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**SIZES[size].unet)
        theirs, others = of_kohya(unet, {"Transformer2DModel"}), of_kohya(unet, {"ResnetBlock2D", "Downsample2D", "Upsample2D"})
        assert injected(unet, "all_linear") == theirs
        assert len(theirs) == count
        unet = UNet2DConditionModel(**SIZES[size].unet)
        assert injected(unet, "conv") == theirs | others


def of_kohya(unet, classes: set[str]) -> set[str]:
    return {
        f"{name}.{inner}"
        for name, module in unet.named_modules()
        if type(module).__name__ in classes
        for inner, layer in module.named_modules()
        if type(layer).__name__ in ("Linear", "Conv2d", "LoRACompatibleLinear", "LoRACompatibleConv")
    }


def injected(unet, targets: str) -> set[str]:
    factors = Adapter(**LORA | {"targets": targets}).inject(unet, "fp32")
    return {name.partition(".lora_")[0] for name in factors}


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"rank": 0}, "train.adapter.rank"),
        ({"alpha": 0.0}, "train.adapter.alpha"),
        ({"dropout": 1.0}, "train.adapter.dropout"),
        ({"targets": "mlp"}, "train.adapter.targets"),
        ({"ranks": 4}, "rank"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_wrong_section_names_the_key(wrong, words) -> None:
    with pytest.raises(ParamsError, match=words):
        check(Adapter, LORA | wrong, "train.adapter")


def test_a_unet_without_such_layers_is_refused(tiny_base) -> None:
    with pytest.raises(ValueError, match=r"train.adapter.targets.*attention"):
        Adapter(**LORA | {"targets": "attention"}).inject(unet_of(tiny_base).conv_in, "fp32")


def test_dropout_depends_on_seed_step_place_and_layer_alone(tiny_base) -> None:
    unet, lora = unet_of(tiny_base).train(), Adapter(**LORA | {"dropout": 0.5})
    randomized(lora.inject(unet, "fp32"))
    layers = [module for module in unet.modules() if isinstance(module, Dropout)]
    assert len(layers) == len({layer.layer for layer in layers}) > 9

    def at(step: int, places: range, seed: int = 0) -> torch.Tensor:
        torch.manual_seed(torch.seed())
        lora.place(unet, seed, step, places)
        return called(unet)

    assert torch.equal(at(3, range(2)), at(3, range(2)))
    assert torch.equal(at(3, range(2))[1], at(3, range(5, 0, -4))[1])  # another image beside it
    for other in (at(4, range(2)), at(3, range(2, 4)), at(3, range(2), seed=1)):
        assert not torch.allclose(at(3, range(2))[0], other[0], atol=1e-3)
    unet.enable_gradient_checkpointing()
    checkpointed = at(3, range(2))
    checkpointed.square().sum().backward()  # computes the blocks again, with the same masks
    with_checkpoints = [weight.grad.clone() for weight in unet.parameters() if weight.grad is not None]
    unet.disable_gradient_checkpointing()
    unet.zero_grad()
    at(3, range(2)).square().sum().backward()
    without = [weight.grad for weight in unet.parameters() if weight.grad is not None]
    assert all(torch.equal(one, other) for one, other in zip(with_checkpoints, without, strict=True))
    unet.eval()
    assert torch.equal(called(unet), called(unet))


def test_a_damaged_adapter_is_named(tmp_path) -> None:
    (tmp_path / "adapter.json").write_text('{"name": "lora", "rank": 3, "alpha": 6}')
    with pytest.raises(ValueError, match=r"pytorch_lora_weights.safetensors.*train again"):
        open_adapter(tmp_path, tmp_path, 1.0)


def test_a_unet_that_other_programs_do_not_have_gets_no_file_for_them(tiny_sdxl) -> None:
    config = dict(unet_of(tiny_sdxl).config)
    assert why_not_kohya(Adapter(**LORA), config) is None
    assert "DoRA" in str(why_not_kohya(Adapter(**LORA | {"dora": True}), config))
    for other in ({"down_block_types": ["DownBlock2D", "AttnDownBlock2D"]}, {"resnet_time_scale_shift": "scale_shift"}):
        assert "its layers" in str(why_not_kohya(Adapter(**LORA), config | other))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_in_half_precision_are_merged_in_fp32(tiny_base, dtype) -> None:
    unet, lora = unet_of(tiny_base), Adapter(**LORA)
    factors = lora.inject(unet, "fp32")
    for name, factor in factors.items():
        factor.data = torch.full_like(factor, 1e-3 if "lora_B" in name else 1e-2)
    name = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    weight = unet_of(tiny_base).get_parameter(f"{name}.weight").to(dtype)
    merged = lora.change(factors)(f"{name}.weight", weight)
    assert merged.dtype == torch.float32
    torch.testing.assert_close(merged - weight.float(), torch.full_like(merged, 2 * 3 * 1e-5), atol=1e-8, rtol=0)


@pytest.mark.parametrize("what", ["a layer is missing", "another width"])
def test_factors_that_do_not_fit_are_named(tiny_base, what) -> None:
    unet = unet_of(tiny_base)
    shapes = {name: list(weight.shape) for name, weight in unet.named_parameters()}
    factors = by_module(Adapter(**LORA).inject(unet, "fp32"))
    check_fit(factors, shapes)
    layer = next(iter(factors))
    if what == "a layer is missing":
        del shapes[f"{layer}.weight"]
    else:
        shapes[f"{layer}.weight"][1] += 1
    with pytest.raises(ValueError, match=rf"does not fit the base: {layer} .*use the base that it was trained on"):
        check_fit(factors, shapes)
