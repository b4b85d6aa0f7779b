"""Other interruptions: Ctrl-C, SIGTERM, the end of DVC, a killed process, a second run, a NaN loss; also unusual folders."""

import contextlib
import io
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from dvc.repo import Repo
from safetensors.torch import load_file

from t2i.train import checkpoint
from tests import tiny
from tests.projects import ROOT, Project, files, outputs, trained, untrained
from tests.victims import (
    TRAINING,
    VALIDATING,
    Victim,
    calls_of,
    command,
    file_changes,
    launch,
    leftovers,
    may_share_locks,
    of_rank,
    run,
    spread,
    t2i,
    together,
    victim,
)

pytestmark = pytest.mark.slow

TOGETHER = pytest.mark.skipif(not may_share_locks(), reason="processes cannot share a lock here: is /dev/shm missing?")
SIGNALS = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])


def training_and_saving(event: Callable[[], None]) -> None:
    """Watches for the training calls of the UNet, and for the start of a checkpoint."""
    TRAINING(event)
    sys.addaudithook(lambda name, what: event() if name == "os.mkdir" and "/step-" in os.fspath(what[0]) else None)


def newest(project: Project) -> int:
    (work,) = project.folder.glob("data/work/train-*")
    found = checkpoint.load_newest(work)
    return found.step if found else 0


@SIGNALS
def test_training_stops_at_the_next_forward_pass(ready, number) -> None:
    run("train")
    wanted = trained(ready)
    untrained(ready)
    for watch, event, step in [
        (VALIDATING, 1, 0),  # before the first step
        (TRAINING, 2 * 3 + 1, 3),  # between two micro-batches
        (VALIDATING, 6, 4),  # while the UNet has the EMA weights
        (VALIDATING, 19, 8),  # while pictures are sampled
        (VALIDATING, 11, 12),  # after the last step
    ]:
        ended = victim(command("train"), watch, {event: number})
        assert ended.code == 128 + number
        assert f"stopped after step {step} of 12" in ended.said
        assert "same command" in ended.said
        assert ended.events == event
        assert newest(ready) == step
        assert not (ready.folder / "data/model").exists()
    run("train")
    assert trained(ready) == wanted
    assert not leftovers(ready.folder / "data")


@SIGNALS
def test_a_second_signal_ends_training_at_once(ready, number) -> None:
    ended = victim(command("train"), training_and_saving, {3: number, 4: signal.SIGINT})
    assert ended.code == 130
    assert ended.events == 4
    assert newest(ready) == 0
    assert "stopping after a checkpoint" in ended.said
    assert "Traceback" not in ended.said


@SIGNALS
def test_the_next_run_exports_after_a_signal_during_the_export(ready, number) -> None:
    run("train")
    wanted = trained(ready)
    for name in ("model", "validation", "reports/train"):
        shutil.rmtree(ready.folder / "data" / name)
    ended = victim(command("train"), file_changes(ready.folder / "data/model"), {5: number})
    assert ended.code == 128 + number
    assert not (ready.folder / "data/model").exists()
    assert "resuming after step 12" in run("train")
    assert trained(ready) == wanted
    assert not leftovers(ready.folder / "data")


def forget_records(data: Path, what: str) -> None:
    """Removes the finished records of an encoding, so that the next one encodes all of them."""
    (store,) = data.glob(f"work/encode-{what}-*")
    shutil.rmtree(store)


@SIGNALS
@pytest.mark.parametrize(("what", "model"), [("images", "Encoder"), ("captions", "CLIPTextModel")])
def test_encode_resumes_after_a_signal(project, what, model, number) -> None:
    project.fetch_and_encode()
    wanted = outputs(project.folder / "data")
    for out in ("latents",) if what == "images" else ("embeds", "validation-prompts"):
        shutil.rmtree(project.folder / "data" / out)
    forget_records(project.folder / "data", what)
    ended = victim(command("encode", what), calls_of(model), {4: number})
    assert ended.code == 128 + number
    assert "Traceback" not in ended.said
    run("encode", what)
    assert outputs(project.folder / "data") == wanted


