import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from stages.tools import app
from t2i.data.digests import sha256_of


@pytest.fixture
def run(project):
    def run(*arguments: str):
        base = project.params["base"]["local"]
        return CliRunner().invoke(app, ["sample", "--base", base, "--model", base, *arguments])

    return run


def test_an_image_has_metadata_and_a_seed_reproduces_it(project, run) -> None:
    for out in ("one", "two"):
        done = run("square 1", "--seed", "3", "--num", "2", "--out", out)
        assert done.exit_code == 0, done.output
    names = sorted(path.name for path in (project.folder / "one").iterdir())
    assert names == ["grid.png", "square-1-3.png", "square-1-4.png"]
    for name in names:
        assert (project.folder / "one" / name).read_bytes() == (project.folder / "two" / name).read_bytes()
    with Image.open(project.folder / "one/square-1-4.png") as image:
        facts = dict(image.info)
    weights = Path(project.params["base"]["local"]) / "unet" / "diffusion_pytorch_model.safetensors"
    assert facts["model_sha256"] == sha256_of(weights)
    assert (facts["prompt"], facts["seed"], facts["guidance_scale"]) == ("square 1", "4", "1.5")


def test_compare_draws_both_models_from_the_same_noise(project, run) -> None:
    (project.folder / "prompts.txt").write_text("square 1\n\nsquare 2\n")
    done = run("--prompts-file", "prompts.txt", "--compare", "--num", "1")
    assert done.exit_code == 0, done.output
    out = project.folder / "samples"
    assert len(list(out.iterdir())) == 5
    assert Image.open(out / "square-2-0-base.png").tobytes() == Image.open(out / "square-2-0-fine-tuned.png").tobytes()


def test_precision_changes_rounding_only(project, run) -> None:
    images = {}
    for precision in ("fp32", "bf16"):
        project.params["evaluate"]["precision"] = precision
        project.write()
        assert run("square 1", "--num", "1", "--out", precision).exit_code == 0
        images[precision] = np.asarray(Image.open(project.folder / precision / "square-1-0.png"), dtype=float)
    difference = np.abs(images["fp32"] - images["bf16"])
    assert 0 < difference.mean() < 2  # of 255


def test_a_negative_prompt_changes_the_image(project, run) -> None:
    for out, negative in (("plain", ""), ("led away", "circle 9")):
        assert run("square 1", "--num", "1", "--negative-prompt", negative, "--out", out).exit_code == 0
    images = [Image.open(project.folder / out / "square-1-0.png").tobytes() for out in ("plain", "led away")]
    assert images[0] != images[1]


def test_a_missing_prompt_or_model_is_an_error(project, run) -> None:
    assert run().exit_code == 2
    done = run("square 1", "--model", "nowhere")
    assert "nowhere" in str(done.exception)
    assert done.exit_code == 1


def test_a_missing_model_names_the_command_that_writes_it(project) -> None:
    done = CliRunner().invoke(app, ["sample", "square 1"])
    assert re.search("data/model: no pipeline here; run `t2i train`", str(done.exception))
    done = CliRunner().invoke(app, ["sample", "square 1", "--model", project.params["base"]["local"], "--compare"])
    assert re.search("data/base: no pipeline here; run `t2i fetch base`", str(done.exception))


def test_prompts_have_no_byte_order_marks(project, run) -> None:
    lines = "\ufeffsquare 1\n\ufeff\n\u200b\n\0\nsquare\u20282\f!\r\n"
    (project.folder / "prompts.txt").write_bytes(lines.encode())
    assert run("\ufeffsquare 3", "--prompts-file", "prompts.txt", "--num", "1").exit_code == 0
    prompts = []
    for path in (project.folder / "samples").glob("square*"):
        with Image.open(path) as image:
            prompts.append(image.info["prompt"])
    assert sorted(prompts) == ["square 1", "square 3", "square\u20282\x0c!"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"square 1\ncaf\xe9\n", "prompts.txt: not UTF-8 at byte 12"),
        ("x".encode("utf-16"), "prompts.txt: in UTF-16"),
        (b"a\0b", "prompts.txt: prompt has a NUL"),
    ],
)
def test_a_prompts_file_that_is_not_utf_8_is_named(project, run, content, said) -> None:
    (project.folder / "prompts.txt").write_bytes(content)
    assert said in str(run("--prompts-file", "prompts.txt").exception)


@pytest.mark.parametrize("prompt", ["caf\udce9", "\u200b", "a\0b"])
def test_a_prompt_that_is_no_text_is_refused(project, run, prompt) -> None:
    assert re.search("blank prompt|not valid Unicode|NUL", str(run(prompt).exception))
    assert not (project.folder / "samples").exists()


def test_a_prompt_without_letters_has_a_file_name(project, run) -> None:
    assert run("", "!!!", "--num", "1").exit_code == 0
    names = sorted(path.name for path in (project.folder / "samples").iterdir())
    assert len(names) == 3
    assert all(re.fullmatch(r"grid.png|prompt-[0-9a-f]{6}-0.png", name) for name in names)
