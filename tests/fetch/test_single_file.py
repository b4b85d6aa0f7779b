"""Single files as bases: converted once, or refused in one line before anything is written."""

import hashlib
import json
import re
import shutil

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

from stages import fetch
from t2i.core.params import load_section
from t2i.fetch.base import check_origin, fetch_base
from t2i.fetch.single_file import find_single_file
from t2i.model.base import Base
from t2i.tools.single_file import stored_tensors, write_single_file
from tests import tiny
from tests.projects import base_section, files

MAKERS = {
    "SD1": lambda folder: tiny.make_base(folder, text_layers=2),
    "SD2": lambda folder: tiny.make_base(folder, text_layers=2, linear=True),
    "SDXL": lambda folder: tiny.make_sdxl(folder),
}


def alone(base, folder, precision="fp32"):
    """Writes a folder with a single file, and configurations and a CLIP beside it; returns the section that names it."""
    shutil.copytree(base, folder / "config", ignore=shutil.ignore_patterns("*.safetensors", "clip"))
    shutil.copytree(base / "clip", folder / "clip")
    write_single_file(base, stored_tensors(base / "unet"), folder / "mine.safetensors", precision, {})
    family = "sdxl" if (base / "text_encoder_2").exists() else "stable_diffusion"
    return base_section(local=folder, config=folder / "config", family=family)


def fetched(section, tmp_path):
    fetch_base(section, tmp_path / "data/base", tmp_path / "data/base-clip")
    return tmp_path / "data/base"


def tensors(folder):
    """Returns the tensors of each part; transformers writes a text encoder's with or without `text_model.`."""
    return {
        part: {name.removeprefix("text_model."): tensor for name, tensor in stored_tensors(folder / part).items()}
        for part in ("unet", "vae", "text_encoder", "text_encoder_2")
        if (folder / part).exists()
    }


def edited(folder, change, metadata=None):
    """Edits the tensors of the single file in a folder."""
    file = folder / "mine.safetensors"
    stored = load_file(file)
    change(stored)
    save_file(stored, file, {"format": "pt"} | (metadata or {}))


@pytest.mark.parametrize("kind", MAKERS)
def test_a_pipeline_comes_back_tensor_by_tensor(tmp_path, kind) -> None:
    base = MAKERS[kind](tmp_path / "base")
    out = fetched(alone(base, tmp_path / "mine"), tmp_path)
    wanted, got = tensors(base), tensors(out)
    assert got.keys() == wanted.keys()
    for part in wanted:
        assert got[part].keys() == wanted[part].keys()
        assert all(torch.equal(got[part][name], tensor) for name, tensor in wanted[part].items())
    configs = [name for name in files(base) if name.endswith((".json", ".txt")) and not name.startswith("clip/")]
    for name in set(configs) - {"model_index.json", "scheduler/scheduler_config.json"}:
        assert (out / name).read_bytes() == (base / name).read_bytes()
    pipeline = getattr(diffusers, json.loads((out / "model_index.json").read_text())["_class_name"])
    assert pipeline.from_pretrained(out, use_safetensors=True).scheduler.config.prediction_type == "epsilon"


def test_the_source_is_the_file_and_its_sha256_without_a_path(tmp_path) -> None:
    section = alone(tiny.make_base(tmp_path / "base"), tmp_path / "mine", "fp16")
    source = json.loads((fetched(section, tmp_path) / "source.json").read_text())
    assert source.pop("sha256") == hashlib.sha256((tmp_path / "mine/mine.safetensors").read_bytes()).hexdigest()
    assert source == {"source": "mine.safetensors", "config_source": "config", "config_commit": None}
    assert {tensor.dtype for tensor in stored_tensors(tmp_path / "data/base/unet").values()} == {torch.float16}


