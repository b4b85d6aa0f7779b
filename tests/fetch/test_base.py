import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel

from t2i.fetch.base import fetch_base
from t2i.model.base import Base
from tests import tiny
from tests.projects import base_section

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def params(**changes) -> Base:
    return base_section(**({"local": "x", "clip": "someone/clip"} | changes))


@pytest.fixture
def hub(tiny_base, tmp_path, monkeypatch) -> Path:
    """A cache of the Hub's client with the tiny base as someone/tiny."""
    repository = tmp_path / "cache" / "models--someone--tiny"
    shutil.copytree(tiny_base, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    return repository / "snapshots" / COMMIT


def test_a_hub_revision_is_resolved_to_its_commit(hub, tiny_base, tmp_path) -> None:
    said = fetch_base(
        params(hub="someone/tiny", revision="main", local=str(tiny_base), clip=str(tiny_base / "clip")),
        tmp_path / "base",
        tmp_path / "clip",
    )
    assert json.loads((tmp_path / "base" / "source.json").read_text()) == {"source": "someone/tiny", "commit": COMMIT}
    assert said == f"someone/tiny at {COMMIT}"
    StableDiffusionPipeline.from_pretrained(tmp_path / "base", use_safetensors=True)


def test_variant_weights_get_the_plain_name(hub, tiny_base, tmp_path) -> None:
    for part in ("unet", "vae", "text_encoder"):
        for weights in (hub / part).glob("*.safetensors"):
            shutil.copyfile(weights, weights.with_name(weights.name.replace(".safetensors", ".fp16.safetensors")))
    base = params(hub="someone/tiny", revision="main", variant="fp16", local=str(tiny_base), clip=str(tiny_base / "clip"))
    fetch_base(base, tmp_path / "base", tmp_path / "clip")
    assert [file.name for file in (tmp_path / "base/unet").glob("*.safetensors")] == ["diffusion_pytorch_model.safetensors"]


def test_a_pipeline_without_its_safety_checker_loads(tiny_base, tmp_path) -> None:
    other = shutil.copytree(tiny_base, tmp_path / "other")
    index = json.loads((other / "model_index.json").read_text())
    index |= {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"], "requires_safety_checker": True}
    (other / "model_index.json").write_text(json.dumps(index))
    fetch_base(params(local=str(other), clip=str(other / "clip")), tmp_path / "base", tmp_path / "clip")
    assert StableDiffusionPipeline.from_pretrained(tmp_path / "base", use_safetensors=True).safety_checker is None


def test_an_unknown_base_is_a_one_line_error(tiny_base, tmp_path) -> None:
    with pytest.raises(ValueError, match=r"`base.hub`: 'someone/gone': HF_HUB_OFFLINE is set") as caught:
        fetch_base(
            params(hub="someone/gone", local=str(tiny_base), clip=str(tiny_base / "clip")), tmp_path / "base", tmp_path / "clip"
        )
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "base").exists()


def test_a_folder_without_a_pipeline_is_rejected(tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"model_index.json: missing"):
        fetch_base(params(local=str(tmp_path / "empty")), tmp_path / "base", tmp_path / "clip")


@pytest.mark.parametrize("content", ["", '{"_class_name": ', "[1]", "<html>"])
@pytest.mark.parametrize(
    "name", ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json", "clip/config.json"]
)
def test_a_damaged_configuration_is_named(tiny_base, tmp_path, name, content) -> None:
    base = shutil.copytree(tiny_base, tmp_path / "damaged")
    (base / name).write_text(content)
    with pytest.raises(ValueError, match=rf"^{base / name}: (not valid JSON \(.+\)|got a JSON list)"):
        fetch_base(params(local=str(base), clip=str(base / "clip")), tmp_path / "data/base", tmp_path / "data/clip")
    assert not list((tmp_path / "data").iterdir())


def test_a_clip_outside_base_local_is_rejected(tiny_base, tmp_path) -> None:
    clip = shutil.copytree(tiny_base / "clip", tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"`base.clip` .*`base.local`"):
        fetch_base(params(local=str(tiny_base), clip=str(clip)), tmp_path / "base", tmp_path / "clip")


def test_clip_skip_equals_diffusers_clip_skip(tmp_path) -> None:
    base = tiny.make_base(tmp_path / "deep", text_layers=3)
    fetch_base(params(local=str(base), clip=str(base / "clip"), clip_skip=1), tmp_path / "base", tmp_path / "clip")
    deep, shallow = (CLIPTextModel.from_pretrained(folder / "text_encoder") for folder in (base, tmp_path / "base"))
    tokens = torch.randint(0, 20, (2, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        theirs = deep.final_layer_norm(deep(tokens, output_hidden_states=True).hidden_states[-2])  # clip_skip=1
        torch.testing.assert_close(shallow(tokens).last_hidden_state, theirs)
        assert not torch.allclose(deep(tokens).last_hidden_state, theirs)
    assert not any("layers.2" in name for name in load_file(tmp_path / "base/text_encoder/model.safetensors"))
    with pytest.raises(ValueError, match=r"`base.clip_skip` is 3, but the text encoder has 3 layers"):
        fetch_base(params(local=str(base), clip=str(base / "clip"), clip_skip=3), tmp_path / "none", tmp_path / "clip")


def test_another_vae_replaces_the_base_vae(tmp_path) -> None:
    base = tiny.make_base(tmp_path / "base")
    other = shutil.copytree(tiny.make_base(tmp_path / "other", seed=1) / "vae", base / "other-vae")
    wanted = load_file(other / "diffusion_pytorch_model.safetensors")
    config = json.loads((other / "config.json").read_text())
    del config["scaling_factor"]  # as in sd-vae-ft-mse: it means 0.18215
    (other / "config.json").write_text(json.dumps(config))
    fetch_base(params(local=str(base), clip=str(base / "clip"), vae=str(other)), tmp_path / "out", tmp_path / "clip")
    got = load_file(tmp_path / "out/vae/diffusion_pytorch_model.safetensors")
    assert all(torch.equal(got[name], tensor) for name, tensor in wanted.items())
    assert json.loads((tmp_path / "out/source.json").read_text())["vae_source"] == "other-vae"
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"latent_channels": 16}))
    with pytest.raises(ValueError, match=r"`base.vae` .*unet: takes 4 channels .*wanted 16"):
        fetch_base(params(local=str(base), clip=str(base / "clip"), vae=str(other)), tmp_path / "out", tmp_path / "clip")


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_weights_that_do_not_fit_leave_no_output(tmp_path, part) -> None:
    base = tiny.make_base(tmp_path / "base")
    (file,) = (base / part).glob("*.safetensors")
    tensors = load_file(file)
    save_file({name: tensors[name] for name in sorted(tensors)[1:]}, file, metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=rf"base: {part}: 1 missing tensors, such as {sorted(tensors)[0]}; .*config.json"
    ) as caught:
        fetch_base(params(local=str(base), clip=str(base / "clip")), tmp_path / "data/base", tmp_path / "data/clip")
    assert ".partial" not in str(caught.value)
    assert not list((tmp_path / "data").iterdir())


