"""LoRA and DoRA through all stages: what is trained, kept and exported is the adapter alone."""

import json
import re
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from typer.testing import CliRunner

from stages import encode, evaluate, fetch
from stages.tools import app
from t2i.data.chance import derived_seed
from tests import tiny
from tests.projects import LORA, files

pytestmark = pytest.mark.slow


def lora(**changes: Any) -> dict[str, Any]:
    return LORA | {"adapter": LORA["adapter"] | changes}


@pytest.mark.parametrize(
    ("family", "options", "section"),
    [
        ("stable_diffusion", {}, lora()),
        ("stable_diffusion", {}, lora(dora=True, targets="conv", dropout=0.0) | {"precision": "bf16", "export_dtype": "fp16"}),
        ("sdxl", {}, lora(targets="conv") | {"precision": "bf16", "export_dtype": "fp16"}),
        ("sdxl", {"prediction_type": "v_prediction", "zero_terminal_snr": True}, lora(targets="all_linear")),
    ],
    ids=["sd", "sd-dora", "sdxl-fp16", "sdxl-v"],
)
def test_all_stages_and_tools_run(project, tmp_path, family, options, section) -> None:
    base = (tiny.make_sdxl if family == "sdxl" else tiny.make_base)(tmp_path / "other", **options)
    project.params["base"] |= {"family": family, "local": str(base), "clip": str(base / "clip")}
    project.params["train"] |= section
    project.params["train"]["objective"]["zero_terminal_snr"] = bool(options)
    project.write()
    project.fetch_and_encode()
    project.train()
    project.evaluate()

    data, dora = project.folder / "data", section["adapter"]["dora"]
    kept = {"README.md", "adapter.json", "pytorch_lora_weights.safetensors", "source.json"}
    kept |= set() if dora else {"lora.safetensors"}
    assert {name for name in files(data / "model") if not name.startswith("pictures/")} == kept
    assert sum(map(len, files(data / "model").values())) < sum(map(len, files(data / "base/unet").values()))
    card = (data / "model/README.md").read_text()
    snippet = card.partition("```python\n")[2].partition("```")[0]
    snippet = re.sub(
        r'"(other|path/to/this/folder)"', lambda found: {"other": repr(str(base))}.get(found[1], "'data/model'"), snippet
    )
    exec(snippet.replace("float16", "float32"), {})
    assert Image.open("image.png").size == (32, 32)
    assert ("DDIMScheduler" in card or "EulerDiscreteScheduler" in card) is bool(options)
    assert ("since it is a DoRA" in card) is dora
    if dora:  # half precision would round away what it learnt
        written = load_file(data / "model/pytorch_lora_weights.safetensors")
        assert {t.dtype for name, t in written.items() if "magnitude" in name} == {torch.float32}
    assert (data / "reports/report.html").stat().st_size > 10_000
    for command in (["plan"], ["sample", "square 1", "--compare", "--scale", "0.5", "--out", "drawn"]):
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 0, (done.output, done.exception)
    assert Image.open("drawn/square-1-0-fine-tuned.png").info["adapter_scale"] == "0.5"
    found = CliRunner().invoke(app, ["doctor", "--deep"]).output.splitlines()
    assert not [line for line in found if line.startswith("wrong") and "checkout: " not in line]


def test_a_checkpoint_holds_the_adapter_alone(ready) -> None:
    ready.params["train"] |= LORA
    ready.train()
    adapter = load_file(ready.folder / "data/model/pytorch_lora_weights.safetensors")
    (step,) = ready.folder.glob("data/work/train-*/step-00000012")
    for name in ("unet", "ema"):
        assert sum(tensor.numel() for tensor in load_file(step / f"{name}.safetensors").values()) == sum(
            tensor.numel() for tensor in adapter.values()
        )
    assert all(".lora_" in name for name in load_file(step / "optimizer.safetensors"))


def test_the_exported_files_are_the_averaged_weights(ready) -> None:
    ready.params["train"] |= LORA | {"export_dtype": "fp32"}
    ready.train()
    model = ready.folder / "data/model"
    (step,) = ready.folder.glob("data/work/train-*/step-00000012")
    averaged = load_file(step / "ema.safetensors")
    peft, kohya = (load_file(model / f"{name}.safetensors") for name in ("pytorch_lora_weights", "lora"))
    assert len(peft) == len(averaged)
    for name, tensor in averaged.items():
        assert torch.equal(peft[f"unet.{name.replace('.default', '')}"], tensor)
    a = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0"
    theirs = f"lora_unet_{a.replace('.', '_')}"
    assert torch.equal(kohya[f"{theirs}.lora_down.weight"], peft[f"unet.{a}.lora_A.weight"])
    assert torch.equal(kohya[f"{theirs}.lora_up.weight"], 2.0 * peft[f"unet.{a}.lora_B.weight"])
    assert kohya[f"{theirs}.alpha"].shape == ()
    assert kohya[f"{theirs}.alpha"].item() == 4.0


