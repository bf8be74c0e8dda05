"""The images of requests, which come from strangers: read within limits, or refused.

Knows no schema of requests: a URL comes in, pixels come out.
"""

from __future__ import annotations

import asyncio
import binascii
from base64 import b64decode
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from ipaddress import ip_address

import httpcore
from PIL import Image

from specdec.pixels import BrokenImage, NotAnImage, TooManyPixels, decode
from specdec.serving.fetch import Fetcher, NotFetched, Resolver, is_public

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
# Pictures decoded at once; each takes several bytes a pixel, and a core.
_THREADS = 2
# A progressive JPEG may go over all of its pixels in a few bytes, again and again. Usual are ten.
_MOST_SCANS = 50
_SCAN = b"\xff\xda"


Encoded = Callable[[], Image.Image]  # an image whose pixels are not there yet


class ImageRefused(ValueError):
    """An image is not read. The message names what was given, never what it holds."""


@dataclass(frozen=True)
class ImageLimits:
    """What an image may be and where it may come from.

    Attributes:
        max_bytes: of the image as it comes: encoded, without base64.
        max_pixels: width times height, checked before pixels are decoded; no more than Pillow's own
            ``Image.MAX_IMAGE_PIXELS``.
        allowed_hosts: names of hosts that images are fetched from, ``images.example`` or
            ``images.example:8443``; none by default.
        timeout: seconds that fetching one may take.
        formats: Pillow's names of those that are read.
    """

    max_bytes: int = 20 * 2**20
    max_pixels: int = 50_000_000
    allowed_hosts: frozenset[str] = field(default_factory=frozenset)
    timeout: float = 10.0
    formats: tuple[str, ...] = FORMATS

    def __post_init__(self) -> None:
        if self.max_bytes < 1 or self.max_pixels < 1 or self.timeout <= 0:
            raise ValueError(f"limits of images are above zero, not {self}")
        pillow = Image.MAX_IMAGE_PIXELS
        if pillow is not None and self.max_pixels > pillow:
            raise ValueError(f"max_pixels {self.max_pixels} is above Pillow's limit, {pillow}")
        for host in self.allowed_hosts:
            if not host or not host.isascii() or any(sign in host for sign in "/@*?# "):
                raise ValueError(
                    f"{host!r} is no host; name each like images.example or images.example:8443"
                )
            if _is_private(host):
                raise ValueError(
                    f"{host!r} is no public address, and images are fetched from such only, for "
                    "the sake of what else answers in there; have them sent as data: URLs"
                )


class ImageReader:
    """Reads what image URLs lead to. One serves all requests of a process.

    Args:
        limits: what is read.
        resolve: gives the addresses of a host; the system's by default.
        backend: opens connections to addresses; httpcore's by default.
    """

    def __init__(
        self,
        limits: ImageLimits | None = None,
        resolve: Resolver | None = None,
        backend: httpcore.AsyncNetworkBackend | None = None,
    ) -> None:
        self.limits = limits = limits or ImageLimits()
        self._fetcher = Fetcher(
            limits.allowed_hosts, limits.max_bytes, limits.timeout, resolve, backend
        )
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="specdec-images")

    async def read(self, url: str) -> Image.Image:
        """The image as RGB, turned upright; the first one of several.

        Args:
            url: ``data:…;base64,…``, or ``http:`` and ``https:`` where hosts are allowed.

        Raises:
            ImageRefused: see there. Nothing else.
        """
        return await self.decode(await self.fetch(url))

    async def fetch(self, url: str) -> Encoded:
        """The first half of :meth:`read`, which may wait for others: what the image is made of.

        Raises:
            ImageRefused: see there. Nothing else.
        """
        scheme, colon, rest = url.partition(":")
        shown = _shown(url)
        name = "this is no URL and" if shown is None else f"the image at {shown}"
        if colon and scheme.lower() == "data":
            return partial(self._inline, rest)
        if colon and scheme.lower() in ("http", "https") and self.limits.allowed_hosts:
            try:
                data = await self._fetcher.fetch(url)
            except NotFetched as error:
                raise ImageRefused(f"{name} {error}") from error
            return partial(self._decoded, data, name)
        raise ImageRefused(f"{name} is not read: {self._allowed()}")

    def _allowed(self) -> str:
        hosts = ", ".join(sorted(self.limits.allowed_hosts))
        only = "allowed are data: URLs in base64"
        return f"{only} and http(s): URLs of {hosts}" if hosts else f"{only} only"

    async def decode(self, image: Encoded) -> Image.Image:
        """The second half, which takes memory and a core.

        Raises:
            ImageRefused: see there. Nothing else.
        """
        return await asyncio.get_running_loop().run_in_executor(self._threads, image)

    def _inline(self, rest: str) -> Image.Image:
        """The image of a data URL, whose text after ``data:`` this is."""
        head, comma, text = rest.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise ImageRefused(
                "the image's data: URL is not of the form data:image/png;base64,…, which is the "
                "one that is read"
            )
        name = "the image in a data: URL"
        # Four characters are three bytes; up to two of the last four are padding.
        if len(text) // 4 * 3 - 2 > self.limits.max_bytes:
            raise ImageRefused(f"{name} has more than {self.limits.max_bytes} bytes, the limit")
        try:
            data = b64decode(text, validate=True)
        except (binascii.Error, ValueError) as error:
            raise ImageRefused(f"{name} is not base64") from error
        return self._decoded(data, f"{name} of {len(data)} bytes")

    def _decoded(self, data: bytes, name: str) -> Image.Image:
        limits = self.limits
        formats = ", ".join(limits.formats)
        if len(data) > limits.max_bytes:
            raise ImageRefused(f"{name} has more than {limits.max_bytes} bytes, the limit")
        # Within a scan 0xff is followed by something else, so that these are counted exactly.
        if data.startswith(b"\xff\xd8") and data.count(_SCAN) > _MOST_SCANS:
            raise ImageRefused(f"{name} is a JPEG of more than {_MOST_SCANS} scans, the limit")
        try:
            return decode(BytesIO(data), limits.max_pixels, limits.formats)
        except NotAnImage as error:
            raise ImageRefused(f"{name} is none of the formats read here: {formats}") from error
        except TooManyPixels as error:
            raise ImageRefused(f"{name} has {error}") from error
        except BrokenImage as error:
            raise ImageRefused(f"{name} is broken or truncated") from error


def _is_private(host: str) -> bool:
    """Whether it says by itself, with or without a port, that it is of this machine or network."""
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0].lower()
    try:
        ip_address(name)
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")
    return not is_public(name)


def _shown(url: str) -> str | None:
    """So much of a URL as tells it from others and keeps no secret: no user, path or query;
    ``None``: it is none.
    """
    scheme, colon, rest = url.partition(":")
    if not (colon and scheme.isascii() and scheme.isalnum() and len(scheme) <= 20):
        return None
    if not rest.startswith("//"):
        return f"a {scheme}: URL"
    host = rest[2:].split("/")[0].split("?")[0].split("#")[0].rpartition("@")[2]
    return (
        f"{scheme}://{host[:100]}/…"
        if host.isascii() and host.isprintable()
        else f"a {scheme}: URL"
    )
