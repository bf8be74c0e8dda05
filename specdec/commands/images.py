"""Reading image files that may be anything."""

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
    from specdec.pixels import BrokenImage, NotAnImage, TooManyPixels, decode

    _check_file(path)
    try:
        with path.open("rb") as file, _own_size_limit():
            return decode(file, max_pixels)
    except NotAnImage as error:
        raise UserError(
            f"{path} is not an image that Pillow can read; convert it to PNG or JPEG"
        ) from error
    except TooManyPixels as error:
        raise UserError(f"{path} has {error}; scale it down or raise --max-pixels") from error
    except BrokenImage as error:
        raise UserError(f"{path} is a broken or truncated image: {reason(error)}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {reason(error)}") from error


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
