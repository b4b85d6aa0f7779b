"""Inside: reads the files that a table names, inside the folder `fetch.local`, and says what may be wrong with a name."""

import os
import re
from functools import cached_property
from pathlib import Path

from t2i.fetch.source import files_in, in_experiment, is_inside

_ESCAPES = str.maketrans({"\b": r"\b", "\f": r"\f", "\n": r"\n", "\r": r"\r", "\t": r"\t"})
"""What JSON makes of `\\b` in `photos\\bridge.jpg`, and the like."""


class Inside:
    """Reads files inside a folder. The folder is listed once, when the first file is missing."""

    def __init__(self, local: Path) -> None:
        self._local = local

    def read(self, name: str, beside: Path | None = None) -> bytes:
        """Returns the content of a file inside the folder.

        Args:
            name: path of the file, absolute or relative to `beside`.
            beside: a folder in `local`; None: `local` itself.

        Raises:
            ValueError: if the file cannot be read, or is outside `local`, where DVC sees no changes; the message is
                `kind: detail`, and may say which name was meant.
        """
        folder = beside or self._local
        if not is_inside(folder / name, self._local):
            wanted = f"wanted a path inside `fetch.local`{self._hint(name, folder)}"
            raise ValueError(f"missing image: {name!r} is outside {self._local}; {wanted}")
        try:
            return (folder / name).read_bytes()
        except FileNotFoundError:
            raise ValueError(f"missing image: no such file {name!r} in {folder}{self._hint(name, folder)}") from None
        except (OSError, ValueError) as error:  # a ValueError: the name has a NUL
            raise ValueError(f"missing image: {name!r} in {folder}: {getattr(error, 'strerror', error)}") from None

    def _hint(self, name: str, folder: Path) -> str:
        """Returns what to add to the message about a missing file; empty if nothing is known about it."""
        written = name.translate(_ESCAPES)
        hint = ": write / instead of \\" if "\\" in written else ""
        steps = [step for step in re.split(r"[/\\]", written) if step]
        found = self._by_name.get(steps[-1].lower(), []) if steps else []
        if found:
            return f"{hint}; did you mean {Path(os.path.relpath(_nearest(found, steps), folder)).as_posix()}?"
        if not in_experiment(self._local):
            return hint
        top = Path(os.path.relpath(folder / name, self._local)).parts[0]
        return f"{hint}; if the checkout has it, neither git nor DVC tracks it: `dvc add {self._local / top}` there"

    @cached_property
    def _by_name(self) -> dict[str, list[Path]]:
        """The files in the folder, by their name in lower case."""
        found: dict[str, list[Path]] = {}
        for path in files_in(self._local, "**/*"):
            found.setdefault(path.name.lower(), []).append(path)
        return found


def _nearest(paths: list[Path], steps: list[str]) -> Path:
    """Returns the path that ends most like the steps; the first one of several."""
    asked = [step.lower() for step in steps[::-1]]

    def shared(path: Path) -> int:
        ends = [step.lower() for step in path.parts[::-1]]
        return next((n for n, (one, other) in enumerate(zip(ends, asked, strict=False)) if one != other), len(asked))

    return max(paths, key=shared)
