"""Caches that are out of date or damaged: each stage that reads them, run by hand, says what they were made with."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from stages import encode, evaluate, fetch
from t2i.core.params import ParamsError
from tests import tiny
from tests.projects import Project, flip


@pytest.fixture
def cached(project: Project) -> Project:
    project.fetch_and_encode()
    shutil.copytree(project.folder / "data/base", project.folder / "data/model")  # a model to evaluate
    return project


def change_params(project: Project, section: str, **changes: object) -> None:
    project.params["encode"][section] |= changes
    project.write()


@pytest.mark.parametrize(
    ("section", "changes", "said"),
    [
        ("images", {"resolution_px": 64}, r"latents: .*`encode.images.resolution_px` 32, .* 64"),
        ("images", {"crop": {"name": "random", "views": 2}}, r"latents: .*`encode.images.crop` {'name': 'center'}"),
        ("images", {"background": "#000000"}, r"latents: .*`encode.images.background` '#ffffff', .* '#000000'"),
        ("captions", {"records_per_shard": 3}, r"embeds: .*`encode.captions.records_per_shard` 8, .* 3"),
    ],
)
def test_caches_made_with_other_parameters_are_rejected(cached, section, changes, said) -> None:
    change_params(cached, section, **changes)
    for run in (cached.train, evaluate.base, evaluate.model, evaluate.report):
        with pytest.raises(ValueError, match=rf"{said}.*; `t2i encode {section}` or `dvc repro` writes it again"):
            run()
    assert not (cached.folder / "data/reports/train").exists()


def test_parameters_that_do_not_decide_a_cache_may_change(cached) -> None:
    change_params(cached, "images", psnr_records=1, min_psnr=-1.0)
    change_params(cached, "captions", validation_prompts=["another"])
    cached.train()


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ("vae/diffusion_pytorch_model.safetensors", r"latents: .*`vae` '\w+', .* '\w+'"),
        ("text_encoder/model.safetensors", r"embeds: .*`text.text_encoder` '\w+', .* '\w+'"),
        ("tokenizer/tokenizer.json", r"embeds: .*`text.tokenizer` '\w+', .* '\w+'"),
    ],
)
def test_caches_from_another_base_are_rejected(cached, part, said) -> None:
    path = cached.folder / "data/base" / part
    if path.suffix == ".json":
        path.write_text(path.read_text() + "\n")
    else:
        save_file({name: tensor * 2 for name, tensor in load_file(path).items()}, path, metadata={"format": "pt"})
    for run in (cached.train, evaluate.base, evaluate.model, evaluate.report):
        with pytest.raises(ValueError, match=said):
            run()


def test_caches_from_another_dataset_are_rejected(cached) -> None:
    metadata = cached.folder / "images/metadata.jsonl"
    metadata.write_text(metadata.read_text().replace("square 3", "a third"))
    fetch.dataset()
    with pytest.raises(ValueError, match=r"embeds: .*`captions` '\w+', .* '\w+'"):
        cached.train()
    shutil.rmtree(cached.folder / "images")
    tiny.make_images(cached.folder / "images", 20)
    fetch.dataset()
    with pytest.raises(ValueError, match=r"latents: .*`images` '\w+', .* '\w+'"):
        cached.train()


def test_a_cache_with_another_dtype_is_rejected(cached) -> None:
    path = cached.folder / "data/latents/manifest.json"
    path.write_text(path.read_text().replace('"float16"', '"bfloat16"'))
    with pytest.raises(ValueError, match=r"latents: .*`dtype` 'bfloat16', .* 'float16'"):
        cached.train()


@pytest.mark.parametrize(
    "file", ["latents/train-00001.tar", "latents/heldout-00000.tar", "embeds/train-00000.tar", "embeds/empty.safetensors"]
)
def test_verify_shards_finds_a_flipped_bit_before_training(cached, file) -> None:
    flip(cached.folder / "data" / file)
    for run in (cached.train, evaluate.base, evaluate.model, evaluate.report):
        with pytest.raises(ValueError, match=rf"{Path(file).name}: expected sha256 \w+, found \w+"):
            run()
    assert not list((cached.folder / "data").glob("work/train-*/step-*"))
    cached.params["runtime"]["verify_shards"] = False
    cached.train()


def test_every_reader_finds_a_flipped_bit_in_an_image_shard(cached) -> None:
    flip(cached.folder / "data/raw/images/train-00000.tar")
    for run in (encode.images, evaluate.base, evaluate.model, evaluate.report):
        with pytest.raises(ValueError, match=r"train-00000.tar: expected sha256"):
            run()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"images": "'])
def test_a_damaged_dataset_json_is_named(cached, content) -> None:
    (cached.folder / "data/raw/dataset.json").write_text(content)
    with pytest.raises(ValueError, match=r"dataset.json: damaged, .*run `fetch dataset` again"):
        cached.train()


@pytest.mark.parametrize("section", [None, 3, {"images": {}}])
def test_checking_caches_needs_their_parameter_sections(cached, section) -> None:
    cached.params["encode"] = section
    with pytest.raises(ParamsError, match=r"no section `encode\.\w+`"):
        cached.train()


def test_a_damaged_line_of_captions_is_named(cached) -> None:
    path = cached.folder / "data/raw/captions.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1][:-5], *lines[2:]]))
    with pytest.raises(ValueError, match=r"captions.jsonl, line 2: damaged .*; run `fetch dataset` again"):
        encode.captions()
    assert json.loads(lines[0]).keys() == {"key", "split", "captions"}
