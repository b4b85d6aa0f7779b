from t2i.train.pace import Pace


def test_pauses_are_not_counted(monkeypatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    pace = Pace(step=10)
    clock[0] += 2.0
    with pace.paused():
        clock[0] += 50.0
    clock[0] += 2.0
    assert pace.steps_per_second(18) == 2.0
    clock[0] += 3.0
    assert pace.steps_per_second(30) == 4.0
