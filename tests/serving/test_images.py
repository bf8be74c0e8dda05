"""Images as strangers send them: broken, far too large, or what is no image at all."""

from __future__ import annotations

import asyncio
import random
import struct
import tracemalloc
import zlib
from base64 import b64encode
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

import specdec
from specdec.serving.images import FORMATS, ImageLimits, ImageReader, ImageRefused

SHIPPED = sorted((Path(specdec.__file__).parent / "assets" / "images").glob("*.png"))
LIMITS = ImageLimits(max_bytes=20_000, max_pixels=60_000)


def encoded(format_: str, size: tuple[int, int] = (60, 40), **options: object) -> bytes:
    file = BytesIO()
    Image.radial_gradient("L").resize(size).convert("RGB").save(file, format_, **options)
    return file.getvalue()


def url_of(data: bytes) -> str:
    return "data:image/png;base64," + b64encode(data).decode()


def read(url: str, limits: ImageLimits = LIMITS) -> Image.Image:
    return asyncio.run(ImageReader(limits).read(url))


def refusal(url: str, limits: ImageLimits = LIMITS) -> str:
    with pytest.raises(ImageRefused) as caught:
        read(url, limits)
    return str(caught.value)


@pytest.mark.parametrize("format_", FORMATS)
def test_formats(format_: str) -> None:
    image = read(url_of(encoded(format_)))
    assert (image.size, image.mode) == ((60, 40), "RGB")


def test_pixels_are_upright_and_of_the_first_frame() -> None:
    """Phones store photographs on their side, and an animation is a picture to a model."""
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90° to the right
    assert read(url_of(encoded("JPEG", exif=exif))).size == (40, 60)
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    file = BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    assert read(url_of(file.getvalue())).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("url", "pattern"),
    [
        ("", "this is no URL"),
        ("/etc/passwd", "this is no URL and is not read: allowed are"),
        ("file:///etc/passwd", r"file://.* allowed are data: URLs in base64 only"),
        ("FTP://images.example/x", "allowed are data"),
        ("http://169.254.169.254/latest/meta-data?k=hush", r"http://169.254.169.254/… is not read"),
        ("https://me:hush@images.example/hush", "https://images.example/… is not read"),
        ("data:image/png,hush", "not of the form data:image/png;base64,…"),
        ("data:image/png;base64", "not of the form"),
        ("data:image/png;base64,hush!", "is not base64"),
        ("data:image/png;base64,\ud800", "is not base64"),
        ("data:image/png;base64,", "of 0 bytes is none of the formats"),
        (url_of(b"<svg>hush</svg>"), "of 15 bytes is none of the formats read here: PNG, JPEG,"),
        (url_of(encoded("TIFF")), "none of the formats"),
        (url_of(encoded("ICO", (32, 32))), "none of the formats"),
        (url_of(bytes(20_001)), "has more than 20000 bytes, the limit"),
        (url_of(encoded("PNG", (300, 201))), r"300 × 201 = 0\.1 million pixels.* 0\.06 million"),
    ],
)
def test_refused(url: str, pattern: str) -> None:
    """Files of the server, its network's own addresses, and formats with a history of holes must
    not be reached; and what comes back must not repeat what was sent: it may be somebody's."""
    with pytest.raises(ImageRefused, match=pattern) as caught:
        read(url)
    assert "hush" not in str(caught.value)


def png_of(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(10**6))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    )


def large_of(format_: str) -> bytes:
    """A few bytes that say they have 16000 × 16000 pixels, in the format's own place."""
    if format_ == "PNG":
        return png_of(16000, 16000)
    data = bytearray(encoded(format_, lossless=True) if format_ == "WEBP" else encoded(format_))
    if format_ == "GIF":
        data[6:10] = struct.pack("<HH", 16000, 16000)
    elif format_ == "BMP":
        data[18:26] = struct.pack("<ii", 16000, 16000)
    elif format_ == "JPEG":
        at = data.index(b"\xff\xc0") + 5
        data[at : at + 4] = struct.pack(">HH", 16000, 16000)
    else:
        data[21:25] = struct.pack("<I", 15999 | 15999 << 14)
    return bytes(data)


@pytest.mark.parametrize("format_", FORMATS)
def test_bombs_are_not_decoded(format_: str) -> None:
    """A few hundred bytes must not become a gigabyte before somebody looks at the size."""
    data = large_of(format_)
    tracemalloc.start()
    try:
        message = refusal(url_of(data))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "million pixels" in message
    assert peak < 2**20


