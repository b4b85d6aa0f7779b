import json
import shutil
from pathlib import Path

import pytest
from diffusers import StableDiffusionPipeline

from t2i.family import Base
from t2i.fetch_base import fetch_base

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def params(**changes) -> Base:
    unset = {"hub": None, "revision": None, "variant": None}
    return Base(**({"family": "stable_diffusion", "local": "x", "clip": "someone/clip"} | unset | changes))


@pytest.fixture
def hub(tiny_base, tmp_path, monkeypatch) -> Path:
    """A download cache that holds the tiny base as someone/tiny, as the Hub's client lays it out."""
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


def test_a_variant_comes_under_the_plain_name(hub, tiny_base, tmp_path) -> None:
    for part in ("unet", "vae", "text_encoder"):
        for weights in (hub / part).glob("*.safetensors"):
            shutil.copyfile(weights, weights.with_name(weights.name.replace(".safetensors", ".fp16.safetensors")))
    base = params(hub="someone/tiny", revision="main", variant="fp16", local=str(tiny_base), clip=str(tiny_base / "clip"))
    fetch_base(base, tmp_path / "base", tmp_path / "clip")
    assert [file.name for file in (tmp_path / "base/unet").glob("*.safetensors")] == ["diffusion_pytorch_model.safetensors"]


def test_the_safety_checker_is_left_out_and_the_pipeline_loads(tiny_base, tmp_path) -> None:
    other = shutil.copytree(tiny_base, tmp_path / "other")
    index = json.loads((other / "model_index.json").read_text())
    index |= {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"], "requires_safety_checker": True}
    (other / "model_index.json").write_text(json.dumps(index))
    fetch_base(params(local=str(other), clip=str(other / "clip")), tmp_path / "base", tmp_path / "clip")
    assert StableDiffusionPipeline.from_pretrained(tmp_path / "base", use_safetensors=True).safety_checker is None


def test_an_unknown_base_is_one_line_with_a_remedy(tiny_base, tmp_path) -> None:
    with pytest.raises(ValueError, match=r"`base`: 'someone/gone', revision None, is not to be had from the Hub") as caught:
        fetch_base(
            params(hub="someone/gone", local=str(tiny_base), clip=str(tiny_base / "clip")), tmp_path / "base", tmp_path / "clip"
        )
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "base").exists()


def test_a_folder_that_is_no_pipeline_is_refused(tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"model_index.json: missing"):
        fetch_base(params(local=str(tmp_path / "empty")), tmp_path / "base", tmp_path / "clip")


def test_a_clip_that_dvc_does_not_watch_is_refused(tiny_base, tmp_path) -> None:
    clip = shutil.copytree(tiny_base / "clip", tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"must lie inside `base.local`"):
        fetch_base(params(local=str(tiny_base), clip=str(clip)), tmp_path / "base", tmp_path / "clip")
