"""Caches that do not fit what is here: each stage that reads them, run by hand, says what they were made with."""

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
        ("images", {"resolution_px": 64}, r"latents: was made with `params.resolution_px` 32, but now that is 64"),
        ("images", {"crop": {"name": "random", "views": 2}}, r"latents: was made with `params.crop` {'name': 'center'}"),
        (
            "images",
            {"background": "#000000"},
            r"latents: was made with `params.background` '#ffffff', but now that is '#000000'",
        ),
        ("captions", {"records_per_shard": 3}, r"embeds: was made with `params.records_per_shard` 8, but now that is 3"),
    ],
)
def test_caches_made_with_other_parameters_are_refused(cached, section, changes, said) -> None:
    change_params(cached, section, **changes)
    for run in (cached.train, evaluate.base, evaluate.model, evaluate.report):
        with pytest.raises(ValueError, match=said + r".*: run the stage that writes it again"):
            run()
    assert not (cached.folder / "data/reports/train").exists()


def test_what_does_not_decide_a_cache_makes_none_stale(cached) -> None:
    change_params(cached, "images", psnr_records=1, min_psnr=-1.0)
    change_params(cached, "captions", validation_prompts=["another"])
    cached.train()


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ("vae/diffusion_pytorch_model.safetensors", r"latents: was made with `vae` '\w+', but now that is '\w+'"),
        ("text_encoder/model.safetensors", r"embeds: was made with `text.text_encoder` '\w+', but now that is '\w+'"),
        ("tokenizer/tokenizer.json", r"embeds: was made with `text.tokenizer` '\w+', but now that is '\w+'"),
    ],
)
def test_caches_of_another_base_are_refused(cached, part, said) -> None:
    path = cached.folder / "data/base" / part
    if path.suffix == ".json":
        path.write_text(path.read_text() + "\n")
    else:
        save_file({name: tensor * 2 for name, tensor in load_file(path).items()}, path, metadata={"format": "pt"})
    for run in (cached.train, evaluate.base, evaluate.model, evaluate.report):
        with pytest.raises(ValueError, match=said):
            run()


def test_caches_of_another_dataset_are_refused(cached) -> None:
    metadata = cached.folder / "images/metadata.jsonl"
    metadata.write_text(metadata.read_text().replace("square 3", "a third"))
    fetch.dataset()
    with pytest.raises(ValueError, match=r"embeds: was made with `captions` '\w+', but now that is '\w+'"):
        cached.train()
    shutil.rmtree(cached.folder / "images")
    tiny.make_images(cached.folder / "images", 20)
    fetch.dataset()
    with pytest.raises(ValueError, match=r"latents: was made with `images` '\w+', but now that is '\w+'"):
        cached.train()


def test_a_cache_of_another_dtype_is_refused(cached) -> None:
    path = cached.folder / "data/latents/manifest.json"
    path.write_text(path.read_text().replace('"float16"', '"bfloat16"'))
    with pytest.raises(ValueError, match=r"latents: was made with `dtype` 'bfloat16', but now that is 'float16'"):
        cached.train()


@pytest.mark.parametrize(
    "file", ["latents/train-00001.tar", "latents/heldout-00000.tar", "embeds/train-00000.tar", "embeds/empty.safetensors"]
)
def test_a_flipped_bit_is_found_before_training_unless_it_is_not_to_be_looked_for(cached, file) -> None:
    flip(cached.folder / "data" / file)
    for run in (cached.train, evaluate.base, evaluate.model, evaluate.report):
        with pytest.raises(ValueError, match=rf"{Path(file).name}: expected sha256 \w+, found \w+"):
            run()
    assert not list((cached.folder / "data").glob("work/train-*/step-*"))
    cached.params["runtime"]["verify_shards"] = False
    cached.train()


def test_a_flipped_bit_in_an_image_shard_is_found_by_all_who_read_it(cached) -> None:
    flip(cached.folder / "data/raw/images/train-00000.tar")
    for run in (encode.images, evaluate.base, evaluate.model, evaluate.report):
        with pytest.raises(ValueError, match=r"train-00000.tar: expected sha256"):
            run()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"images": "'])
def test_a_description_of_the_dataset_that_is_damaged_is_named(cached, content) -> None:
    (cached.folder / "data/raw/dataset.json").write_text(content)
    with pytest.raises(ValueError, match=r"dataset.json: damaged, or of another version .*; run `fetch dataset` again"):
        cached.train()


@pytest.mark.parametrize("section", [None, 3, {"images": {}}])
def test_caches_need_the_section_that_they_are_held_to(cached, section) -> None:
    cached.params["encode"] = section
    with pytest.raises(ParamsError, match=r"no section `encode\.\w+`"):
        cached.train()


def test_a_line_of_captions_that_is_damaged_is_named(cached) -> None:
    path = cached.folder / "data/raw/captions.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1][:-5], *lines[2:]]))
    with pytest.raises(ValueError, match=r"captions.jsonl, line 2: damaged .*; run `fetch dataset` again"):
        encode.captions()
    assert json.loads(lines[0]).keys() == {"key", "split", "captions"}
