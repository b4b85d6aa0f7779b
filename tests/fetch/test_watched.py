"""What DVC does not see is refused; DVC itself is asked what it sees."""

import os
import shutil
from pathlib import Path

import pytest
from dvc.repo import Repo

from t2i.fetch.metadata import Metadata
from t2i.fetch.sources.folder import Source, open_source
from t2i.fetch.watched import UNSEEN, check_watched
from tests import tiny
from tests.projects import ROOT, base_section


def test_a_linked_folder_is_refused_by_name(tmp_path) -> None:
    away = tiny.make_images(tmp_path / "away", 1)
    local = tiny.make_images(tmp_path / "local", 1)
    (local / "photos").symlink_to(away)
    with pytest.raises(ValueError, match=rf"{local}/photos: a link to the folder {away}.*`fetch.local` may"):
        check_watched(local, "fetch.local")


@pytest.mark.parametrize("inside", [False, True])
def test_deep_links_and_dvc_projects_are_refused(tmp_path, inside) -> None:
    (tmp_path / "local/a/b").mkdir(parents=True)
    if inside:
        (tmp_path / "local/a/b/.dvc").mkdir()
    else:
        (tmp_path / "local/a/b/c").symlink_to(tmp_path / "local/a", target_is_directory=True)
    with pytest.raises(ValueError, match=r"local/a/b"):
        check_watched(tmp_path / "local", "fetch.local")


def test_a_broken_link_is_refused(tmp_path) -> None:
    (tmp_path / "0.png").symlink_to("gone.png")
    with pytest.raises(ValueError, match=r"0.png: a broken link to gone.png"):
        check_watched(tmp_path, "fetch.local")


def test_emacs_lock_files_pass(tmp_path) -> None:
    (tmp_path / ".#metadata.jsonl").symlink_to("me@host.1234:1700000000")
    check_watched(tmp_path, "fetch.local")


def test_files_that_dvcignore_excludes_are_refused_if_they_can_be_read(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".dvc").mkdir()
    shutil.copyfile(ROOT / ".dvcignore", tmp_path / ".dvcignore")
    local = tiny.make_images(tmp_path / "data/local", 2)
    for name in ("README.md", ".DS_Store", "Thumbs.db", "0000.png~"):
        (local / name).write_text("1")
    (tmp_path / ".dvcignore").open("a").write("Thumbs.db\n*~\n.DS_Store\n")
    check_watched(local, "fetch.local")
    (local / ".#0.png").write_text("1")
    with pytest.raises(ValueError, match=r".#0.png: a pattern in .dvcignore .*dvc check-ignore"):
        check_watched(local, "fetch.local")
    (local / ".#0.png").unlink()
    (local / ".dvcignore").write_text("*1.png\n")
    with pytest.raises(ValueError, match=r"0001.png: a pattern in .dvcignore"):
        check_watched(local, "fetch.local")


@pytest.mark.parametrize("name", UNSEEN)
def test_nothing_is_read_below_folders_that_dvc_ignores(tmp_path, name) -> None:
    local = tiny.make_images(tmp_path / "local", 2)
    tiny.make_images(local / name, 3)
    (local / name / "linked").symlink_to(tmp_path)
    check_watched(local, "fetch.local")
    dataset = open_source(Source(name="folder", captions=Metadata(name="metadata", column="text")), local)
    assert len(list(dataset.records)) == 2
    assert dataset.unnamed == []
    (local / "metadata.jsonl").write_text(f'{{"file_name": "{name}/0000.png", "text": "x"}}')
    (record,) = open_source(Source(name="folder", captions=Metadata(name="metadata", column="text")), local).records
    assert "outside" in (record.problem or "")


def test_a_linked_root_and_linked_files_are_accepted(tmp_path) -> None:
    images = tiny.make_images(tmp_path / "images", 2)
    (images / "0002.png").symlink_to("0000.png")
    (tmp_path / "local").symlink_to(images)
    check_watched(tmp_path / "local", "fetch.local")


@pytest.mark.slow
def test_dvc_sees_what_is_accepted_and_not_what_is_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    for name in ("linked", "away"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.png").write_text("1")
    for name in ("photo~", "a b#%.png"):
        (tmp_path / "images" / name).write_text("1")
    (tmp_path / "images/__pycache__").mkdir()
    (tmp_path / "images/__pycache__/0.png").write_text("1")
    (tmp_path / "images/.#lock.png").symlink_to("me@host.1234:1700000000")
    (tmp_path / "images/single.png").symlink_to(tmp_path / "away/0.png")
    (tmp_path / "images/folder").symlink_to(tmp_path / "away", target_is_directory=True)
    (tmp_path / "root").symlink_to(tmp_path / "linked")
    shutil.copyfile(ROOT / ".dvcignore", ".dvcignore")
    (tmp_path / "dvc.yaml").write_text("stages:\n  fetch:\n    cmd: echo done\n    deps: [images, root]\n")

    def seen(path: str) -> bool:
        with Repo(".") as repo:
            repo.reproduce("fetch")
        (tmp_path / path).write_text("22")
        os.utime(tmp_path / path, (1, 1))
        with Repo(".") as repo:
            return bool(repo.status())

    Repo.init(".", no_scm=True).close()
    watched = ("images/photo~", "images/a b#%.png", "images/__pycache__/0.png", "images/single.png")
    assert all(map(seen, (*watched, "root/0.png")))
    (tmp_path / "images/single.png").unlink()
    assert not seen("images/folder/0.png")
    (tmp_path / "images/.#lock.png").unlink()
    assert not seen("images/.#lock.png")
    with pytest.raises(ValueError, match=r"images/folder"):
        check_watched(Path("images"), "fetch.local")


def test_a_base_with_a_linked_part_is_refused(tiny_base, tmp_path) -> None:
    from t2i.fetch.base import fetch_base

    base = shutil.copytree(tiny_base, tmp_path / "base")
    (base / "unet").rename(tmp_path / "unet")
    (base / "unet").symlink_to(tmp_path / "unet")
    section = base_section(local=base)
    with pytest.raises(ValueError, match=rf"base/unet: a link to the folder {tmp_path}/unet"):
        fetch_base(section, tmp_path / "out", tmp_path / "clip")
