"""Tars: the files of a tar by name, and what is wrong with one that cannot be read.

This module reads them with tarfile instead of the package webdataset. That package stops silently if a tar is truncated or a
header is damaged, unpickles members, and runs a shell command for a name that starts with `pipe:`. No files are extracted.
"""

import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_OTHERS = {
    b"\x28\xb5\x2f\xfd": "compressed with zstd, which tarfile does not read: decompress it with `zstd -d`",
    b"\x04\x22\x4d\x18": "compressed with lz4, which tarfile does not read: decompress it with `lz4 -d`",
    b"PK\x03\x04": "a zip, not a tar: unpack it, and use the source `folder`",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive, not a tar: unpack it, and use the source `folder`",
    b"Rar!": "a rar archive, not a tar: unpack it, and use the source `folder`",
    b"PAR1": "a Parquet file, not a tar: use the source `parquet`, or change `fetch.source.files`",
    b"version https://git-lfs": "a pointer of Git LFS, not the tar itself: run `git lfs pull`",
}
"""What a file is that is no tar, by how it starts."""


@contextmanager
def opened(path: Path) -> Iterator[tarfile.TarFile]:
    """Opens a tar, compressed or not, and says in one line why it cannot be read, here or in the block.

    Raises:
        ValueError: if the file is not a tar, or is damaged or truncated.
    """
    with path.open("rb") as file:
        start = file.read(24)
    for magic, what in _OTHERS.items():
        if start.startswith(magic):
            raise ValueError(f"{path}: {what}")
    try:
        with tarfile.open(path) as tar:
            yield tar
    except (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: damaged or truncated ({reason}); download it again") from None


def members(tar: tarfile.TarFile, wanted: Callable[[str], bool]) -> dict[str, tarfile.TarInfo]:
    """Returns the files and links whose names are wanted, in their order, after reading the whole tar once.

    Raises:
        ValueError: if a name occurs twice.
        tarfile.ReadError: if the tar has no proper end.
    """
    found: dict[str, tarfile.TarInfo] = {}
    for member in tar:
        name = member.name
        if not member.isdir() and wanted(name):
            if name in found:
                raise ValueError(f"{Path(str(tar.name)).name}, {name}: duplicate name, wanted each name once in a tar")
            found[name] = member
        tar.members.clear()  # type: ignore[attr-defined]  # else tarfile keeps the headers of all members
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # tarfile takes a damaged header for the end
        raise tarfile.ReadError(f"neither a header nor the end of a tar at byte {tar.offset}")
    while tar.fileobj.read(1 << 20):  # read a compressed tar to its end, where the checksum is
        pass
    return found