def test_configurations_may_come_from_the_hub(tiny_base, tmp_path, monkeypatch) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    for name, folder in (("tiny", tiny_base), ("clip", tiny_base / "clip")):
        repository = tmp_path / "cache" / f"models--someone--{name}"
        shutil.copytree(folder, repository / "snapshots" / commit)
        (repository / "refs").mkdir()
        (repository / "refs/main").write_text(commit)
    for weights in (tmp_path / "cache/models--someone--tiny").rglob("*.safetensors"):
        weights.unlink()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "mine.safetensors"
    write_single_file(tiny_base, stored_tensors(tiny_base / "unet"), file, "fp32", {})
    section = base_section(local=file, config="someone/tiny@main", clip="someone/clip")
    source = json.loads((fetched(section, tmp_path) / "source.json").read_text())
    assert (source["config_source"], source["config_commit"]) == ("someone/tiny", commit)
    check_origin(section, tmp_path / "data/base", deep=True)


MARKED = {
    "v_pred": ({"v_pred"}, None, ("v_prediction", False)),
    "v_pred and ztsnr": ({"v_pred", "ztsnr"}, None, ("v_prediction", True)),
    "ModelSpec": (set(), "v", ("v_prediction", False)),
    "markers before ModelSpec": ({"v_pred"}, "epsilon", ("v_prediction", False)),
    "nothing": (set(), None, ("epsilon", False)),
}


@pytest.mark.parametrize("kind", ["SD1", "SDXL"])
@pytest.mark.parametrize("case", MARKED)
def test_the_prediction_type_is_what_the_file_says(tmp_path, kind, case) -> None:
    markers, stated, wanted = MARKED[case]
    section = alone(MAKERS[kind](tmp_path / "base"), tmp_path / "mine")
    edited(
        tmp_path / "mine",
        lambda stored: stored.update({name: torch.zeros(0) for name in markers}),
        {"modelspec.prediction_type": stated} if stated else None,
    )
    out = fetched(section, tmp_path)
    config = json.loads((out / "scheduler/scheduler_config.json").read_text())
    assert (config["prediction_type"], config.get("rescale_betas_zero_snr", False)) == wanted
    assert (config["timestep_spacing"] == "trailing") is wanted[1]
    check_origin(section, out)


def test_the_scheduler_stays_if_the_file_says_nothing(tmp_path) -> None:
    base = tiny.make_base(tmp_path / "base", prediction_type="v_prediction")
    section = alone(base, tmp_path / "mine")
    edited(tmp_path / "mine", lambda stored: [stored.pop("v_pred")])
    before = (base / "scheduler/scheduler_config.json").read_bytes()
    assert (fetched(section, tmp_path) / "scheduler/scheduler_config.json").read_bytes() == before


def test_a_scheduler_without_zero_snr_becomes_ddim(tmp_path) -> None:
    base = tiny.make_base(tmp_path / "base", prediction_type="v_prediction")
    diffusers.PNDMScheduler.from_pretrained(base, subfolder="scheduler").save_pretrained(base / "scheduler")
    index = json.loads((base / "model_index.json").read_text())
    (base / "model_index.json").write_text(json.dumps(index | {"scheduler": ["diffusers", "PNDMScheduler"]}))
    section = alone(base, tmp_path / "mine")
    edited(tmp_path / "mine", lambda stored: stored.update(ztsnr=torch.zeros(0)))
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(fetched(section, tmp_path))
    assert isinstance(pipeline.scheduler, diffusers.DDIMScheduler)
    assert pipeline.scheduler.config.rescale_betas_zero_snr
    assert not pipeline.scheduler.config.clip_sample
    assert pipeline.scheduler.alphas_cumprod[-1] == 0


def test_the_other_options_keep_their_meaning(tmp_path) -> None:
    base, other = tiny.make_base(tmp_path / "base", text_layers=3), tiny.make_base(tmp_path / "other", seed=1)
    section = alone(base, tmp_path / "mine")
    shutil.copytree(other / "vae", tmp_path / "mine/vae")
    edited(tmp_path / "mine", lambda stored: [stored.pop(name) for name in list(stored) if name.startswith("first_stage")])
    out = fetched(section.model_copy(update={"clip_skip": 1, "vae": str(tmp_path / "mine/vae")}), tmp_path)
    got = tensors(out)
    assert all(torch.equal(got["vae"][name], tensor) for name, tensor in tensors(other)["vae"].items())
    assert not any("layers.2" in name for name in got["text_encoder"])
    assert diffusers.StableDiffusionPipeline.from_pretrained(out).text_encoder.config.num_hidden_layers == 2