def test_weights_come_after_the_checks(hub, tiny_base, tmp_path) -> None:
    config = json.loads((hub / "unet/config.json").read_text())
    (hub / "unet/config.json").write_text(json.dumps(config | {"in_channels": 9}))
    for weights in hub.rglob("*.safetensors"):
        weights.unlink()
    asked = params(hub="someone/tiny", local=str(tiny_base), clip=str(tiny_base / "clip"))
    with pytest.raises(ValueError, match=r"^someone/tiny: unet: takes 9 channels"):
        fetch_base(asked, tmp_path / "base", tmp_path / "clip")


def test_licences_are_copied_as_text(tmp_path) -> None:
    base = tiny.make_base(tmp_path / "base")
    for name in ("LICENSE", "LICENSE.md", "LICENSE-2.0"):
        (base / name).write_text(name)
    (base / "LICENSES").mkdir()
    fetch_base(params(local=str(base), clip=str(base / "clip")), tmp_path / "out", tmp_path / "clip")
    found = {path.name: path.read_text() for path in (tmp_path / "out").glob("LICENSE*")}
    assert found == {"LICENSE.txt": "LICENSE", "LICENSE.md": "LICENSE.md", "LICENSE-2.0.txt": "LICENSE-2.0"}


def test_clip_skip_needs_the_number_of_layers(tmp_path) -> None:
    base = tiny.make_base(tmp_path / "base")
    config = json.loads((base / "text_encoder/config.json").read_text())
    del config["num_hidden_layers"]
    (base / "text_encoder/config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"text_encoder/config.json: got num_hidden_layers = None"):
        fetch_base(params(local=str(base), clip=str(base / "clip"), clip_skip=1), tmp_path / "out", tmp_path / "clip")
