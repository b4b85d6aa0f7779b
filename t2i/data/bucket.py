"""Bucket: a folder of files at a URL, read and written with fsspec. A request that fails is repeated."""

import errno
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import urlsplit
from uuid import uuid4

from pydantic import AfterValidator

from t2i.core.files import flush, in_checkout
from t2i.core.patience import patience_seconds

_BLOCK_BYTES = 16 << 20
"""How much one request reads; after a failure, this much is read again."""
_FIRST_PATIENCE_SECONDS = 20.0
"""How long requests may fail before one has worked: a wrong address is noticed soon."""
_FINAL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""The errors that another request does not mend."""

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

    All methods raise StoreLost if requests have failed until the patience is over.
    """

    def __init__(self, url: str) -> None:
        self.url = url if "://" in url else str(in_checkout(url))
        self._reached = False
        self._failing_since: float | None = None
        """When the first of the requests failed that have failed since the last one that worked."""
        self._lock, self._closed = threading.Lock(), threading.Event()

    def close(self) -> None:
        """Ends all waiting: requests that fail are not repeated any more."""
        self._closed.set()

    def size(self, name: str) -> int | None:
        """Returns the size of a file in bytes; None if there is none. Asks about a name that it has not seen there."""
        if name not in self._listed and (size := self._size_now(name)) is not None:
            self._listed[name] = size
        return self._listed.get(name)

    def blocks(self, name: str, size: int) -> Iterator[bytes]:
        """Yields the content of a file of `size` bytes, in order."""
        for start in range(0, size, _BLOCK_BYTES):
            block = partial(self._block, name, start, min(start + _BLOCK_BYTES, size))
            yield self._retried(f"{self.url}/{name}: cannot be read", block)

    def put(self, path: Path, name: str) -> None:
        """Copies a file from this disk, unless one with its name and size is there now."""
        size = path.stat().st_size
        if self._size_now(name) != size:
            self._retried(f"{self.url}/{name}: cannot be written", partial(self._upload, path, name, size))
        self._listed[name] = size

    def _upload(self, path: Path, name: str, size: int) -> None:
        from fsspec.implementations.local import LocalFileSystem

        files, root = self._opened
        if not isinstance(files, LocalFileSystem):  # object stores show an object once it is complete
            files.put_file(str(path), f"{root}/{name}")
        else:
            unfinished = Path(f"{root}/{name}.{uuid4().hex}.partial")
            files.makedirs(root, exist_ok=True)
            try:
                files.put_file(str(path), str(unfinished))
                flush(unfinished)
                unfinished.replace(f"{root}/{name}")
                flush(Path(root))
            finally:
                unfinished.unlink(missing_ok=True)
        if (found := files.info(f"{root}/{name}")["size"]) != size:
            raise OSError(f"{found} bytes are there, not {size}")

    def _block(self, name: str, start: int, end: int) -> bytes:
        files, root = self._opened
        block: bytes = files.cat_file(f"{root}/{name}", start=start, end=end)
        if len(block) != end - start:
            raise OSError(f"{len(block)} bytes came, not {end - start}")
        return block

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        """The file system of the URL, and the path of the folder in it."""
        import fsspec

        try:
            files, root = fsspec.core.url_to_fs(self.url, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise StoreLost(f"`runtime.store` {self.url}: {error}") from None
        return files, str(root)

    @cached_property
    def _listed(self) -> dict[str, int]:
        return self._retried(f"{self.url}: cannot be read", self._list)

    def _size_now(self, name: str) -> int | None:
        return self._retried(f"{self.url}/{name}: cannot be found", partial(self._ask, name))

    def _ask(self, name: str) -> int | None:
        files, root = self._opened
        try:
            return int(files.info(f"{root}/{name}")["size"])
        except FileNotFoundError:
            return None

    def _list(self) -> dict[str, int]:
        files, root = self._opened
        try:
            return {row["name"].rpartition("/")[2]: row["size"] for row in files.ls(root, detail=True)}
        except FileNotFoundError:  # nothing was put there yet
            return {}

    def _retried(self, what: str, request: Callable[[], Result]) -> Result:
        """Returns what a request returns; repeats it when it fails, at growing intervals, until the patience is over."""
        pause = min(0.5, patience_seconds() / 10)
        while True:
            try:
                result = request()
            except StoreLost:
                raise
            except Exception as error:  # each file system has its own types
                left = self._failed(what, error)
                if self._closed.wait(min(pause, left)) or left <= 0:
                    remedy = "check the network and `runtime.store`, then run the same command again to continue"
                    raise StoreLost(f"{what} ({_reason(error)}): {remedy}") from None
                pause = min(2 * pause, 30.0)
            else:
                self._reached, self._failing_since = True, None
                return result

    def _failed(self, what: str, error: Exception) -> float:
        """Returns for how many seconds failed requests may still be repeated.

        Raises:
            StoreLost: if that cannot help.
        """
        refused = isinstance(error, FileNotFoundError | PermissionError) and not self._reached
        if refused or getattr(error, "errno", None) in _FINAL:
            raise StoreLost(f"{what}: {_reason(error)}; check `runtime.store` and your rights to it") from None
        patience = patience_seconds() if self._reached else min(patience_seconds(), _FIRST_PATIENCE_SECONDS)
        with self._lock:
            if self._failing_since is None:  # once an interruption, not once a thread
                self._failing_since = time.monotonic()
                print(f"\nnote: {what} ({_reason(error)}); trying again for {patience:g} s", file=sys.stderr, flush=True)
            return self._failing_since + patience - time.monotonic()


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
