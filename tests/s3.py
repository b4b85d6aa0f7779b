"""An S3 server on loopback, which can be cut off and comes back with what it had."""

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

import fsspec
import pytest
from moto.server import ThreadedMotoServer
from s3fs import S3FileSystem

VARIABLES = {
    "AWS_ACCESS_KEY_ID": "tests",
    "AWS_SECRET_ACCESS_KEY": "tests",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_MAX_ATTEMPTS": "1",
}


class S3:
    """The server, with one empty bucket."""

    def __init__(self) -> None:
        self.bucket = f"shards-{uuid4().hex}"  # moto keeps buckets as long as the process lives
        self.url = f"s3://{self.bucket}/project"
        self._server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        self._server.start()
        _, self._port = self._server.get_host_and_port()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def cut_off(self) -> None:
        self._server.stop()

    def come_back(self) -> None:
        self._server = ThreadedMotoServer("127.0.0.1", self._port, verbose=False)
        self._server.start()

    def names(self) -> list[str]:
        files = fsspec.filesystem("s3", skip_instance_cache=True, use_listings_cache=False)
        return [name.rpartition("/")[2] for name in files.ls(self.url)]


@contextmanager
def serving(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    """Serves until the block ends, with the variables that point there."""
    server = S3()
    for name, value in (VARIABLES | {"AWS_ENDPOINT_URL": server.endpoint}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(S3FileSystem, "retries", 1)
    S3FileSystem.clear_instance_cache()
    fsspec.filesystem("s3").mkdir(server.bucket)
    try:
        yield server
    finally:
        server.cut_off()
        S3FileSystem.clear_instance_cache()