def test_limit_of_pillow_is_never_above_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow refuses by itself above a limit of the process, whose lifting is not a server's."""
    assert "far more than 0.06 million pixels" in refusal(url_of(png_of(60000, 60000)))
    with pytest.raises(ValueError, match=r"max_pixels 1000000000 is above Pillow's limit"):
        ImageLimits(max_pixels=10**9)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert "60000 × 60000" in refusal(url_of(png_of(60000, 60000)))


def test_scans_without_end() -> None:
    """Every scan of a progressive JPEG goes over all pixels, even one of a few bytes."""
    data = encoded("JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    again = data[:last] + data[last:-2] * 60 + data[-2:]
    assert read(url_of(data)).size == (60, 40)
    assert "JPEG of more than 50 scans" in refusal(url_of(again))


def mutations(count: int) -> Iterable[bytes]:
    """Images with bytes changed, cut out, doubled or cut off."""
    dice = random.Random(0)
    progressive = encoded("JPEG", progressive=True)
    sources = [path.read_bytes() for path in SHIPPED[:5]] + [encoded(each) for each in FORMATS]
    sources += [progressive, encoded("PNG", interlace=1), encoded("GIF", transparency=0)]
    for _ in range(count):
        data = bytearray(dice.choice(sources))
        for _ in range(dice.choice([1, 1, 2, 5, 20])):
            # Headers decide most: half of the places are among the first bytes.
            at = dice.randrange(min(len(data), dice.choice([64, len(data)])) or 1)
            match dice.randrange(5):
                case 0 | 1:
                    data[at : at + 1] = bytes([dice.choice([0, 1, 127, 128, 255, at % 256])])
                case 2:
                    data[at : at + 4] = struct.pack(dice.choice("><") + "I", dice.getrandbits(32))
                case 3:
                    del data[at : at + dice.choice([1, 2, 8, len(data)])]
                case _:
                    data[at:at] = data[at : at + dice.choice([1, 8, 100])]
        yield bytes(data)


@pytest.mark.filterwarnings("ignore:.*EXIF:UserWarning:PIL")
@pytest.mark.parametrize("count", [400, pytest.param(4_000, marks=pytest.mark.slow)])
def test_broken_images_are_refused_or_read(count: int) -> None:
    """Pillow's decoders raise what they stumble over, from struct.error to SyntaxError; of a server
    each would be an answer 500."""

    async def run() -> list[int]:
        reader, outcomes = ImageReader(LIMITS), [0, 0]
        for data in mutations(count):
            try:
                image = await reader.read(url_of(data))
            except ImageRefused:
                outcomes[0] += 1
            else:
                outcomes[1] += 1
                assert image.mode == "RGB"
                assert image.width * image.height <= LIMITS.max_pixels
        return outcomes

    refused, fine = asyncio.run(run())
    assert refused > count / 4
    assert fine > count / 20


@pytest.mark.parametrize(
    "limits",
    [
        {"max_bytes": 0},
        {"max_pixels": 0},
        {"timeout": 0.0},
        {"allowed_hosts": frozenset(["https://images.example"])},
        {"allowed_hosts": frozenset(["*.example"])},
        {"allowed_hosts": frozenset([""])},
    ],
)
def test_limits_that_are_none(limits: dict[str, object]) -> None:
    """A pattern among the hosts would never match, and nobody would know why."""
    with pytest.raises(ValueError, match=r"above zero|is no host"):
        ImageLimits(**limits)  # type: ignore[arg-type] # as an operator may write them


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1:18150",
        "localhost",
        "LOCALHOST:80",
        "a.localhost",
        "[::1]:80",
        "10.0.0.7",
        "[fe80::1]",
    ],
)
def test_hosts_that_are_never_asked(host: str) -> None:
    """The server started, and every request that named it was refused."""
    with pytest.raises(ValueError, match="no public address"):
        ImageLimits(allowed_hosts=frozenset([host]))


def test_public_addresses_may_be_named() -> None:
    hosts = frozenset(["images.example", "9.9.9.9:8443", "[2620:fe::fe]", "localhost.example"])
    assert ImageLimits(allowed_hosts=hosts).allowed_hosts == hosts
