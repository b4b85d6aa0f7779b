from dataclasses import replace

import pytest

from t2i.advice import Figures, warnings

GOOD = Figures(
    evaluation={
        "heldout_loss": 0.21,
        "heldout_loss_base": 0.9,
        "train_loss": 0.2,
        "overfit_gap_base": 0.005,
        "copy_rate": 0.03,
        "retention_retrieval": 0.7,
        "retention_retrieval_base": 0.75,
    },
    intervals={
        "overfit_gap": [-0.01, 0.03],
        "copy_rate": [0.0, 0.06],
        "retention_retrieval": [0.6, 0.8],
        "retention_retrieval_base": [0.65, 0.85],
    },
    images={"psnr_mean": 27.0},
    captions={"truncated": 0, "captions": 100},
)


def test_a_good_run_is_warned_of_nothing() -> None:
    assert warnings(GOOD) == []


@pytest.mark.parametrize(
    ("part", "change", "said"),
    [
        ("intervals", {"overfit_gap": [0.06, 0.1]}, "Overfitting"),
        ("intervals", {"copy_rate": [0.2, 0.4]}, "Copying"),
        ("intervals", {"retention_retrieval": [0.1, 0.3]}, "Forgetting"),
        ("evaluation", {"heldout_loss": 0.95}, "No gain"),
        ("captions", {"truncated": 3}, "3 of 100 captions are cut short"),
        ("images", {"psnr_mean": 18.0}, "18.0 dB"),
    ],
)
def test_each_warning_fires_alone_and_says_what_to_try(part, change, said) -> None:
    (found,) = warnings(replace(GOOD, **{part: getattr(GOOD, part) | change}))
    assert said in found.what
    assert found.to_try


def test_a_dataset_without_retention_prompts_is_not_called_forgetful() -> None:
    without = {name: value for name, value in GOOD.evaluation.items() if not name.startswith("retention")}
    assert warnings(replace(GOOD, evaluation=without)) == []
