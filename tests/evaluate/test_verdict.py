"""The verdict on the metrics of ten runs, which `python -m benchmarks.verdicts` makes, and at the thresholds."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.verdicts import OUT, RUNS
from t2i.evaluate.advice import StageMetrics
from t2i.evaluate.verdict import verdict


def metrics(file: Path) -> StageMetrics:
    stages = json.loads(file.read_text(encoding="utf-8"))
    names = ("evaluate/metrics", "evaluate/intervals", "encode-images/metrics", "encode-captions/metrics")
    return StageMetrics(*(stages[name] for name in names))


@pytest.mark.parametrize("name", RUNS)
def test_each_recorded_run_gets_the_verdict_written_down(name) -> None:
    found = verdict(metrics(OUT / f"{name}.json"))
    assert found.word == RUNS[name].verdict, found.reasons


def test_the_default_run_is_good_and_the_foreign_one_is_not() -> None:
    assert RUNS["default"].verdict == "use"
    assert {RUNS[name].verdict for name in RUNS if name.startswith("foreign")} == {"do not use"}


@pytest.mark.parametrize(
    ("changes", "interval", "word", "said"),
    [
        ({}, [0.7, 0.8], "use", "Content: kept"),
        ({"cmmd": 0.65}, [0.7, 0.8], "check", "Look: learnt in part"),
        ({"cmmd": 1.5}, [0.7, 0.8], "do not use", "Look: not learnt"),
        ({"cmmd_base": 0.15, "cmmd": 0.12}, [0.7, 0.8], "do not use", "Look: nothing to learn"),
        ({"prompt_retrieval": 0.6}, [0.5, 0.66], "do not use", "Content: lost"),
        ({"prompt_retrieval": 0.1, "prompt_retrieval_base": 0.1}, [0.05, 0.15], "check", "Content: not learnt"),
        ({"prompt_retrieval_real": 0.1}, [0.7, 0.8], "check", "Content: not known"),
        ({"prompts": 29}, [0.7, 0.8], "check", "Certainty: low"),
    ],
)
def test_each_finding_decides_alone(changes, interval, word, said) -> None:
    good = metrics(OUT / "default.json")
    values = {"cmmd": 0.2, "cmmd_base": 2.0, "cmmd_floor": 0.1, "prompt_retrieval": 0.75}
    values |= {"prompt_retrieval_base": 0.9, "prompt_retrieval_real": 0.9, "retention_retrieval": 0.9}
    figures = replace(
        good, evaluation=dict(good.evaluation) | values, intervals=dict(good.intervals) | {"prompt_retrieval": [0.7, 0.8]}
    )
    assert verdict(figures).word == "use"
    changed = replace(
        figures,
        evaluation=dict(figures.evaluation) | changes,
        intervals=dict(figures.intervals) | {"prompt_retrieval": interval},
    )
    found = verdict(changed)
    assert found.word == word
    assert any(reason.startswith(said) for reason in found.reasons)


@pytest.mark.parametrize(
    ("upper", "of_base", "real", "word", "said"),
    [
        (0.75, 1.0, 0.9, "use", None),
        (0.7, 1.0, 0.9, "check", "Other prompts: forgotten in part"),
        (0.4, 1.0, 0.9, "do not use", "Other prompts: lost"),
        (0.0, 1.0, 0.1, "do not use", "Other prompts: lost"),  # photographs, which this CLIP cannot read; the prompts it can
        (0.0, 0.2, 0.1, "check", None),  # it reads neither
    ],
)
def test_what_the_base_knew_counts_if_clip_reads_it(upper, of_base, real, word, said) -> None:
    good = metrics(OUT / "default.json")
    values = {"retention_retrieval": upper - 0.05, "retention_retrieval_base": of_base, "prompt_retrieval_real": real}
    figures = replace(
        good,
        evaluation=dict(good.evaluation) | values,
        intervals=dict(good.intervals) | {"retention_retrieval": [0.0, upper]},
    )
    found = verdict(figures)
    assert found.word == word
    assert [reason for reason in found.reasons if reason.startswith("Other prompts")] == (
        [] if said is None else [next(reason for reason in found.reasons if reason.startswith(said))]
    )
