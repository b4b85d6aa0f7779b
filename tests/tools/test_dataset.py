import subprocess
from pathlib import Path

import pytest

from t2i.fetch.dataset import Fetch
from t2i.tools.dataset import dataset, untracked
from t2i.tools.surroundings import Finding
from tests import tiny
from tests.projects import Project


def git(*words: str) -> None:
    subprocess.run(["git", *words], check=True, capture_output=True)


@pytest.fixture
def own(project: Project) -> Project:
    """A git repository with images in data/local/photos, which DVC tracks, and their captions, which git tracks."""
    git("init", "-q")
    local = Path("data/local")
    images = tiny.make_images(local / "photos", 2)
    (local / "metadata.jsonl").write_text((images / "metadata.jsonl").read_text().replace('"00', '"photos/00'))
    (images / "metadata.jsonl").unlink()
    (local / "photos.dvc").write_text("outs:\n- path: photos\n")
    git("add", "data/local/metadata.jsonl", "data/local/photos.dvc")
    project.params["fetch"]["local"] = "data/local"
    return project


def findings(project: Project, **source: object) -> list[Finding]:
    if source:
        project.params["fetch"]["source"] = source
    return list(dataset(Fetch(**project.params["fetch"])))


def test_images_that_git_and_dvc_track_are_ok(own) -> None:
    Path("data/local/README.md").touch()
    Path("data/local/.DS_Store").touch()
    assert [finding.state for finding in findings(own)] == ["ok"]


def test_a_folder_that_nothing_tracks_gets_dvc_add(own) -> None:
    for name in ("more", "others"):
        tiny.make_images(Path("data/local") / name, 1)
    _, note = findings(own)
    assert note.state == "note"
    assert "neither git nor DVC tracks data/local/more, data/local/others: " in note.message
    assert note.message.endswith("do not have them; `dvc add data/local/more`")


def test_many_images_that_nothing_tracks_get_a_folder(own) -> None:
    for n in range(5):
        Path(f"data/local/{n}.png").touch()
    _, note = findings(own)
    assert "data/local/2.png and 2 more" in note.message
    assert note.message.endswith("put them into a folder, and `dvc add` the folder")


def test_captions_that_git_does_not_track_get_git_add(own) -> None:
    git("rm", "-q", "--cached", "data/local/metadata.jsonl")
    _, note = findings(own)
    assert note.message.endswith(
        "tracks data/local/metadata.jsonl: queued experiments and other clones do not have it; "
        "`git add data/local/metadata.jsonl`"
    )
    git("rm", "-q", "--cached", "data/local/photos.dvc")
    _, note = findings(own)
    assert note.message.endswith("; `git add data/local/metadata.jsonl data/local/photos.dvc`")


def test_untracked_files_beside_tracked_ones_are_found(own) -> None:
    for name in ("set/one", "set/two", "mixed/in git", "mixed/not"):
        path = Path("data/local") / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    Path("data/local/set/one.dvc").touch()
    git("add", "data/local/mixed/in git", "data/local/set/one.dvc")
    assert [path.as_posix() for path in untracked(Path("data/local"))] == ["data/local/mixed/not", "data/local/set/two"]


def test_a_folder_elsewhere_or_whole_in_dvc_is_tracked(own) -> None:
    tiny.make_images(Path("data/local/more"), 1)
    assert list(untracked(Path("data/local").absolute())) == []
    Path("data/local.dvc").touch()
    assert list(untracked(Path("data/local"))) == []


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ({"name": "folder", "captions": {"name": "metadata", "column": "text"}}, "data/local/metadata.jsonl: missing"),
        (
            {"name": "folder", "captions": {"name": "sidecar", "extensions": ["txt"]}},
            "data/local: no image has a caption file beside it",
        ),
        (
            {"name": "folder", "captions": {"name": "kohya", "extensions": ["txt"]}},
            "data/local: no image in a folder such as `10_sks dog`",
        ),
        ({"name": "parquet", "files": "*.pq", "image_column": "a", "caption_column": "b"}, "'*.pq' matches no file"),
        (
            {"name": "webdataset", "files": "*.tar", "image_extensions": ["jpg"], "caption": {"name": "txt"}},
            "'*.tar' matches no file in data/local",
        ),
    ],
    ids=["folder", "sidecar", "kohya", "parquet", "webdataset"],
)
def test_a_source_with_nothing_to_read_is_wrong(own, source, said) -> None:
    Path("data/local/metadata.jsonl").unlink()
    found, *_ = findings(own, **source)
    assert found.state == "wrong"
    assert said in found.message


def test_a_folder_of_kohya_that_nothing_tracks_gets_dvc_add(own) -> None:
    Path("data/local/10_sks dog").mkdir()
    Path("data/local/10_sks dog/a.png").touch()
    ok, note = findings(own, name="folder", captions={"name": "kohya", "extensions": ["txt"]})
    assert ok.state == "ok"
    assert note.message.endswith("do not have it; `dvc add 'data/local/10_sks dog'`")


def test_a_source_that_does_not_read_the_folder_is_ok(own) -> None:
    tiny.make_images(Path("data/local/more"), 1)
    (found,) = findings(
        own,
        name="openmoji",
        version="17.0.0",
        style="plain",
        size_px=48,
        skin_tones=[],
        flags=True,
        kept="seen",
    )
    assert found.state == "ok"
