"""What a command says if the stages before it did not run."""

import re
import shutil
from pathlib import Path

import pytest

from tests.projects import Project
from tests.victims import t2i

STAGES = ("encode images", "encode captions", "train", "evaluate base", "evaluate report")
LACKING = [
    ("encode images", "data/raw", "t2i fetch dataset"),
    ("encode captions", "data/raw", "t2i fetch dataset"),
    ("train", "data/raw", "t2i fetch dataset"),
    ("train", "data/latents", "t2i encode images"),
    ("train", "data/embeds", "t2i encode captions"),
    ("train", "data/validation-prompts", "t2i encode captions"),
    ("evaluate base", "data/raw", "t2i fetch dataset"),
    ("evaluate base", "data/base-clip", "t2i fetch base"),
    ("evaluate base", "data/latents", "t2i encode images"),
    ("evaluate base", "data/embeds", "t2i encode captions"),
    ("evaluate model", "data/model", "t2i train"),
    ("evaluate report", "data/model", "t2i train"),
]


def said(capsys: pytest.CaptureFixture, *words: str) -> str:
    """Returns the one-line error of a command that must fail."""
    with pytest.raises(SystemExit) as ended:
        t2i(*words)
    assert ended.value.code == 1
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))
    assert "[Errno" not in line
    return line


@pytest.mark.parametrize("command", STAGES)
def test_a_stage_before_fetch_base_names_it(project, capsys, command) -> None:
    assert re.search(r"data/base: no pipeline here; run `t2i fetch base` or `dvc repro`", said(capsys, *command.split()))


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    """The outputs of the stages before `train`."""
    from tests import tiny

    folder = tmp_path_factory.mktemp("encoded")
    tiny.make_images(folder / "images", 12)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Project(folder, tiny_base).fetch_and_encode()
    return folder


@pytest.mark.parametrize(("command", "path", "stage"), LACKING)
def test_a_command_names_the_stage_that_writes_an_input(encoded, project, capsys, command, path, stage) -> None:
    shutil.copytree(encoded / "data", project.folder / "data")
    shutil.rmtree(project.folder / path, ignore_errors=True)
    assert re.search(rf"{path}\S*: (missing|no pipeline here); run `{stage}`", said(capsys, *command.split()))


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("sample", "x", "--prompts-file", "images"), "images: Is a directory"),
        (("sample", "x", "--prompts-file", "gone.txt"), "gone.txt: No such file"),
        (("preset", "sd15", "--presets", "gone"), "gone: no preset 'sd15'"),
        (("fetch", "dataset", "--report", "images/0000.png"), "images/0000.png: File exists"),
    ],
)
def test_a_wrong_path_is_named_without_a_number(project, capsys, words, error) -> None:
    with pytest.raises(SystemExit):
        t2i(*words)
    line = capsys.readouterr().err.splitlines()[-1]
    assert error in line
    assert "[Errno" not in line
