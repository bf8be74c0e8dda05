"""Images as users have them: missing, empty, broken, huge, turned on their side."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from specdec.commands import UserError
from specdec.commands.images import read_image

Make = Callable[[Path], object]


def bomb(path: Path) -> None:
    """A PNG of a hundred bytes that says it has 60000 × 60000 pixels."""
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    chunks = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    ]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


def truncated(format_: str) -> Make:
    def make(path: Path) -> None:
        Image.radial_gradient("L").convert("RGB").save(path, format_)
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])

    return make


@pytest.mark.parametrize(
    ("make", "pattern"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.mkdir(), "is a folder"),
        (lambda path: path.touch(), "is empty: 0 bytes"),
        (lambda path: path.write_text("<svg></svg>"), "not an image that Pillow can read"),
        (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n"), "picture"),
        (truncated("PNG"), "broken or truncated"),
        (truncated("JPEG"), "broken or truncated"),
        (bomb, r"60000 × 60000 = 3600\.0 million pixels, the limit is 0\.5 million.*--max-pixels"),
    ],
)
def test_unreadable_images(tmp_path: Path, make: Make, pattern: str) -> None:
    """Each of these once ended some program in a traceback, or in gigabytes of zeros."""
    path = tmp_path / "picture"
    make(path)
    with pytest.raises(UserError, match=pattern) as caught:
        read_image(path, 500_000)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_name_that_no_file_can_have(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_image(tmp_path / ("x" * 5000), 1)


def test_limit_replaces_that_of_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow warns, or refuses, above a limit of its own; `--max-pixels` must be able to lift it,
    and to put it back."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    path = tmp_path / "picture.png"
    Image.new("RGB", (30, 20)).save(path)
    assert read_image(path, 600).size == (30, 20)
    with pytest.raises(UserError, match="30 × 20"):
        read_image(path, 599)
    assert Image.MAX_IMAGE_PIXELS == 10


def test_pixels_are_upright_rgb(tmp_path: Path) -> None:
    """Phones store photographs on their side and say so in EXIF; models see pixels only."""
    path = tmp_path / "picture.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90° to the right
    Image.new("L", (30, 20)).save(path, exif=exif)
    image = read_image(path, 10_000)
    assert (image.size, image.mode) == ((20, 30), "RGB")
