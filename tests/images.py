"""Encoded images, valid and invalid."""

import io
import struct
import zlib

from PIL import Image

SRGB_PRIMARIES = ((0.4360, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141))
P3_PRIMARIES = ((0.5151, 0.2412, -0.0011), (0.2919, 0.6922, 0.0419), (0.1572, 0.0666, 0.7841))
"""XYZ of red, green and blue, relative to D50."""


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


def profile(name: str, curve: list[float] | float, primaries: tuple[tuple[float, ...], ...] = SRGB_PRIMARIES) -> bytes:
    """Returns an ICC profile of version 2 that describes RGB by primaries and one tone curve.

    Args:
        name: its description.
        curve: linear light of equally spaced levels, or a gamma.
        primaries: XYZ of red, green and blue, relative to D50.
    """

    def fixed(*values: float) -> bytes:
        return b"".join(struct.pack(">i", round(value * 65536)) for value in values)

    if isinstance(curve, float):
        tone = b"curv" + struct.pack(">IIH", 0, 1, round(curve * 256))
    else:
        tone = b"curv" + struct.pack(f">II{len(curve)}H", 0, len(curve), *(round(value * 65535) for value in curve))
    text = name.encode() + b"\0"
    tags = {b"desc": b"desc" + struct.pack(">II", 0, len(text)) + text + bytes(78), b"cprt": b"text" + bytes(4) + b"none\0"}
    tags |= {b"wtpt": b"XYZ " + bytes(4) + fixed(0.9642, 1, 0.8249)}
    tags |= {
        letter + b"XYZ": b"XYZ " + bytes(4) + fixed(*xyz) for letter, xyz in zip((b"r", b"g", b"b"), primaries, strict=True)
    }
    tags |= {letter + b"TRC": tone for letter in (b"r", b"g", b"b")}
    table, body = struct.pack(">I", len(tags)), b""
    for tag, content in tags.items():
        table += tag + struct.pack(">II", 128 + 4 + 12 * len(tags) + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    size = struct.pack(">I", 128 + len(table) + len(body))
    header = size + bytes(4) + b"\x02\x10\0\0mntrRGB XYZ " + bytes(12) + b"acsp" + bytes(28) + fixed(0.9642, 1, 0.8249)
    return header.ljust(128, b"\0") + table + body


def many_scans(size: tuple[int, int], scans: int) -> bytes:
    """Returns a progressive JPEG file that repeats its last scan, about 12 bytes, many times."""
    jpeg = encoded(Image.new("L", size, 128), "JPEG", progressive=True)
    return jpeg[:-2] + jpeg[jpeg.rindex(b"\xff\xda") : -2] * scans + jpeg[-2:]