def test_older_names_and_leftovers_are_read(tmp_path) -> None:
    base = tiny.make_base(tmp_path / "base")
    section = alone(base, tmp_path / "mine")

    def change(stored) -> None:
        for name in [name for name in stored if ".text_model." in name]:
            stored[name.replace(".text_model.", ".")] = stored.pop(name)
        for name in [name for name in stored if ".attn_1." in name and stored[name].ndim == 4]:
            stored[name] = stored[name][:, :, 0].contiguous()  # 1-d convolutions
        stored["model_ema.decay"] = torch.tensor(0.9)
        stored["cond_stage_model.transformer.embeddings.position_ids"] = torch.arange(16)[None]
        stored["alphas_cumprod"] = torch.ones(1000)

    edited(tmp_path / "mine", change)
    wanted, got = tensors(base), tensors(fetched(section, tmp_path))
    for part in wanted:
        assert all(torch.equal(got[part][name], tensor) for name, tensor in wanted[part].items())


def without(prefix):
    return lambda stored: [stored.pop(name) for name in list(stored) if name.startswith(prefix)]


def only(prefix):
    return lambda stored: [stored.pop(name) for name in list(stored) if not name.startswith(prefix)]


def replaced_by(names):
    def change(stored) -> None:
        stored.clear()
        stored.update({name: torch.ones(2) for name in names})

    return change


def resized(name, *shape):
    return lambda stored: stored.update({name: torch.zeros(shape)})


FIRST, VAE = "model.diffusion_model.input_blocks.0.0.weight", "first_stage_model.encoder.conv_in.weight"
WEIGHT = "model.diffusion_model.out.2.weight"
REFUSED = {
    "a LoRA": (replaced_by(["lora_unet_mid_block_attentions_0_proj_in.lora_down.weight"]), r"is LoRA weights, wanted"),
    "a PEFT LoRA": (replaced_by(["unet.mid_block.attentions.0.proj_in.lora_A.weight"]), r"is LoRA weights"),
    "a VAE of its own": (replaced_by(["encoder.conv_in.weight", "decoder.conv_in.weight"]), r"is a VAE"),
    "a VAE": (only("first_stage_model."), r"is a VAE"),
    "a UNet": (only("model.diffusion_model."), r"is a UNet without text encoders"),
    "a ControlNet": (replaced_by(["control_model.time_embed.0.weight"]), r"is a ControlNet"),
    "a refiner": (replaced_by([FIRST, "conditioner.embedders.0.model.ln_final.weight"]), r"is the refiner of SDXL"),
    "Flux": (replaced_by(["model.diffusion_model.double_blocks.0.img_attn.qkv.weight"]), r"such as SD 3 or Flux"),
    "a UNet in diffusers' layout": (
        replaced_by(["down_blocks.0.resnets.0.conv1.weight"]),
        r"single model in diffusers' layout",
    ),
    "another tensor": (replaced_by(["emb_params"]), r"has 1 tensors, such as 'emb_params'"),
    "no tensors": (replaced_by([]), r"has no tensors"),
    "inpainting": (resized(FIRST, 8, 9, 3, 3), r"takes 9 channels, wanted 4: this UNet is for inpainting"),
    "EDM": (lambda stored: stored.update(edm_mean=torch.ones(4)), r"edm_mean, .* Playground"),
    "no VAE": (without("first_stage_model."), r"has no VAE: set `base.vae`"),
    "fp8": (lambda stored: stored.update({WEIGHT: stored[WEIGHT].to(torch.float8_e4m3fn)}), rf"{WEIGHT} is F8_E4M3, wanted"),
    "a missing tensor": (without(WEIGHT), rf"no tensor {WEIGHT}, though .*config has it \(unet\): set `base.config`"),
    "another shape": (resized(VAE, 16, 3, 3, 3), rf"{VAE} is \[16, 3, 3, 3\], which does not fit .*config .*`base.config`"),
    "a scalar": (resized(WEIGHT), rf"{WEIGHT} is \[\], which does not fit .*`base.config`"),
    "a first scalar": (resized(FIRST), r"takes 0 channels, wanted 4"),
    "a scalar in the VAE": (resized("first_stage_model.encoder.mid.attn_1.q.weight"), r"attn_1\.q\.weight is \[\], which"),
    "a deeper UNet": (
        resized(f"{FIRST[:-10]}7.0.weight", 2),
        r"has .*input_blocks\.7\.0\.weight, which the UNet of .*`base.config`",
    ),
    "NaN": (lambda stored: stored[WEIGHT].fill_(float("nan")), rf"tensor {WEIGHT} has NaN"),
}


