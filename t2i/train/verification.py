"""Verification: compares the hashes of the shards with their manifests in the background, while training runs.

<work>/unverified.json    the results that come from verified data, with their times; exists until all data are verified
"""

import json
import shutil
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from t2i.core.files import write_json
from t2i.data.bucket import StoreLost
from t2i.data.index import Index
from t2i.data.manifest import check_hashes
from t2i.data.records import SPLITS
from t2i.data.storage import Storage

_FIRST_SECONDS = 2.0
"""How long the first step waits, so that damage to a small set is found before it."""


class Verification:
    """Checks sets in a thread. If one is damaged, nothing is kept that was computed since data were last verified.

    Args:
        work: the work folder of the run.
        folders: the sets, which must have the same records; empty to check nothing.
        storage: where their shards are. Those that are fetched are compared then, before they are used.
    """

    def __init__(self, work: Path, folders: Sequence[Path], storage: Storage) -> None:
        self._work, self._marker = work, work / "unverified.json"
        if folders and not self._marker.exists():  # an earlier start may have left it: what it computed is not verified yet
            write_json(self._marker, _results(work))
        self._verified = dict(json.loads(self._marker.read_text(encoding="utf-8"))) if folders else {}
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, args=(folders, storage), daemon=True, name="verification")
        self._thread.start()
        self._thread.join(_FIRST_SECONDS)

    def _run(self, folders: Sequence[Path], storage: Storage) -> None:
        try:
            for folder in folders:
                check_hashes(folder, storage=storage, shown=False)
            for split in SPLITS:
                keys = [Index(folder, split, storage=storage).unique_keys() for folder in folders]
                if not all(np.array_equal(keys[0], its) for its in keys):
                    raise ValueError(f"{' and '.join(map(str, folders))} have different {split} records; run `dvc repro`")
            if folders:
                self._marker.unlink()
        except Exception as error:  # a thread has nobody to raise it to
            self._error = error

    def spared(self) -> Path | None:
        """Returns the newest checkpoint that comes from verified data, which must stay until all data are verified."""
        if not self._verified or not self._marker.exists():
            return None
        now = _results(self._work)
        checkpoints = [name for name, time in self._verified.items() if "/" not in name and now.get(name) == time]
        return self._work / max(checkpoints) if checkpoints else None

    def check(self) -> None:
        """Raises what the thread has found so far; if a set is damaged, first deletes what was computed from unverified data.

        Raises:
            ValueError: if a file differs from its manifest, a set has a key twice, or the sets have different records.
            OSError: if a file cannot be read; nothing is deleted.
        """
        if isinstance(self._error, ValueError) and not isinstance(self._error, StoreLost):
            for name, time in _results(self._work).items():
                if self._verified.get(name) != time:
                    path = self._work / name
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            self._marker.unlink(missing_ok=True)
            raise ValueError(f"{self._error}; deleted the checkpoints that were made from it") from None
        if self._error is not None:
            raise self._error

    def wait(self, check: Callable[[], None]) -> None:
        """Waits until all data are verified, and raises as `check` if they are not; often calls `check`, which may raise."""
        if self._thread.is_alive():
            print("all steps are done; waiting until the shards are verified", file=sys.stderr)
        while self._thread.is_alive():
            check()
            self._thread.join(0.5)
        self.check()


def _results(work: Path) -> dict[str, int]:
    """Returns the time of each checkpoint and validation of a run, in nanoseconds."""
    found = [*work.glob("step-????????"), *work.glob("validation-*/step-*.safetensors")]
    return {path.relative_to(work).as_posix(): path.stat().st_mtime_ns for path in found}
