"""Victims: forks of the warm test process that run a command and receive signals at chosen events.

Starting Python with torch takes seconds, a fork takes almost no time. An event, unlike a time, is the same in every run.
"""

import itertools
import mmap
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

from accelerate.state import AcceleratorState
from torch.nn.modules.module import register_module_forward_hook
from tqdm import tqdm

from stages import console, tools
from tests.projects import ROOT

Watch = Callable[[Callable[[], None]], object]
"""Installs, in the child, a hook that calls a function at every event."""

_MOST_SECONDS = 120
_CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "shutil.copyfile"}


@dataclass(frozen=True)
class Ended:
    """The end of a victim."""

    code: int
    """Exit code as in a shell: 128 plus the number of the signal, if a signal ended it."""
    said: str
    """Stdout and stderr."""
    events: int
    """Number of events."""


def t2i(*words: str) -> None:
    """Runs a command as the console script does."""
    AcceleratorState._reset_state(reset_partial_state=True)  # as in a new process
    sys.argv = ["t2i", *words]
    console.run(tools.app)


class Victim:
    """A fork that runs an action and sends itself signals; `at` maps events, counted from 1, to signals."""

    def __init__(self, action: Callable[[], object], watch: Watch = id, at: Mapping[int, int] | None = None) -> None:
        self._counter, self._log = mmap.mmap(-1, 8), tempfile.TemporaryFile()  # noqa: SIM115
        self.pid = os.fork()
        if self.pid == 0:
            os._exit(_live(action, watch, dict(at or {}), self._counter, self._log.fileno()))

    def stopped(self) -> bool:
        """Waits until SIGSTOP stops it or it ends; returns whether it was stopped."""
        return os.WIFSTOPPED(os.waitpid(self.pid, os.WUNTRACED)[1])

    def wait(self) -> Ended:
        """Waits until it ends."""
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        with self._log as log:
            log.seek(0)
            said = log.read().decode(errors="replace")
        return Ended(code if code >= 0 else 128 - code, said, _count(self._counter))


def victim(action: Callable[[], object], watch: Watch = id, at: Mapping[int, int] | None = None) -> Ended:
    """Runs a victim to its end."""
    return Victim(action, watch, at).wait()


def _live(action: Callable[[], object], watch: Watch, at: dict[int, int], counter: mmap.mmap, log: int) -> int:
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout = sys.stderr = open(2, "w", buffering=1, encoding="utf-8", closefd=False)  # noqa: SIM115
    signal.alarm(_MOST_SECONDS)
    tqdm.monitor_interval = 0  # the fork does not have its thread

    def event() -> None:
        counter[:] = (_count(counter) + 1).to_bytes(8, "little")
        if number := at.get(_count(counter)):
            os.kill(os.getpid(), number)

    try:
        watch(event)
        action()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _count(counter: mmap.mmap) -> int:
    return int.from_bytes(counter[:], "little")


def file_changes(*folders: Path) -> Watch:
    """Watches for changes of files whose paths start with those of the folders; an event comes just before the change."""
    starts = tuple(str(folder.absolute()) for folder in folders)

    def watch(event: Callable[[], None]) -> None:
        def hook(name: str, arguments: tuple[Any, ...]) -> None:
            if _writes(arguments[2]) if name == "open" else name in _CHANGES:
                paths = [os.path.abspath(os.fsdecode(path)) for path in arguments[:2] if isinstance(path, str | bytes | Path)]
                within_a_folder = name in ("os.remove", "os.rmdir") and arguments[1] != -1  # as shutil.rmtree does
                if within_a_folder or any(path.startswith(starts) for path in paths):
                    event()

        sys.addaudithook(hook)

    return watch


def _writes(flags: int) -> bool:
    return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def lines_of(module: ModuleType) -> Watch:
    """Watches for every line of a module that runs, and so also sees the moments between two writes of a library."""

    def watch(event: Callable[[], None]) -> None:
        def trace(frame: FrameType, kind: str, _: Any) -> Any:
            if frame.f_code.co_filename != module.__file__:
                return None
            if kind == "line":
                event()
            return trace

        sys.settrace(trace)

    return watch


def calls_of(model: str, *, training: bool | None = None) -> Watch:
    """Watches for forward passes of models of a class (if `training` is set, only in that mode); an event follows each."""

    def watch(event: Callable[[], None]) -> None:
        def hook(module: Any, *_: Any) -> None:
            if type(module).__name__ == model and training in (None, module.training):
                event()

        register_module_forward_hook(hook)

    return watch


def of_rank(rank: int, watch: Watch) -> Watch:
    """Watches only in the process with a rank."""

    def watch_there(event: Callable[[], None]) -> None:
        watch(lambda: event() if os.environ.get("RANK") == str(rank) else None)

    return watch_there


def may_share_locks() -> bool:
    """Returns whether forks can share a lock, which `together` needs; they cannot without /dev/shm."""
    try:
        multiprocessing.get_context("fork").Lock()
    except (ImportError, OSError):
        return False
    return True


def together(processes: int, action: Callable[[], object]) -> None:
    """Runs an action in forks of the agent of torchrun, which ends them all when one of them dies."""
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = "600"  # as in t2i/model/launch.py
    places = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "run_id": str(os.getpid())}
    config = LaunchConfig(1, 1, processes, **places, max_restarts=0, start_method="fork")
    elastic_launch(config, _quiet)(action)


def _quiet(action: Callable[[], object]) -> None:
    try:
        action()
    except SystemExit as end:
        if end.code:
            raise


def spread(events: int, count: int) -> Sequence[int]:
    """Returns at most `count` of the events, including the first and the last."""
    if events <= count:
        return range(1, events + 1)
    return [1 + number * (events - 1) // (count - 1) for number in range(count)]


def leftovers(folder: Path) -> list[str]:
    """Returns the files below a folder that have temporary names."""
    found = itertools.chain.from_iterable(folder.rglob(f"*{end}") for end in (".partial", ".old", ".tmp"))
    return [str(path.relative_to(folder)) for path in found]


def command(*words: str) -> Callable[[], None]:
    return lambda: t2i(*words)


def run(*words: str) -> str:
    """Runs a command to its end; returns its output."""
    ended = victim(command(*words))
    assert ended.code == 0, ended.said
    return ended.said


TRAINING = calls_of("UNet2DConditionModel", training=True)
VALIDATING = calls_of("UNet2DConditionModel", training=False)


def launch(code: str, folder: Path) -> subprocess.Popen:
    """Runs some code as a module in two processes, with `relaunch`."""
    (folder / "victim.py").write_text(code)
    command = "import sys; from t2i.model.launch import relaunch; sys.exit(relaunch('victim', [], 2))"
    paths = os.pathsep.join([str(ROOT), str(folder)])
    return subprocess.Popen(
        [sys.executable, "-c", command], cwd=folder, env=os.environ | {"PYTHONPATH": paths}, stderr=subprocess.DEVNULL
    )
