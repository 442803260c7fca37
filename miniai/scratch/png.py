"""32. A picture as a PNG file (ISO/IEC 15948): a signature, then chunks, each with its length, name and checksum."""

import os
import secrets
import struct
import zlib
from contextlib import suppress
from pathlib import Path

from miniai.scratch.tensor import Tensor

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY, COLOUR = 0, 2


def to_bytes(image: Tensor) -> bytes:
    """(c, h, w) from -1 to 1 (values outside are clipped) to rows of pixels of 8-bit levels, rounded to the nearest."""
    return bytes(round(min(max(x / 2 + 0.5, 0.0), 1.0) * 255) for x in image.permute(1, 2, 0).flat())


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def encode_png(image: Tensor, text: dict[str, str] | None = None) -> bytes:
    """(3, h, w), or (1, h, w) for grey, from -1 to 1. `text` entries stand beside the pixels, under their names."""
    if image.ndim != 3 or image.shape[0] not in (1, 3) or 0 in image.shape:
        raise ValueError(f"a picture is (3, h, w) or (1, h, w), got {list(image.shape)}")
    c, h, w = image.shape
    levels, row = to_bytes(image), c * w
    lines = b"".join(b"\0" + levels[i * row : (i + 1) * row] for i in range(h))  # 0: the line is stored unfiltered
    keys = [(name.encode("latin-1") + b"\0\0\0\0\0", value.encode()) for name, value in (text or {}).items()]
    entries = [chunk(b"iTXt", key + value) for key, value in keys]
    header = struct.pack(">IIBBBBB", w, h, 8, COLOUR if c == 3 else GREY, 0, 0, 0)
    return b"".join(
        [SIGNATURE, chunk(b"IHDR", header), *entries, chunk(b"IDAT", zlib.compress(lines, 9)), chunk(b"IEND", b"")]
    )


def write_png(path: str | Path, image: Tensor, text: dict[str, str] | None = None) -> None:
    """Writes to a file beside it that then takes the name: a picture is there whole, or not at all."""
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(encode_png(image, text))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()
