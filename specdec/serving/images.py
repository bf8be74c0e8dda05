"""Images of requests: ``data:`` URLs."""

from __future__ import annotations

import base64
import io

from PIL import Image


class ImageRefused(ValueError):
    """An image cannot be had."""


class ImageReader:
    """Reads images."""

    async def read(self, url: str) -> Image.Image:
        """The image that a URL means."""
        head, _, data = url.partition(",")
        if not head.startswith("data:image/") or not head.endswith(";base64"):
            raise ImageRefused("expected data:image/…;base64,…")
        try:
            return Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")
        except Exception as error:
            raise ImageRefused("not an image") from error
