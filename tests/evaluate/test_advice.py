import json
from dataclasses import replace

import pytest

from t2i.data.records import split_of
from t2i.evaluate.advice import StageMetrics, warnings
from t2i.fetch.source import content_key
from t2i.fetch.sources.openmoji import STYLES, draw, names
from tests.projects import ROOT, Project

GOOD = StageMetrics(
    evaluation={
        "heldout_loss": 0.21,
        "heldout_loss_base": 0.9,
        "train_loss": 0.2,
        "train_loss_base": 0.9,
        "overfit_gap_base": 0.005,
        "copy_rate": 0.03,
        "prompts": 30,
        "prompt_retrieval_real": 0.9,
        "retention_retrieval": 0.7,
        "retention_retrieval_base": 0.75,
    },
    intervals={
        "overfit_gap": [-0.01, 0.03],
        "copy_rate": [0.0, 0.06],
        "retention_retrieval": [0.6, 0.8],
    },
    images={"psnr_mean": 27.0},
    captions={"truncated": 0, "captions": 100},
)


def test_a_good_run_gives_no_warning() -> None:
    assert warnings(GOOD) == []


@pytest.mark.parametrize(
    ("part", "change", "expected"),
    [
        ("intervals", {"overfit_gap": [0.06, 0.1]}, "Overfitting"),
        ("intervals", {"copy_rate": [0.2, 0.4]}, "Copying"),
        ("intervals", {"retention_retrieval": [0.1, 0.3]}, "Forgetting"),
        ("evaluation", {"heldout_loss": 0.95}, "No gain"),
        ("evaluation", {"prompt_retrieval_real": 0.2}, "recognizes 20% of the real images"),
        ("evaluation", {"prompts": 29}, "Only 29 held-out images"),
        ("captions", {"truncated": 3}, "3 of 100 captions"),
        ("images", {"psnr_mean": 18.0}, "18.0 dB"),
    ],
)
def test_each_warning_fires_alone_and_has_a_remedy(part, change, expected) -> None:
    (found,) = warnings(replace(GOOD, **{part: getattr(GOOD, part) | change}))
    assert expected in found.what
    assert found.to_try


@pytest.mark.parametrize("prompts", [["owl"], ["owl"] * 9])
def test_prompts_that_do_not_suit_the_dataset_are_named(prompts) -> None:
    for change, parameter in (
        ({"familiar": prompts}, "evaluate.retention_prompts"),
        ({"strange": prompts}, "validation_prompts"),
    ):
        (found,) = warnings(replace(GOOD, **change))
        assert "owl" in found.what
        assert len(found.what) < 200
        assert parameter in found.to_try


def test_no_retention_prompts_give_no_forgetting_warning() -> None:
    without = {name: value for name, value in GOOD.evaluation.items() if not name.startswith("retention")}
    assert warnings(replace(GOOD, evaluation=without)) == []


@pytest.mark.slow
def test_memorizing_twenty_images_gives_both_warnings(tmp_path, monkeypatch, capsys) -> None:
    """For a memorized prompt the model draws the training image, not the different held-out image of that prompt."""
    monkeypatch.chdir(tmp_path)
    project = Project(tmp_path, ROOT / "base/openmoji")
    (tmp_path / "images").mkdir()
    pictures: dict[str, list[tuple[str, bytes]]] = {"train": [], "heldout": []}
    for code in sorted(names())[5::17]:
        picture = draw(code, 64, *STYLES["night"])
        pictures[split_of(content_key(picture), 0.5)].append((code, picture))
    with (tmp_path / "images/metadata.jsonl").open("w", encoding="utf-8") as file:
        for (learnt, seen), (code, unseen) in zip(pictures["train"][:20], pictures["heldout"][:20], strict=True):
            for name, picture in ((learnt, seen), (code, unseen)):
                (tmp_path / f"images/{name}.png").write_bytes(picture)
                file.write(json.dumps({"file_name": f"{name}.png", "text": names()[learnt]}) + "\n")
    project.params["fetch"]["heldout_fraction"] = 0.5
    project.params["encode"]["images"]["resolution_px"] = 64
    project.params["train"] |= {"trainable": "", "steps": 500, "batch_size": 8, "precision": "bf16"}
    project.params["evaluate"] |= {"prompts": 20, "num_inference_steps": 16, "retention_prompts": []}
    project.params["sweep"]["guidance_scales"] = []
    project.params["runtime"]["validation"]["every_steps"] = 500
    project.write()
    project.fetch_and_encode()
    project.train()
    project.evaluate()
    output = capsys.readouterr().out
    assert "warning: Overfitting" in output
    assert "warning: Copying" in output