def refusal(section, tmp_path):
    """Returns the one-line error of a fetch that must leave no output."""
    with pytest.raises(ValueError, match=r".") as caught:
        fetched(section, tmp_path)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "data").iterdir())
    return str(caught.value)


@pytest.mark.parametrize("case", REFUSED)
def test_a_file_that_cannot_be_trained_is_named(tmp_path, tiny_base, case) -> None:
    change, said = REFUSED[case]
    section = alone(tiny_base, tmp_path / "mine")
    edited(tmp_path / "mine", change)
    found = refusal(section, tmp_path)
    assert re.search(rf"mine\.safetensors: .*{said}", found), found


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("mine.ckpt", b"PK", r"mine\.ckpt: is a pickle, .*\.safetensors"),
        ("mine.pt", b"PK", r"mine\.pt: is a pickle"),
        ("mine.txt", b"notes", r"mine\.txt: is not a safetensors file"),
        ("mine.safetensors", b"<html>a page instead of a model</html>", r"not a complete safetensors file .*replace it"),
        ("mine.safetensors", b"", r"not a complete safetensors file .*replace it"),
    ],
)
def test_another_kind_of_file_is_refused(tmp_path, name, content, said) -> None:
    (tmp_path / name).write_bytes(content)
    assert re.search(said, refusal(base_section(local=tmp_path / name, config="someone/tiny"), tmp_path))


def test_a_truncated_file_is_refused(tiny_base, tmp_path) -> None:
    section = alone(tiny_base, tmp_path / "mine")
    file = tmp_path / "mine/mine.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    assert re.search(r"mine\.safetensors: not a complete safetensors file .*replace it", refusal(section, tmp_path))


@pytest.mark.parametrize(("kind", "family"), [("SD1", "sdxl"), ("SD2", "sdxl"), ("SDXL", "stable_diffusion")])
def test_another_family_is_named(tmp_path, kind, family) -> None:
    section = alone(MAKERS[kind](tmp_path / "base"), tmp_path / "mine")
    said = refusal(section.model_copy(update={"family": family}), tmp_path)
    assert re.search(rf"mine\.safetensors: is a Stable Diffusion .*family {family} .*`base.family: {section.family}`", said)


def test_a_prediction_type_that_is_not_known_is_refused(tiny_base, tmp_path) -> None:
    section = alone(tiny_base, tmp_path / "mine")
    edited(tmp_path / "mine", lambda stored: None, {"modelspec.prediction_type": "rf"})
    assert re.search(r"modelspec\.prediction_type is 'rf', wanted epsilon or v", refusal(section, tmp_path))


def test_missing_configurations_are_asked_for_by_name(tmp_path) -> None:
    for kind, published in (("SD1", "stable-diffusion-v1-5"), ("SD2", "stable-diffusion-2-1"), ("SDXL", "xl-base-1.0")):
        section = alone(MAKERS[kind](tmp_path / kind), tmp_path / f"mine-{kind}").model_copy(update={"config": None})
        assert re.search(rf"`base.config` is null, .*set it to \S+{published}, or to a folder", refusal(section, tmp_path))


