"""Verification: compares the hashes of the shards with their manifests in the background, while training runs."""

import shutil
import threading
from collections.abc import Sequence
from pathlib import Path

from t2i.data.index import Index
from t2i.data.manifest import check_hashes
from t2i.data.records import SPLITS

_FIRST_SECONDS = 2.0
"""How long the first step waits, so that damage to a small set is found before it."""


class Verification:
    """Checks sets in a thread. If one is damaged, nothing that this start of the run has computed is kept.

    Args:
        work: the work folder of the run.
        folders: the sets; empty to check nothing.
    """

    def __init__(self, work: Path, folders: Sequence[Path]) -> None:
        self._work, self._before = work, _results(work)
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, args=(folders,), daemon=True, name="verification")
        self._thread.start()
        self._thread.join(_FIRST_SECONDS)

    def _run(self, folders: Sequence[Path]) -> None:
        try:
            for folder in folders:
                check_hashes(folder, shown=False)
                for split in SPLITS:
                    Index(folder, split).check_unique()
        except Exception as error:  # a thread has nobody to raise it to
            self._error = error

    def trusted(self) -> Path | None:
        """Returns the newest checkpoint of an earlier start while the data of this one are not yet known to be sound."""
        earlier = sorted(path for path in self._before if path.is_dir())
        return earlier[-1] if earlier and self._thread.is_alive() else None

    def check(self, *, finished: bool = False) -> None:
        """Raises what the thread has found so far or, with `finished`, at its end, after deleting what this start has computed.

        Raises:
            ValueError: if a file differs from its manifest, or two records of a set have the same key.
        """
        if finished:
            self._thread.join()
        if self._error is not None:
            for path in _results(self._work) - self._before:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            raise self._error


def _results(work: Path) -> set[Path]:
    """Returns the checkpoints and the validations of a run."""
    return {*work.glob("step-????????"), *work.glob("validation-*/step-*.safetensors")}
