"""A bucket in memory, whose requests fail as a network's do."""

import errno
import time
from collections.abc import Callable
from uuid import uuid4

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from pydantic import TypeAdapter, ValidationError

from t2i.data import bucket
from t2i.data.bucket import Bucket, StoreLost, StoreUrl


@pytest.fixture
def url() -> str:
    return f"memory://{uuid4().hex}"


@pytest.fixture(autouse=True)
def _quick(monkeypatch) -> None:
    monkeypatch.setenv("T2I_PATIENCE_SECONDS", "0.5")
    monkeypatch.setattr(bucket, "_BLOCK_BYTES", 4)


def failing(monkeypatch, times: int, error: Exception) -> Callable[[], int]:
    """Lets reads fail some times; returns a function that counts reads."""
    read, reads = MemoryFileSystem.cat_file, []

    def cat_file(files, *arguments, **options):
        reads.append(arguments)
        if len(reads) <= times:
            raise error
        return read(files, *arguments, **options)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", cat_file)
    return lambda: len(reads)


def kept(url: str, content: bytes = b"0123456789") -> Bucket:
    fsspec.filesystem("memory").pipe_file(f"{url}/a.tar", content)
    return Bucket(url)


def test_what_was_put_is_read_in_blocks(url, tmp_path) -> None:
    (tmp_path / "file").write_bytes(b"0123456789")
    there = Bucket(url)
    there.put(tmp_path / "file", "a.tar")
    assert there.size("a.tar") == Bucket(url).size("a.tar") == 10
    assert list(there.blocks("a.tar", 10)) == [b"0123", b"4567", b"89"]


@pytest.mark.parametrize("folder", ["file://{}/store", "{}/store"])
def test_a_folder_is_a_bucket_too(tmp_path, folder) -> None:
    (tmp_path / "file").write_bytes(b"0123456789")
    there = Bucket(folder.format(tmp_path))
    assert there.size("a.tar") is None
    there.put(tmp_path / "file", "a.tar")
    assert there.size("a.tar") == 10
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["a.tar"]
    assert b"".join(there.blocks("a.tar", 10)) == b"0123456789"


def test_a_file_is_put_once_but_again_if_it_is_incomplete(url, tmp_path, monkeypatch) -> None:
    (tmp_path / "file").write_bytes(b"0123456789")
    puts, put = [], MemoryFileSystem.put_file

    def put_file(*arguments, **options) -> None:
        puts.append(arguments)
        put(*arguments, **options)

    monkeypatch.setattr(MemoryFileSystem, "put_file", put_file)
    kept(url, b"012").put(tmp_path / "file", "a.tar")
    Bucket(url).put(tmp_path / "file", "a.tar")
    assert len(puts) == 1
    assert Bucket(url).size("a.tar") == 10


def test_a_failed_request_is_repeated_and_said_once(url, monkeypatch, capsys) -> None:
    there = kept(url)
    reads = failing(monkeypatch, 2, OSError("connection reset"))
    assert b"".join(there.blocks("a.tar", 10)) == b"0123456789"
    assert reads() == 5
    said = capsys.readouterr().err
    assert said == f"\nnote: {url}/a.tar: cannot be read (connection reset); trying again for 0.5 s\n"


def test_a_short_answer_is_a_failed_request(url, monkeypatch) -> None:
    there = kept(url, b"012345")
    with pytest.raises(StoreLost, match=r"cannot be read \(2 bytes came, not 4\): check the network and `runtime.store`"):
        list(there.blocks("a.tar", 10))


@pytest.mark.parametrize("error", [FileNotFoundError("no such key"), PermissionError("Access Denied")])
def test_a_first_request_that_is_refused_is_not_repeated(url, monkeypatch, error) -> None:
    there, reads = kept(url), failing(monkeypatch, 9, error)
    with pytest.raises(StoreLost, match=rf"a.tar: cannot be read: {error}; check `runtime.store` and your rights to it"):
        next(there.blocks("a.tar", 10))
    assert reads() == 1


def test_the_first_request_has_little_patience(url, monkeypatch) -> None:
    monkeypatch.setenv("T2I_PATIENCE_SECONDS", "600")
    monkeypatch.setattr(bucket, "_FIRST_PATIENCE_SECONDS", 0.2)
    there = Bucket(url)
    failing(monkeypatch, 99, OSError("no route to host"))
    with pytest.raises(StoreLost, match=r"cannot be read \(no route to host\)"):
        next(there.blocks("a.tar", 10))


def test_a_file_that_comes_later_is_seen(url) -> None:
    there = Bucket(url)
    assert there.size("a.tar") is None
    kept(url)
    assert there.size("a.tar") == 10


def test_what_has_worked_before_is_waited_for(url, monkeypatch) -> None:
    there = kept(url)
    assert there.size("a.tar") == 10
    reads = failing(monkeypatch, 1, PermissionError("expired"))
    assert b"".join(there.blocks("a.tar", 10)) == b"0123456789"
    assert reads() == 4


def test_a_full_server_is_not_waited_for(url, monkeypatch) -> None:
    there = kept(url)
    assert there.size("a.tar") == 10
    reads = failing(monkeypatch, 9, OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(StoreLost, match="No space left"):
        next(there.blocks("a.tar", 10))
    assert reads() == 1


def test_the_patience_is_counted_from_the_first_failure(url, monkeypatch) -> None:
    there = kept(url)
    failing(monkeypatch, 99, OSError("reset"))
    with pytest.raises(StoreLost):
        next(there.blocks("a.tar", 10))
    began = time.monotonic()
    with pytest.raises(StoreLost):
        next(there.blocks("a.tar", 10))
    assert time.monotonic() - began < 0.4


def test_a_relative_folder_is_in_the_checkout(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    assert Bucket("server/shards").url == str(tmp_path / "server/shards")


@pytest.mark.parametrize("url", ["nothing://bucket", "s4://bucket"])
def test_an_unknown_kind_of_url_is_named(url) -> None:
    with pytest.raises(StoreLost, match=rf"`runtime.store` {url}: .*rotocol"):
        Bucket(url).size("a.tar")


@pytest.mark.parametrize(
    "url", ["s3://KEY:SECRET@bucket/x", "s3://KEY@bucket", "https://host/x?X-Amz-Signature=1", "sftp://user:word@host/x"]
)
def test_secrets_in_a_url_are_refused_and_not_shown(url) -> None:
    with pytest.raises(ValidationError) as refused:
        TypeAdapter(StoreUrl).validate_python(url)
    message = refused.value.errors()[0]["msg"]
    assert "AWS_PROFILE" in message
    assert not any(secret in message for secret in ("KEY", "SECRET", "Signature", "word@"))


@pytest.mark.parametrize(
    "url", ["s3://bucket/a/b/", "gs://bucket", "abfs://container@account.dfs.core.windows.net/x", "/mnt/shards"]
)
def test_plain_urls_pass(url) -> None:
    assert TypeAdapter(StoreUrl).validate_python(url) == url.rstrip("/")