def test_configurations_of_another_model_are_refused(tmp_path) -> None:
    section = alone(tiny.make_base(tmp_path / "one"), tmp_path / "mine")
    alone(tiny.make_base(tmp_path / "two", text_width=8), tmp_path / "other")
    shutil.rmtree(tmp_path / "mine/config")
    shutil.copytree(tmp_path / "other/config", tmp_path / "mine/config")
    assert re.search(r"mine\.safetensors: .* does not fit .*config .*set `base.config` to", refusal(section, tmp_path))


@pytest.mark.parametrize(("kind", "other"), [("SD1", "SDXL"), ("SDXL", "SD1")])
def test_configurations_of_another_family_are_refused(tmp_path, kind, other) -> None:
    section = alone(MAKERS[kind](tmp_path / "one"), tmp_path / "mine")
    shutil.copytree(MAKERS[other](tmp_path / "two"), tmp_path / "mine/two")
    said = refusal(section.model_copy(update={"config": str(tmp_path / "mine/two")}), tmp_path)
    assert re.search(r"`base.config` two: has text_encoder.*mine\.safetensors is a Stable .*set it to .*, such as", said)


def test_a_damaged_configuration_is_named(tiny_base, tmp_path) -> None:
    section = alone(tiny_base, tmp_path / "mine")
    shutil.rmtree(tmp_path / "mine/config/tokenizer")
    (tmp_path / "mine/config/tokenizer").mkdir()
    assert re.search(r"`base.config` .*config: tokenizer/vocab\.json: missing", refusal(section, tmp_path))


def test_configurations_that_dvc_does_not_track_are_refused(tiny_base, tmp_path) -> None:
    section = alone(tiny_base, tmp_path / "mine")
    changes = {"local": str(tmp_path / "mine/mine.safetensors")}
    said = refusal(section.model_copy(update=changes), tmp_path)
    assert re.search(r"`base.config` .* must be inside `base.local` .*one folder", said)
    shutil.copytree(tmp_path / "mine/config", tmp_path / "elsewhere")
    said = refusal(section.model_copy(update={"config": str(tmp_path / "elsewhere")}), tmp_path)
    assert re.search(r"`base.config` .* must be inside `base.local` ", said)


def test_a_folder_has_at_most_one_single_file(tiny_base, tmp_path) -> None:
    assert find_single_file(tiny_base) is None
    for count, name in enumerate(("a.safetensors", "b.safetensors")):
        assert find_single_file(tmp_path) == (tmp_path / "a.safetensors" if count else None)
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r"has 2 single files: name one in `base.local`, such as .*a\.safetensors"):
        find_single_file(tmp_path)
    with pytest.raises(ValueError, match=r"c\.safetensors: no such file: correct `base.local`"):
        find_single_file(tmp_path / "c.safetensors")


def test_another_file_or_configuration_makes_the_base_stale(project, tiny_base, tmp_path) -> None:
    section = alone(tiny_base, tmp_path / "mine")
    project.params["base"] |= {name: getattr(section, name) for name in ("local", "config", "clip")}
    project.write()
    fetch.base()
    section, base = load_section(project.folder / "params.yaml", "base", Base), project.folder / "data/base"
    check_origin(section, base, deep=True)
    edited(tmp_path / "mine", lambda stored: stored[WEIGHT].add_(1))
    check_origin(section, base)
    with pytest.raises(ValueError, match=r"its sha256 is .*run `t2i fetch base`"):
        check_origin(section, base, deep=True)
    (tmp_path / "mine/mine.safetensors").rename(tmp_path / "mine/renamed.safetensors")
    with pytest.raises(ValueError, match=r"its source is mine\.safetensors, .*renamed\.safetensors"):
        check_origin(section, base)
    (tmp_path / "mine/renamed.safetensors").rename(tmp_path / "mine/mine.safetensors")
    (tmp_path / "mine/config").rename(tmp_path / "mine/configs")
    with pytest.raises(ValueError, match=r"its config_source is config, .* configs"):
        check_origin(section.model_copy(update={"config": str(tmp_path / "mine/configs")}), base)
