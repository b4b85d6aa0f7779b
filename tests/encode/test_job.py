import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from stages import encode
from t2i.core.locks import locked
from t2i.data.index import Index
from t2i.data.manifest import read_manifest, write_manifest
from t2i.data.reader import Reader
from t2i.data.shards import write_shard
from tests.projects import Project, files
from tests.victims import Victim, command, file_changes, victim

pytestmark = pytest.mark.slow

KILL = signal.SIGKILL
WHATS = {"images": "latents", "captions": "embeds"}


@pytest.fixture
def fetched(project: Project) -> Project:
    """A project with five image shards and five shards of captions."""
    project.params["fetch"]["records_per_shard"] = project.params["encode"]["captions"]["records_per_shard"] = 5
    project.params["runtime"] |= {"decode_processes": 1, "verify_shards": True}
    project.write()
    project.fetch_and_encode()
    return project


def start_over(project: Project, what: str) -> dict[str, bytes]:
    """Removes a set and its records, and returns what the set was."""
    wanted = files(project.folder / "data" / WHATS[what])
    shutil.rmtree(project.folder / "data" / WHATS[what])
    for work in project.folder.glob(f"data/work/encode-{what}-*"):
        shutil.rmtree(work)
    return wanted


def store(what: str) -> Path:
    (work,) = Path("data/work").glob(f"encode-{what}-*")
    return work


@pytest.mark.parametrize("what", WHATS)
@pytest.mark.parametrize("parts", [2, 7])  # more parts than shards
def test_parts_make_the_bytes_of_one_process(fetched, what, parts) -> None:
    wanted = start_over(fetched, what)
    for number in reversed(range(1, parts + 1)):
        getattr(encode, what)(part=f"{number}/{parts}")
        assert not (fetched.folder / "data" / WHATS[what]).exists()
    getattr(encode, what)(finish=True)
    assert files(fetched.folder / "data" / WHATS[what]) == wanted
    assert not [path for path in store(what).iterdir() if path.is_dir() and path.name.startswith("part-")]


@pytest.mark.parametrize("what", WHATS)
def test_several_processes_make_the_bytes_of_one(fetched, what, monkeypatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    wanted = start_over(fetched, what)
    fetched.params["runtime"]["processes"] = 2
    fetched.write()
    getattr(encode, what)()
    assert files(fetched.folder / "data" / WHATS[what]) == wanted


def test_a_set_is_not_finished_before_its_parts(fetched) -> None:
    start_over(fetched, "images")
    encode.images(part="1/2")
    with pytest.raises(ValueError, match=r"train-0000\d.tar: 5 of 5 records are not encoded yet: run the parts"):
        encode.images(finish=True)
    assert not Path("data/latents").exists()


def test_a_run_without_parts_goes_on_where_parts_have_stopped(fetched, monkeypatch) -> None:
    wanted = start_over(fetched, "images")
    encode.images(part="1/2")
    done = {path.name for path in store("images").glob("*.json")}
    encode.images()
    assert files(Path("data/latents")) == wanted
    assert done < {path.name for path in store("images").glob("*.json")}


def test_four_parts_at_once_killed_again_and_again_make_the_same_bytes(fetched) -> None:
    wanted, chance = start_over(fetched, "images"), random.Random(0)
    watch = file_changes(fetched.folder / "data")
    parts = [command("encode", "images", "--part", f"{number}/4") for number in range(1, 5)]
    killed = 0
    for _ in range(int(os.environ.get("T2I_KILLS", "2"))):
        running = [Victim(part, watch, {chance.randint(1, 60): KILL}) for part in parts]
        killed += sum(one.wait().code == 128 + KILL for one in running)
    assert killed
    assert all(victim(part).code == 0 for part in parts)
    assert victim(command("encode", "images", "--finish")).code == 0
    assert files(Path("data/latents")) == wanted


def test_a_command_says_what_it_encoded_and_what_was_there(fetched, capfd) -> None:
    start_over(fetched, "captions")
    encode.captions(part="1/2")
    encode.captions()
    assert "encoded 9 of 24 records; the others were in data/work/encode-captions-" in capfd.readouterr().err
    encode.captions()
    assert "encoded 0 of 24 records; all of them were in data/work/encode-captions-" in capfd.readouterr().err
    start_over(fetched, "captions")
    encode.captions()
    assert "encoded 24 of 24 records\n" in capfd.readouterr().err


def test_a_changed_raw_shard_is_made_again_alone(fetched) -> None:
    before = {path.stem: (path.read_bytes(), path.stat().st_ino) for path in store("images").glob("*.tar")}
    raw, reader = Path("data/raw/images"), Reader()
    contents = {member.key: bytes(reader.content(member)) for member in Index(raw, "train", ["png"])[:5]}
    Image.new("RGB", (40, 32), (250, 3, 99)).save("new.png")
    contents[min(contents)] = Path("new.png").read_bytes()
    rows = write_shard(raw / "train-00000.tar", {key: ("png", content) for key, content in contents.items()})
    same = [row for row in read_manifest(raw).files if not row.name.startswith("train-00000")]
    write_manifest(raw, [*rows, *same], {})
    encode.images(part="1/2")
    encode.images(part="2/2")
    after = {path.stem: (path.read_bytes(), path.stat().st_ino) for path in store("images").glob("*.tar")}
    assert len(after.keys() - before.keys()) == 1
    assert before.items() <= after.items()


@pytest.mark.parametrize("shared", [True, False])
def test_whole_sets_and_parts_keep_out_of_each_others_way(fetched, shared) -> None:
    with locked(store("images"), shared=shared):
        with pytest.raises(ValueError, match=f"already in use by process {os.getpid()}; "):
            encode.images()
        if shared:
            encode.images(part="1/4")
        else:
            with pytest.raises(ValueError, match="already in use"):
                encode.images(part="1/4")


def test_a_shard_that_another_process_encodes_is_refused(fetched) -> None:
    lock = store("images") / "locks" / "train-00001.tar"
    lock.mkdir(parents=True)
    with locked(lock), pytest.raises(ValueError, match=r"train-00001\.tar: already in use by process \d+"):
        encode.images(part="1/1")
    encode.images(part="1/1")


@pytest.mark.parametrize("refused", [{"finish": True}, {}])
def test_a_part_is_neither_a_stage_nor_finished(fetched, monkeypatch, refused: dict[str, bool]) -> None:
    if not refused:
        monkeypatch.setenv("DVC_STAGE", "encode-images")
    run: Callable[..., None] = encode.images
    with pytest.raises(ValueError, match="--part is for a process that encodes a part only"):
        run(part="1/2", **refused)
