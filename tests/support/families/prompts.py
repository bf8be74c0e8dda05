"""Prompts with pictures in all places, without a processor: placeholders and pixels made here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

VOCAB, IMAGE, VIDEO, PAD, EOS = 160, 150, 151, 0, 1
START, END, SPLIT = 152, 153, 154  # around a picture, and within it
WORDS = 140  # words are below

Inputs = dict[str, Tensor]


class Picture(NamedTuple):
    """An image, or a video. ``size`` is 0 or 1; ``seed`` is that of its pixels."""

    seed: int
    size: int = 0
    video: bool = False


class Eyes(NamedTuple):
    """How a family sees.

    Attributes:
        tokens: what stands for a picture in the prompt.
        pixels: what ``generate`` takes for all pictures of a prompt, in order.
        types: what else it takes, made from the ids and the pictures.
        sizes: how many sizes pictures come in.
        videos: whether they may be videos.
        mixed: whether videos and images may be in one prompt.
    """

    tokens: Callable[[Picture], list[int]]
    pixels: Callable[[list[Picture]], Inputs]
    types: Callable[[Tensor, list[Picture]], Inputs] = lambda ids, pictures: {}
    sizes: int = 1
    videos: bool = False
    mixed: bool = False

    @property
    def layouts(self) -> tuple[str, ...]:
        """Where the pictures of a prompt may be."""
        more = ["video"] * self.videos + ["mixed"] * self.mixed
        return ("inside", "start", "end", "apart", "none", *more)


def inputs(eyes: Eyes | None, seed: int, text: int, layout: str = "inside") -> Inputs:
    """What ``generate`` takes: one row of ``text`` words with pictures, whose number, sizes and
    places depend on ``layout`` and ``seed``. A family without eyes gets the words.

    ``inside``: one or two images side by side; ``start``, ``end``: one at the very beginning or
    end; ``apart``: two with text between them, of different sizes if there are any; ``video``: a
    video; ``mixed``: an image and a video; ``none``: words only.
    """
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(2, WORDS, (text,), generator=generator).tolist()
    if eyes is None:
        return {"input_ids": torch.tensor([words])}
    ids: list[int] = []
    pictures = []
    for part in _parts(words, seed, layout):
        if isinstance(part, Picture):
            part = part._replace(size=part.size % eyes.sizes)
            pictures.append(part)
            ids += eyes.tokens(part)
        else:
            ids.append(part)
    row = torch.tensor([ids])
    given = {"input_ids": row, **eyes.types(row, pictures)}
    for video in (False, True):
        some = [picture for picture in pictures if picture.video is video]
        given |= eyes.pixels(some) if some else {}
    return given


def _parts(words: list[int], seed: int, layout: str) -> Iterator[int | Picture]:
    cut = 1 + seed % max(len(words) - 2, 1)
    first, second = Picture(seed), Picture(seed + 500, size=1)
    if layout == "inside":
        yield from [*words[:cut], first, *[second._replace(size=0)] * (seed % 2), *words[cut:]]
    elif layout == "apart":
        yield from [*words[:cut], first, words[cut], second, *words[cut + 1 :]]
    elif layout == "start":
        yield from [second, *words]
    elif layout == "end":
        yield from [*words, first]
    elif layout == "video":
        yield from [*words[:cut], first._replace(video=True), *words[cut:]]
    elif layout == "mixed":
        yield from [*words[:cut], second, words[cut], first._replace(video=True), *words[cut + 1 :]]
    else:
        assert layout == "none", layout
        yield from words


def noise(picture: Picture, *shape: int) -> Tensor:
    """The picture's pixels."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(picture.seed + 1000))
