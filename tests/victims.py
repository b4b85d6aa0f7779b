"""Victims: forks of the warm test process, which run a command and are sent signals at chosen events.

Python's start with torch takes seconds, a fork takes none; and an event, unlike a moment, is the same one each time.
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
"""Arranges, in the child, for something to be called at every event."""

_MOST_SECONDS = 120
_CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "shutil.copyfile"}


@dataclass(frozen=True)
class Ended:
    """How a victim ended."""

    code: int
    """As a shell has it: 128 and the signal's number, where that ended it."""
    said: str
    """Stdout and stderr."""
    events: int
    """Events that there were."""


def t2i(*words: str) -> None:
    """Runs a command as the console script does."""
    AcceleratorState._reset_state(reset_partial_state=True)  # as a new process finds it
    sys.argv = ["t2i", *words]
    console.run(tools.app)


class Victim:
    """A fork that runs an action and sends itself the signals `at` (from event to signal; events count from 1)."""

    def __init__(self, action: Callable[[], object], watch: Watch = id, at: Mapping[int, int] | None = None) -> None:
        self._counter, self._log = mmap.mmap(-1, 8), tempfile.TemporaryFile()  # noqa: SIM115
        self.pid = os.fork()
        if self.pid == 0:
            os._exit(_live(action, watch, dict(at or {}), self._counter, self._log.fileno()))

    def stopped(self) -> bool:
        """Waits until it stops by SIGSTOP, and returns True, or ends."""
        return os.WIFSTOPPED(os.waitpid(self.pid, os.WUNTRACED)[1])

    def wait(self) -> Ended:
        """Waits for its end."""
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
    tqdm.monitor_interval = 0  # its thread is not in the fork

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
    """Watches for what changes names or contents below some folders or beside them, just before it happens."""
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
    """Watches for every line of a module: what its libraries write is told apart from what they are about to write."""

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
    """Watches for the forward passes of models of a class, in one mode where it is given, just after they were made."""

    def watch(event: Callable[[], None]) -> None:
        def hook(module: Any, *_: Any) -> None:
            if type(module).__name__ == model and training in (None, module.training):
                event()

        register_module_forward_hook(hook)

    return watch


def of_rank(rank: int, watch: Watch) -> Watch:
    """Watches in one of several processes alone."""

    def watch_there(event: Callable[[], None]) -> None:
        watch(lambda: event() if os.environ.get("RANK") == str(rank) else None)

    return watch_there


def may_share_locks() -> bool:
    """Whether forks may share a lock, which `together` needs: where there is no /dev/shm they may not."""
    try:
        multiprocessing.get_context("fork").Lock()
    except (ImportError, OSError):
        return False
    return True


def together(processes: int, action: Callable[[], object]) -> None:
    """Runs an action in forks that torchrun's agent starts, watches over, and ends when one of them has died."""
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = "600"  # as t2i/model/launch.py
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
    """Returns at most `count` of the events, the first and the last included."""
    if events <= count:
        return range(1, events + 1)
    return [1 + number * (events - 1) // (count - 1) for number in range(count)]


def leftovers(folder: Path) -> list[str]:
    """Returns what lies below a folder under a temporary name."""
    found = itertools.chain.from_iterable(folder.rglob(f"*{end}") for end in (".partial", ".old", ".tmp"))
    return [str(path.relative_to(folder)) for path in found]


def command(*words: str) -> Callable[[], None]:
    return lambda: t2i(*words)


def run(*words: str) -> str:
    """Runs a command to its end, and returns what it said."""
    ended = victim(command(*words))
    assert ended.code == 0, ended.said
    return ended.said


TRAINING = calls_of("UNet2DConditionModel", training=True)
VALIDATING = calls_of("UNet2DConditionModel", training=False)


def launch(code: str, folder: Path) -> subprocess.Popen:
    """Relaunches a module of some code as two processes."""
    (folder / "victim.py").write_text(code)
    command = "import sys; from t2i.model.launch import relaunch; sys.exit(relaunch('victim', [], 2))"
    paths = os.pathsep.join([str(ROOT), str(folder)])
    return subprocess.Popen(
        [sys.executable, "-c", command], cwd=folder, env=os.environ | {"PYTHONPATH": paths}, stderr=subprocess.DEVNULL
    )
