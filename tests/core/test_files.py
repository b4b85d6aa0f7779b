import subprocess
import sys
from pathlib import Path

import pytest

from t2i.core.files import fresh, in_bytes, publish, work_folder, write_json
from t2i.core.locks import locked
from t2i.data.digests import digest_of, fingerprint


def _fail(folder: Path) -> None:
    (folder / "a").write_text("second")
    raise OSError("disk full")


def test_fresh_keeps_the_old_output_on_error(tmp_path) -> None:
    out = tmp_path / "out"
    with fresh(out) as folder:
        (folder / "a").write_text("first")
    with pytest.raises(OSError, match="disk full"), fresh(out) as folder:
        _fail(folder)
    assert (out / "a").read_text() == "first"
    with fresh(out) as folder:
        (folder / "b").write_text("third")
    assert [path.name for path in out.iterdir()] == ["b"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def on_another_disk(monkeypatch: pytest.MonkeyPatch, source: Path) -> None:
    rename = Path.rename

    def refused(self: Path, target: Path) -> Path:
        if self == source:
            raise OSError(18, "another disk")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refused)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    source, out = tmp_path / "source", tmp_path / "out"
    for folder, content in ((source, "new"), (out, "old")):
        folder.mkdir()
        (folder / "a").write_text(content)
    return source, out


def test_publish_works_across_disks(pair, tmp_path, monkeypatch) -> None:
    source, out = pair
    on_another_disk(monkeypatch, source)
    publish(source, out)
    assert (out / "a").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_publish_to_a_full_disk_keeps_the_old_output(pair, tmp_path, monkeypatch) -> None:
    source, out = pair
    on_another_disk(monkeypatch, source)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("shutil.copytree", full)
        for _ in range(2):
            with pytest.raises(ValueError, match=r"out: No space left on device: .*3 bytes"):
                publish(source, out)
            assert (out / "a").read_text() == "old"
            assert {path.name for path in tmp_path.iterdir()} == {"out", "source"}
    publish(source, out)
    assert (out / "a").read_text() == "new"


def test_fresh_replaces_the_target_of_a_symlink(pair, tmp_path) -> None:
    _, out = pair
    link = tmp_path / "link"
    link.symlink_to(out)
    for content in ("second", "third"):
        with fresh(link) as folder:
            (folder / "a").write_text(content)
        assert link.is_symlink()
        assert (out / "a").read_text() == content
    assert {path.name for path in tmp_path.iterdir()} == {"out", "source", "link"}


@pytest.mark.parametrize(
    ("size", "said"),
    [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.5 kB"), (999_999, "1 MB"), (10**9, "1 GB"), (10**16, "10000 TB")],
)
def test_bytes_have_a_unit(size, said) -> None:
    assert in_bytes(size) == said


@pytest.mark.slow
def test_a_lock_names_its_holder_and_ends_with_it(tmp_path) -> None:
    code = f"from t2i.core.locks import Path, locked\nwith locked(Path({str(tmp_path)!r})): print('held', flush=True); input()"
    root = Path(__file__).parents[2]
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(ValueError, match=f"{tmp_path}: .*process {holder.pid}.*`kill {holder.pid}`"), locked(tmp_path):
        pass
    holder.kill()
    holder.wait()
    with locked(tmp_path):
        pass


def test_digests_depend_only_on_content(tmp_path) -> None:
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})
    (tmp_path / "x").write_text("1")
    first = digest_of(tmp_path)
    (tmp_path / "x").touch()
    assert digest_of(tmp_path) == first
    (tmp_path / "x").write_text("2")
    assert digest_of(tmp_path) != first


def test_work_folder_follows_dvc_root_and_t2i_work_dir(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    assert work_folder("train", "abc") == tmp_path / "data/work/train-abc"
    monkeypatch.setenv("T2I_WORK_DIR", str(tmp_path / "other"))
    assert work_folder("train", "abc") == tmp_path / "other/train-abc"


def test_json_has_sorted_keys(tmp_path) -> None:
    write_json(tmp_path / "new" / "x.json", {"b": 1, "a": "é"})
    assert (tmp_path / "new" / "x.json").read_text(encoding="utf-8") == '{\n  "a": "é",\n  "b": 1\n}\n'
