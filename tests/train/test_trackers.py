import json

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from t2i.train.trackers import check_installed


def test_figures_and_pictures_go_to_every_tracker(project) -> None:
    project.fetch_and_encode()
    project.params["runtime"] |= {"trackers": ["tensorboard", "dvclive"], "tracker_project": "squares"}
    project.train()
    (folder,) = (project.folder / "data/trackers").iterdir()  # one folder per run

    events = EventAccumulator(str(folder / "squares"), size_guidance={"images": 0}).Reload()
    assert [event.step for event in events.Scalars("loss")] == [2, 4, 6]
    assert events.Scalars("learning_rate")[0].value == pytest.approx(0.25e-3)  # the mean of two warm-up steps
    assert [event.step for event in events.Scalars("validation/ema_heldout")] == [0, 4, 6]
    pictures = events.Images("validation")
    assert {picture.step for picture in pictures} == {0, 4, 6}
    assert {(picture.width, picture.height) for picture in pictures} == {(64, 32)}  # two prompts side by side

    live = json.loads((folder / "dvclive/metrics.json").read_text())
    assert live["loss"] == pytest.approx(events.Scalars("loss")[-1].value, rel=1e-5)
    assert len(list((folder / "dvclive/plots/images").glob("validation-*-step-00000006.png"))) == 2


def test_trackers_do_not_change_training(project) -> None:
    project.fetch_and_encode()
    project.train()
    plain = (project.folder / "data/reports/train/history.csv").read_bytes()
    assert not (project.folder / "data/trackers").exists()
    (project.folder / "data/work").rename(project.folder / "before")
    project.params["runtime"] |= {"trackers": ["tensorboard"]}
    project.train()
    assert (project.folder / "data/reports/train/history.csv").read_bytes() == plain


def test_a_tracker_that_is_not_installed_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`runtime.trackers` has nonesuch, .*pip install 't2i\[trackers\]'"):
        check_installed(["nonesuch"])
