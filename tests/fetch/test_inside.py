from pathlib import Path

import pytest

from t2i.fetch.inside import Inside


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder `local` below the working directory, with photos/Bridge.jpg and two files of one name."""
    monkeypatch.chdir(tmp_path)
    for name in ("photos/Bridge.jpg", "a/1.png", "b/1.png"):
        (tmp_path / "local" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "local" / name).write_bytes(name.encode())
    return Path("local")


def refused(local: Path, name: str, beside: Path | None = None) -> str:
    with pytest.raises(ValueError, match=r"^missing image: ") as error:
        Inside(local).read(name, beside)
    return str(error.value)


@pytest.mark.parametrize("name", ["Bridge.jpg", "photos/bridge.JPG", "elsewhere/Bridge.jpg", "/home/me/photos/Bridge.jpg"])
def test_a_file_of_that_name_elsewhere_is_named(local, name) -> None:
    assert refused(local, name).endswith("; did you mean photos/Bridge.jpg?")


def test_what_was_meant_starts_from_the_metadata_file(local) -> None:
    assert refused(local, "photos/Bridge.jpg", local / "photos").endswith("; did you mean Bridge.jpg?")
    assert refused(local, "Bridge.jpg", local / "a").endswith("; did you mean ../photos/Bridge.jpg?")


def test_of_several_files_the_one_in_the_same_folder_is_named(local) -> None:
    assert refused(local, "x/b/1.png").endswith("; did you mean b/1.png?")
    assert refused(local, "1.png").endswith("; did you mean a/1.png?")


def test_a_file_that_is_nowhere_gets_no_hint(local) -> None:
    assert refused(local, "photos/gone.jpg") == "missing image: no such file 'photos/gone.jpg' in local"


@pytest.mark.parametrize("name", [r"photos\Bridge.jpg", "photos\bridge.jpg", r"C:\Users\me\photos\Bridge.jpg"])
def test_separators_of_windows_are_explained(local, name) -> None:
    assert refused(local, name).endswith(r": write / instead of \; did you mean photos/Bridge.jpg?")


def test_an_experiment_lacks_what_nothing_tracks(local, monkeypatch) -> None:
    copy = local.absolute().parent / ".dvc/tmp/exps/one"
    copy.mkdir(parents=True)
    local.rename(copy / "local")
    monkeypatch.chdir(copy)
    said = "if the checkout has it, neither git nor DVC tracks it: `dvc add local/more` there"
    assert refused(local, "more/1.jpg").endswith(said)
    assert "nor DVC" not in refused(local.absolute(), "more/1.jpg")  # an absolute path is no part of the copy