def test_images_of_the_evaluation_are_those_of_diffusers_with_the_adapter(ready) -> None:
    ready.params["train"] |= LORA | {"learning_rate": 0.05}
    ready.params["sweep"]["adapter_scale"] = 0.5
    ready.train()
    encode.images()
    evaluate.base()
    evaluate.model()
    data = ready.folder / "data"
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(data / "base", safety_checker=None)
    pipeline.load_lora_weights(data / "model", weight_name="pytorch_lora_weights.safetensors")
    pipeline.unet.set_adapters(pipeline.unet.active_adapters(), 0.5)
    CliRunner().invoke(app, ["sample", "square 1", "--num", "1", "--out", "drawn", "--scale", "0.5"])
    CliRunner().invoke(app, ["sample", "square 1", "--num", "1", "--out", "base", "--model", "data/base"])
    generator = torch.Generator().manual_seed(derived_seed(0, "sample", ""))
    theirs = pipeline(
        "square 1", negative_prompt="", generator=[generator], num_inference_steps=2, guidance_scale=1.5, height=32, width=32
    ).images[0]
    ours = Image.open("drawn/square-1-0.png")
    assert pixels(ours).sub(pixels(theirs)).abs().max() <= 1
    assert pixels(ours).sub(pixels(Image.open("base/square-1-0.png"))).abs().max() > 1


def pixels(image: Image.Image) -> torch.Tensor:
    return torch.tensor(list(image.convert("RGB").tobytes()), dtype=torch.int32)


def test_the_files_say_what_programs_ask_for(ready) -> None:
    ready.params["train"] |= LORA
    ready.train()
    model = ready.folder / "data/model"
    with safe_open(model / "lora.safetensors", "pt") as file:
        header = file.metadata()
    assert header["ss_base_model_version"] == "sd_v1"
    assert header["ss_v2"] == "False"
    assert (header["ss_network_dim"], header["ss_network_alpha"]) == ("4", "8.0")
    assert header["ss_num_train_images"] == "17"
    assert header["ss_steps"] == "12"
    assert header["ss_resolution"] == "(32, 32)"
    assert header["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert "ss_clip_skip" not in header
    everything = b"".join(files(model).values())
    assert str(ready.folder).encode() not in everything
    with safe_open(model / "pytorch_lora_weights.safetensors", "pt") as file:
        stated = json.loads(file.metadata()["lora_adapter_metadata"])
    assert (stated["unet.r"], stated["unet.lora_alpha"]) == (4, 8.0)


def test_two_runs_export_the_same_bytes(ready) -> None:
    ready.params["train"] |= LORA
    ready.train()
    first = files(ready.folder / "data/model")
    Path("data/work").rename("work")
    ready.train()
    assert files(ready.folder / "data/model") == first


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"trainable": "attn"}, r"`trainable` is 'attn'.*lora.*`train.trainable: \"\"`"),
        ({"init": "random"}, r"`init` is 'random'.*`train.init: base`"),
        ({"adapter": {"name": "lore"}}, r"'lore' is not a module.*`lora`"),
        ({"adapter": None}, r"train.adapter.*wanted a `name`"),
    ],
)
def test_what_does_not_go_with_an_adapter_is_refused(project, section, said) -> None:
    project.params["train"] |= LORA | section
    project.write()
    with pytest.raises(ValueError, match=said):
        project.train()


def test_a_scale_without_an_adapter_and_an_adapter_without_its_base_are_refused(project) -> None:
    fetch.base()
    done = CliRunner().invoke(app, ["sample", "square 1", "--model", "data/base", "--scale", "0.5"])
    assert "not an adapter" in str(done.exception)
    (project.folder / "adapter").mkdir()
    (project.folder / "adapter/adapter.json").write_text(json.dumps({"name": "lora"}))
    done = CliRunner().invoke(app, ["sample", "square 1", "--model", "adapter", "--base", "nowhere"])
    assert "needs its base" in str(done.exception)


def test_an_adapter_of_another_base_is_refused(ready, tmp_path) -> None:
    ready.params["train"] |= LORA
    ready.train()
    other = tiny.make_base(tmp_path / "other", text_width=32)
    done = CliRunner().invoke(app, ["sample", "square 1", "--base", str(other)])
    assert "the adapter does not fit the base" in str(done.exception)
    assert "use the base that it was trained on" in str(done.exception)
