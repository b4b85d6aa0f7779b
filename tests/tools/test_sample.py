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


def test_an_image_says_what_made_it_and_a_seed_gives_it_again(project, run) -> None:
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


def test_base_and_fine_tuned_are_compared_on_the_same_noise(project, run) -> None:
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


def test_no_prompt_and_no_model_are_said(project, run) -> None:
    assert run().exit_code == 2
    done = run("square 1", "--model", "nowhere")
    assert "no pipeline is here" in str(done.exception)
    assert done.exit_code == 1