@SIGNALS
@pytest.mark.parametrize("imported", ["pydantic", "torch"])
def test_a_signal_during_imports_sets_the_exit_code(project, imported, number) -> None:
    code = f"""
import os, runpy, sys
sys.addaudithook(lambda event, what: event == 'import' and what[0] == {imported!r} and os.kill(os.getpid(), {int(number)}))
runpy.run_module('stages.train', run_name='__main__', alter_sys=True)
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    code_of_exit = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True).returncode
    assert (code_of_exit if code_of_exit >= 0 else 128 - code_of_exit) == 128 + number


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A repository where DVC has run all stages before `train`."""
    for name in ("stages", "t2i"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(ROOT / "dvc.yaml", tmp_path / "dvc.yaml")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.delenv("PYTHONPATH", raising=False)
    tiny.make_base(tmp_path / "base/tiny")
    tiny.make_images(tmp_path / "data/local", 16)
    project = Project(tmp_path, Path("base/tiny"))
    project.params["fetch"]["local"] = "data/local"
    project.params["train"]["steps"] = 200
    project.params["runtime"]["log_every_steps"] = 1
    project.params["runtime"]["validation"]["every_steps"] = 100
    project.write()
    project.fetch_and_encode()
    subprocess.run(["git", "init", "-q"], check=True)
    with Repo.init(str(tmp_path)) as repo:
        for stage in ("fetch-base", "fetch-dataset", "encode-images", "encode-captions"):
            repo.commit(stage, force=True)
    return project


class Repro:
    """`dvc repro -s train` in its own process group, as a terminal starts it."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "dvc", "repro", "-s", "train"]
        self._process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.said = ""

    def at_step(self, step: int) -> "Repro":
        """Waits until the output reports a step."""
        while not any(int(at) >= step for at in re.findall(r"(\d+)/200 \[", self.said)) and self._read():
            pass
        return self

    def interrupt(self) -> "Repro":
        """Sends SIGINT to the group, as Ctrl-C does."""
        os.killpg(self._process.pid, signal.SIGINT)
        return self

    def kill(self) -> "Repro":
        """Kills only the DVC process."""
        self._process.kill()
        return self

    def end(self) -> int:
        """Waits for the end of DVC and of training, which share stderr; returns the exit code of DVC."""
        while self._read():
            pass
        return self._process.wait()

    def _read(self) -> bool:
        assert isinstance(self._process.stdout, io.BufferedReader)
        chunk = self._process.stdout.read1(4096)
        self.said += chunk.decode(errors="replace")
        return bool(chunk)


def stopped_after(said: str) -> int:
    found = re.search(r"stopped after step (\d+) of 200", said)
    assert found, said[-600:]
    return int(found[1])


def test_dvc_resumes_training_after_an_interrupt_or_a_kill(checkout) -> None:
    def stale() -> bool:
        with Repo(".") as repo:
            return "train" in repo.status(targets=["train"])

    assert stale()
    interrupted = Repro().at_step(3).interrupt()
    assert interrupted.end() != 0
    step = stopped_after(interrupted.said)
    assert newest(checkout) == step
    assert not Path("data/model").exists()
    assert stale()

    killed = Repro().at_step(step + 3).kill()
    before = time.monotonic()
    assert killed.end() == -signal.SIGKILL
    assert time.monotonic() - before < 30
    assert f"resuming after step {step} " in killed.said
    assert newest(checkout) == stopped_after(killed.said) > step
    assert stale()

    last = Repro()
    assert last.end() == 0, last.said
    assert f"resuming after step {stopped_after(killed.said)} " in last.said
    assert not stale()
    rows = Path("data/reports/train/history.csv").read_text().splitlines()[1:]
    assert [int(row.split(",")[0]) for row in rows] == list(range(1, 201))


@TOGETHER
def test_killing_one_of_two_processes_ends_both_and_resumes(ready) -> None:
    def both() -> None:
        together(2, lambda: t2i("train"))

    ready.params["train"] |= {"batch_size": 8, "steps": 6}
    ready.params["runtime"] |= {"processes": 2, "micro_batch_size": 3, "checkpoint_every_seconds": 1e-9}
    ready.write()
    alone = victim(both)
    assert alone.code == 0, alone.said
    wanted = trained(ready)
    untrained(ready)
    for rank, resumed in ((1, 0), (0, 2)):
        before = time.monotonic()
        ended = victim(both, of_rank(rank, TRAINING), {2 * 2 + 1: signal.SIGKILL})  # between two micro-batches
        assert ended.code == 1
        assert time.monotonic() - before < 60
        assert ("resuming" in ended.said) == bool(resumed)
        assert newest(ready) == resumed + 2
        assert not (ready.folder / "data/model").exists()
    ended = victim(both)
    assert ended.code == 0, ended.said
    assert "resuming after step 4 " in ended.said
    assert trained(ready) == wanted


@TOGETHER
def test_one_process_resumes_a_run_of_two(ready) -> None:
    def losses() -> list[float]:
        rows = (ready.folder / "data/reports/train/history.csv").read_text().splitlines()[1:]
        return [float(row.split(",")[1]) for row in rows]

    ready.params["train"] |= {"batch_size": 8, "steps": 6}
    ready.params["runtime"] |= {"processes": 2, "micro_batch_size": 3, "checkpoint_every_seconds": 1e-9, "log_every_steps": 1}
    ready.write()

    def both() -> None:
        together(2, lambda: t2i("train"))

    assert victim(both).code == 0
    unbroken = losses()
    untrained(ready)
    assert victim(both, of_rank(0, TRAINING), {2 * 3 + 1: signal.SIGKILL}).code == 1
    ready.params["runtime"]["processes"] = 1
    ready.write()
    ended = victim(command("train"))
    assert ended.code == 0, ended.said
    assert "resuming after step 3 " in ended.said
    assert losses() == pytest.approx(unbroken, rel=2e-6)


def test_a_killed_process_ends_the_others_and_the_launcher(tmp_path) -> None:
    code = """
import os, pathlib, signal, time
if os.environ['RANK'] == '1':
    while not pathlib.Path('waits').exists():
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGKILL)
pathlib.Path('waits').write_text(str(os.getpid()))
time.sleep(60)
"""
    folder = tmp_path / "a b ü 猫"
    folder.mkdir()
    before = time.monotonic()
    assert launch(code, folder).wait(timeout=60) == 1
    assert time.monotonic() - before < 50
    with pytest.raises(ProcessLookupError):
        os.kill(int((folder / "waits").read_text()), 0)


def test_a_second_encode_names_the_process_with_the_lock(project) -> None:
    project.fetch_and_encode()
    wanted = outputs(project.folder / "data")
    forget_records(project.folder / "data", "images")
    first = Victim(command("encode", "images"), calls_of("Encoder"), {3: signal.SIGSTOP})
    try:
        assert first.stopped()
        second = victim(command("encode", "images"))
        assert second.code == 1
        assert f"process {first.pid}" in second.said
    finally:
        os.kill(first.pid, signal.SIGCONT)
        ended = first.wait()
    assert ended.code == 0
    assert outputs(project.folder / "data") == wanted


@pytest.mark.parametrize("what", ["dataset", "base"])
def test_two_concurrent_fetches_leave_a_complete_result(project, what) -> None:
    data = project.folder / "data"
    alone = victim(command("fetch", what), file_changes(data))
    wanted = files(data)
    for event in spread(alone.events, 8):
        shutil.rmtree(data)
        first = Victim(command("fetch", what), file_changes(data), {event: signal.SIGSTOP})
        assert first.stopped()
        second = victim(command("fetch", what))
        os.kill(first.pid, signal.SIGCONT)
        assert 0 in (first.wait().code, second.code)
        assert files(data) == wanted, f"the first was stopped at event {event} of {alone.events}"


def test_a_non_finite_loss_keeps_the_last_good_checkpoint(project) -> None:
    project.params["train"]["learning_rate"] = 1e30
    project.params["runtime"] |= {"checkpoint_every_seconds": 1e-9, "log_every_steps": 20}
    project.params["runtime"]["validation"]["every_steps"] = 1
    project.write()
    project.fetch_and_encode()
    ended = victim(command("train"))
    assert ended.code == 1
    assert "Traceback" not in ended.said
    (error,) = (line for line in ended.said.splitlines() if line.startswith("error: "))
    assert re.match(r"error: .*step \d+.*: lower `train.learning_rate`", error)
    assert newest(project) > 0
    assert not {"model", "validation"} & {path.name for path in (project.folder / "data").iterdir()}
    for path in (project.folder / "data/work").rglob("*.safetensors"):
        for name, tensor in load_file(path).items():
            assert tensor.isfinite().all(), f"{path.parent.name}/{path.name}: {name}"


@pytest.fixture
def odd(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    """A project in a folder with spaces and non-ASCII characters in its name, which every user may enter."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "a b ü 猫"
        tiny.make_images(folder / "images", 24)
        shutil.copytree(tiny_base, folder / "base")
        monkeypatch.chdir(folder)
        os.chmod(temporary, 0o755)
        project = Project(folder, folder / "base")
        project.params["fetch"]["local"] = str(folder / "images")
        project.write()
        yield project


