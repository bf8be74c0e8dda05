"""Decoding images that may be anything. Knows neither files nor requests."""

from __future__ import annotations

from typing import IO

from PIL import Image, ImageOps, UnidentifiedImageError


class NotAnImage(ValueError):
    """The bytes are of no format that is read."""


class BrokenImage(ValueError):
    """The bytes are an image's, and not all of one; the message is the decoder's."""


class TooManyPixels(ValueError):
    """The image is larger than it may be. The message says how large, and the limit."""


def decode(
    source: IO[bytes], max_pixels: int, formats: tuple[str, ...] | None = None
) -> Image.Image:
    """The first frame as RGB, turned upright. Its size is checked before its pixels are decoded.

    Args:
        source: the image's bytes; it may be read in any order.
        max_pixels: width times height at most. Pillow has a limit beside it, for the process.
        formats: Pillow's names of those that are tried; all that it reads by default.

    Raises:
        NotAnImage, BrokenImage, TooManyPixels: see there. Nothing else.
    """
    try:
        image = Image.open(source, formats=formats)
    except UnidentifiedImageError as error:
        raise NotAnImage(str(error)) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TooManyPixels(f"far more than {_millions(max_pixels)} pixels, the limit") from error
    # A broken file makes Pillow's decoders raise whatever they stumble over.
    except Exception as error:
        raise BrokenImage(str(error)) from error
    with image:
        pixels = image.width * image.height
        if pixels > max_pixels:
            raise TooManyPixels(
                f"{image.width} × {image.height} = {pixels / 1e6:.1f} million pixels, the limit is "
                f"{_millions(max_pixels)}"
            )
        try:
            return ImageOps.exif_transpose(image).convert("RGB")
        except Exception as error:
            raise BrokenImage(str(error)) from error


def _millions(pixels: int) -> str:
    return f"{pixels / 1e6:g} million"
