import shutil
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from t2i.tools.differences import Differences, differences
from t2i.tools.preset import leaves, presets, values_of, write_preset
from tests.projects import ROOT


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with params.yaml and all presets."""
    shutil.copytree(ROOT / "presets", tmp_path / "presets", ignore=shutil.ignore_patterns(".*"))
    shutil.copyfile(ROOT / "params.yaml", tmp_path / "params.yaml")
    return tmp_path


def leaves_of(path: Path) -> dict[str, object]:
    return dict(leaves(YAML(typ="safe").load(path.read_text(encoding="utf-8"))))


def compared(folder: Path) -> Differences:
    return differences(leaves_of(folder / "params.yaml"), leaves_of(ROOT / "params.yaml"), folder / "presets")


def edit(folder: Path, old: str, new: str) -> None:
    path = folder / "params.yaml"
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def test_without_a_preset_the_last_commit_is_the_reference(folder) -> None:
    assert compared(folder) == ("`params.yaml` of the last commit", [])
    edit(folder, "learning_rate: 6.0e-3", "learning_rate: 1e-05")
    assert compared(folder).rows == [("train.learning_rate", "0.006", "1e-05")]


@pytest.mark.parametrize("name", list(presets(ROOT / "presets")))
def test_the_preset_that_was_applied_is_the_reference(folder, name) -> None:
    write_preset(name, folder / "presets", folder / "params.yaml")
    found = compared(folder)
    assert found.rows == []
    assert f"the preset `{name}` (recorded as applied)" in found.reference
    edit(folder, "max_grad_norm: 1", "max_grad_norm: 7")  # not a parameter of most presets
    edit(folder, "steps: ", "steps: 1")
    assert {"train.steps", "train.max_grad_norm"} == {row.place for row in compared(folder).rows}


@pytest.mark.parametrize("name", list(presets(ROOT / "presets")))
def test_the_preset_applied_last_is_the_reference(folder, name) -> None:
    for one in [*presets(folder / "presets"), name]:
        write_preset(one, folder / "presets", folder / "params.yaml")
    assert f"the preset `{name}` (recorded" in compared(folder).reference


def test_of_presets_that_set_the_same_the_whole_one_is_the_reference(folder) -> None:
    for name, content in (("a", "{steps: 7, batch_size: 99}"), ("b", "{steps: 7}"), ("c", "{steps: 7, seed: 99}")):
        (folder / f"presets/{name}.yaml").write_text(f"# {name}\ntrain: {content}\n")
    write_preset("b", folder / "presets", folder / "params.yaml")
    assert compared(folder).reference.startswith("the preset `b` (recorded as applied)")


@pytest.mark.parametrize("name", list(presets(ROOT / "presets")))
def test_without_a_record_the_nearest_preset_is_the_reference(folder, name) -> None:
    write_preset(name, folder / "presets", folder / "params.yaml")
    (folder / "presets/.undo.yaml").unlink()
    edit(folder, "prompt_dropout: ", "prompt_dropout: 0.2  # ")
    found = compared(folder)
    count = len(values_of(name, folder / "presets"))
    assert f"the preset `{name}` (the nearest: {count - 1} of its {count} values" in found.reference
    assert [row.place for row in found.rows] == ["train.prompt_dropout"]


def test_with_no_commit_and_no_preset_there_is_no_reference(folder) -> None:
    assert differences(leaves_of(folder / "params.yaml"), {}, folder / "presets") == ("", [])


def test_a_long_value_is_cut(folder) -> None:
    edit(folder, "- red heart", f"- {'very ' * 100}red heart")
    (row,) = compared(folder).rows
    assert row.place == "encode.captions.validation_prompts"
    assert row.before.startswith("[red heart, rocket")
    assert len(row.now) == 160