BEFORE_TRAINING = ("fetch base", "fetch dataset", "encode images", "encode captions")


def test_unusual_paths_and_a_strict_umask_work(odd) -> None:
    before = os.umask(0o077)
    try:
        evaluating = ("evaluate base", "evaluate model", "evaluate report", "sample ü --num 1 --out samples-猫")
        for words in (*BEFORE_TRAINING, "train", *evaluating):
            run(*words.split())
    finally:
        os.umask(before)
    left = [path for path in (odd.folder / "data").rglob("*") if not path.is_symlink()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in left} <= {0o700, 0o600}
    assert (odd.folder / "data/reports/report.html").is_file()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user; otherwise all tests cover this")
def test_a_user_other_than_root_can_run_all_stages(odd) -> None:
    nobody = 65534

    def become_nobody() -> None:
        for path in (odd.folder, *odd.folder.rglob("*")):
            os.chown(path, nobody, nobody)
        os.setgroups([])
        os.setgid(nobody)
        os.setuid(nobody)
        os.environ["HOME"] = str(odd.folder)
        for folder in (odd.folder, ROOT / "t2i"):
            os.listdir(folder)

    def from_fetch_to_train_as_nobody() -> None:
        for words in (*BEFORE_TRAINING, "train"):
            with contextlib.suppress(SystemExit):
                t2i(*words.split())  # imports modules that another user cannot read: Python in the home of root
        for path in Path("data").iterdir():
            if path.name not in ("raw", "latents"):
                shutil.rmtree(path)
        become_nobody()
        for words in BEFORE_TRAINING:
            if words not in (
                "fetch dataset",
                "encode images",
            ):  # start Python, which another user cannot do in the home of root
                run(*words.split())
        for path in (odd.folder / "data").rglob("*"):
            if path.is_file() and "work" not in path.parts:
                path.chmod(0o444)  # as DVC leaves files that it has linked to its cache
        run("train")

    if (tried := victim(become_nobody)).code:
        pytest.skip(f"root cannot become another user here: {tried.said.splitlines()[-1]}")
    ended = victim(from_fetch_to_train_as_nobody)
    assert ended.code == 0, ended.said
    assert {path.stat().st_uid for path in (odd.folder / "data").rglob("*")} == {nobody}
