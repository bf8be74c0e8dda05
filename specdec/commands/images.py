"""Reading images that may be anything."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from specdec.commands.errors import UserError, reason

if TYPE_CHECKING:
    from PIL import Image


def read_image(path: Path, max_pixels: int) -> Image.Image:
    """The image as RGB, turned upright. Its size is checked before its pixels are decoded.

    Raises:
        UserError: it cannot be read, or has more than `max_pixels` pixels.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    _check_file(path)
    with _own_size_limit():
        try:
            image = Image.open(path)
        except UnidentifiedImageError as error:
            raise UserError(
                f"{path} is not an image that Pillow can read; convert it to PNG or JPEG"
            ) from error
        except OSError as error:
            raise UserError(f"{path} cannot be read: {reason(error)}") from error
        # A broken file makes Pillow's decoders raise whatever they stumble over.
        except Exception as error:
            raise UserError(f"{path} is a broken image: {reason(error)}") from error
        with image:
            pixels = image.width * image.height
            if pixels > max_pixels:
                raise UserError(
                    f"{path} has {image.width} × {image.height} = {pixels / 1e6:.1f} million "
                    f"pixels, the limit is {max_pixels / 1e6:g} million; scale it down or raise "
                    "--max-pixels"
                )
            try:
                return ImageOps.exif_transpose(image).convert("RGB")
            except Exception as error:
                raise UserError(
                    f"{path} is a broken or truncated image: {reason(error)}"
                ) from error


def _check_file(path: Path) -> None:
    try:
        if path.is_dir():
            raise UserError(f"{path} is a folder, --image takes an image file")
        if not path.exists():
            raise UserError(f"{path} does not exist; --image takes the path of an image file")
        empty = path.is_file() and path.stat().st_size == 0
    except OSError as error:
        raise UserError(f"{path} cannot be read: {reason(error)}") from error
    if empty:
        raise UserError(f"{path} is empty: 0 bytes")


@contextmanager
def _own_size_limit() -> Iterator[None]:
    """Pillow's limit on pixels is a module global that warns or raises; ours replaces it here."""
    from PIL import Image

    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with warnings.catch_warnings():
            # Such as "corrupt EXIF data": of no use to someone who reads a terminal.
            warnings.simplefilter("ignore", UserWarning)
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = before
