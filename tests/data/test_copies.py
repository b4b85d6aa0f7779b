import multiprocessing
import threading
import time
from pathlib import Path

import pytest

from t2i.data.copies import remove, unfinished, use
from t2i.data.digests import sha256_of
from t2i.data.storage import File


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    path = tmp_path / "cache" / "abc" / "train-00000.tar"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"content")
    return path


def row(path: Path) -> File:
    return File(name=path.name, count=1, bytes=path.stat().st_size, sha256=sha256_of(path))


def test_a_copy_in_use_is_not_removed(copy) -> None:
    used = use(copy, row(copy), verify=True)
    assert used.content.tobytes() == b"content"
    assert not remove(copy)
    used.file.close()
    assert remove(copy)
    assert not copy.parent.exists()
    assert used.content.tobytes() == b"content"


def test_several_processes_use_one_copy(copy) -> None:
    first, second = use(copy, row(copy), verify=False), use(copy, row(copy), verify=False)
    first.file.close()
    assert not remove(copy)
    second.file.close()
    assert remove(copy)


def test_an_absent_copy_is_no_copy(copy) -> None:
    file = row(copy)
    copy.unlink()
    assert use(copy, file, verify=True) is None
    assert remove(copy)


@pytest.mark.parametrize(("content", "verify"), [(b"conten", False), (b"CONTENT", True)])
def test_a_damaged_copy_is_removed(copy, content, verify, capsys) -> None:
    file = row(copy)
    copy.write_bytes(content)
    assert use(copy, file, verify=verify) is None
    assert not copy.exists()
    assert "damaged; it is fetched again" in capsys.readouterr().err


def write(path: Path, began, ends) -> None:
    with unfinished(path) as partial:
        began.set()
        ends.wait(20)
        partial.write_bytes(b"from the other process")
        partial.replace(path)


def test_one_process_writes_and_the_others_wait(tmp_path) -> None:
    path, spawn = tmp_path / "cache" / "abc" / "train-00000.tar", multiprocessing.get_context("fork")
    began, ends = spawn.Event(), spawn.Event()
    process = spawn.Process(target=write, args=(path, began, ends))
    process.start()
    assert began.wait(20)
    threading.Timer(0.3, ends.set).start()
    start = time.monotonic()
    with unfinished(path) as partial:
        assert path.read_bytes() == b"from the other process"
        assert time.monotonic() - start > 0.2
    assert not partial.exists()
    process.join()


def test_what_a_killed_process_left_is_written_anew(tmp_path) -> None:
    path = tmp_path / "cache" / "abc" / "train-00000.tar"
    left = path.with_name(path.name + ".partial")
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    with unfinished(path) as partial:
        assert partial == left
        partial.write_bytes(b"whole")
        partial.replace(path)
    assert path.read_bytes() == b"whole"
    left.write_bytes(b"half")
    assert remove(left)
