"""Bucket: a folder of files at a URL, read and written with fsspec. A request that fails is repeated."""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator

from t2i.core.files import flush
from t2i.core.patience import patience_seconds

_BLOCK_BYTES = 16 << 20
"""How much one request reads; after a failure, this much is read again."""
_FIRST_PATIENCE_SECONDS = 20.0
"""How long requests may fail before one has worked: a wrong address is noticed soon."""

Result = TypeVar("Result")


class StoreLost(ValueError):
    """The store of `runtime.store` cannot be reached, or lacks a file."""


def _without_secrets(url: str) -> str:
    parts = urlsplit(url)
    if parts.password is not None or parts.query or (parts.username and parts.scheme not in ("abfs", "abfss")):
        raise ValueError(
            f"the address {parts.scheme}://... has a user, a password or a query in it: leave them out, and set the variables "
            "or the file from which the store's own tools read secrets, such as AWS_PROFILE"
        )
    return url.rstrip("/")


StoreUrl = Annotated[str, AfterValidator(_without_secrets)]
"""A URL, or a folder; refuses secrets."""


class Bucket:
    """The files in one folder at a URL. They never change once they are there.

    All methods raise StoreLost if the URL cannot be reached until the patience is over, or refuses.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._reached = self._complaining = False
        self._lock = threading.Lock()

    def sizes(self, *, again: bool = False) -> dict[str, int]:
        """Returns the sizes of all files in bytes, by name; as they were before, unless it should look again."""
        if again:
            self.__dict__.pop("_listed", None)
        return self._listed

    def blocks(self, name: str, size: int) -> Iterator[bytes]:
        """Yields the content of a file of `size` bytes, in order."""
        for start in range(0, size, _BLOCK_BYTES):
            block = partial(self._block, name, start, min(start + _BLOCK_BYTES, size))
            yield self._retried(f"{self.url}/{name}: cannot be read", block)

    def put(self, path: Path, name: str) -> None:
        """Copies a file from this disk, unless one with its name and size is there."""
        size = path.stat().st_size
        if self._listed.get(name) != size:
            self._retried(f"{self.url}/{name}: cannot be written", partial(self._upload, path, name))
            self._listed[name] = size

    def _upload(self, path: Path, name: str) -> None:
        from fsspec.implementations.local import LocalFileSystem

        files, root = self._opened
        if not isinstance(files, LocalFileSystem):  # object stores show an object once it is complete
            files.put_file(str(path), f"{root}/{name}")
            return
        unfinished = Path(f"{root}/{name}.{os.getpid()}.partial")
        files.makedirs(root, exist_ok=True)
        files.put_file(str(path), str(unfinished))
        flush(unfinished)
        unfinished.replace(f"{root}/{name}")

    def _block(self, name: str, start: int, end: int) -> bytes:
        files, root = self._opened
        block: bytes = files.cat_file(f"{root}/{name}", start=start, end=end)
        if len(block) != end - start:
            raise OSError(f"{len(block)} bytes came, not {end - start}")
        return block

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        """The file system of the URL, and the path in it."""
        import fsspec

        try:
            files, root = fsspec.core.url_to_fs(self.url, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise StoreLost(f"`runtime.store` {self.url}: {error}") from None
        return files, str(root)

    @cached_property
    def _listed(self) -> dict[str, int]:
        return self._retried(f"{self.url}: cannot be read", self._list)

    def _list(self) -> dict[str, int]:
        files, root = self._opened
        try:
            return {row["name"].rpartition("/")[2]: row["size"] for row in files.ls(root, detail=True)}
        except FileNotFoundError:  # nothing was put there yet
            return {}

    def _retried(self, what: str, request: Callable[[], Result]) -> Result:
        """Returns what a request returns; repeats it when it fails, at growing intervals, until the patience is over."""
        patience = patience_seconds() if self._reached else min(patience_seconds(), _FIRST_PATIENCE_SECONDS)
        pause, began = min(0.5, patience / 10), time.monotonic()
        while True:
            try:
                result = request()
            except (FileNotFoundError, PermissionError) as error:
                raise StoreLost(f"{what}: {_reason(error)}; check `runtime.store` and your rights to it") from None
            except StoreLost:
                raise
            except Exception as error:  # each file system has its own types
                if time.monotonic() - began + pause > patience:
                    remedy = "check the network and `runtime.store`, then run the same command again to continue"
                    raise StoreLost(f"{what} for {patience:g} s ({_reason(error)}): {remedy}") from None
                self._complain(f"{what} ({_reason(error)}); trying again for {patience:g} s")
                time.sleep(pause)
                pause = min(2 * pause, 30.0)
            else:
                self._reached, self._complaining = True, False
                return result

    def _complain(self, message: str) -> None:
        with self._lock:  # once an interruption, not once a thread
            if not self._complaining:
                print(f"\nnote: {message}", file=sys.stderr, flush=True)
            self._complaining = True


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
