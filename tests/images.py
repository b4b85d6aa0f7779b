"""Encoded images, valid and invalid."""

import io
import struct
import zlib

from PIL import Image


def encoded(image: Image.Image, form: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def png(size: tuple[int, int], *chunks: tuple[bytes, bytes]) -> bytes:
    """Returns an RGB PNG file with the given size in its header, followed by the given chunks."""
    header = (b"IHDR", struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0))
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in (header, *chunks)
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def many_scans(size: tuple[int, int], scans: int) -> bytes:
    """Returns a progressive JPEG file that repeats its last scan, about 12 bytes, many times."""
    jpeg = encoded(Image.new("L", size, 128), "JPEG", progressive=True)
    return jpeg[:-2] + jpeg[jpeg.rindex(b"\xff\xda") : -2] * scans + jpeg[-2:]
