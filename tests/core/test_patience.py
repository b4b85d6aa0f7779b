import pytest

from t2i.core.patience import patience_seconds


@pytest.mark.parametrize(("text", "seconds"), [(None, 600.0), ("", 600.0), ("2.5", 2.5), ("3600", 3600.0)])
def test_the_patience_is_that_of_the_environment(monkeypatch, text, seconds) -> None:
    monkeypatch.delenv("T2I_PATIENCE_SECONDS", raising=False)
    if text is not None:
        monkeypatch.setenv("T2I_PATIENCE_SECONDS", text)
    assert patience_seconds() == seconds


@pytest.mark.parametrize("text", ["0", "-1", "ten", "nan", "inf"])
def test_a_patience_that_is_no_time_is_refused(monkeypatch, text) -> None:
    monkeypatch.setenv("T2I_PATIENCE_SECONDS", text)
    with pytest.raises(ValueError, match=rf"T2I_PATIENCE_SECONDS is '{text}'"):
        patience_seconds()
