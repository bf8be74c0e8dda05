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
        by_row: which inputs have the row before the image, as one of their dimensions.
    """

    tokens: Callable[[Picture], list[int]]
    pixels: Callable[[list[Picture]], Inputs]
    types: Callable[[Tensor, list[Picture]], Inputs] = lambda ids, pictures: {}
    sizes: int = 1
    videos: bool = False
    mixed: bool = False
    by_row: frozenset[str] = frozenset()

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


_BY_TOKEN = ("input_ids", "mm_token_type_ids", "token_type_ids", "cross_attention_mask")


def together(rows: list[Inputs], by_row: frozenset[str] = frozenset()) -> Inputs:
    """One ragged batch of prompts of one row each, padded on the left.

    What comes by token is padded along; what comes ``by_row`` and image gets empty images; what
    comes by image only is laid end to end.
    """
    longest = max(row["input_ids"].shape[1] for row in rows)
    mask = torch.zeros(len(rows), longest, dtype=torch.long)
    for place, row in enumerate(rows):
        mask[place, longest - row["input_ids"].shape[1] :] = 1
    batch = {"attention_mask": mask}
    for name in dict.fromkeys(name for row in rows for name in row):
        if name in _BY_TOKEN:
            shape = _largest([row[name] for row in rows if name in row])
            batch[name] = torch.zeros(len(rows), longest, *shape[2:], dtype=torch.long)
            for place, row in enumerate(rows):
                if name in row:
                    corner = (slice(longest - row[name].shape[1], None), *_corner(row[name])[1:])
                    batch[name][place][corner] = row[name][0]
            continue
        values = [row[name] for row in rows if name in row]
        by_image = name not in by_row
        batch[name] = torch.cat(values) if by_image else _stacked(rows, name)
    return batch


def _stacked(rows: list[Inputs], name: str) -> Tensor:
    """By row; those without are empty."""
    values = [row.get(name) for row in rows]
    some = [value for value in values if value is not None]
    stacked = some[0].new_zeros(len(rows), *_largest(some)[1:])
    for place, value in enumerate(values):
        if value is not None:
            stacked[place][_corner(value)] = value[0]
    return stacked


def _largest(values: list[Tensor]) -> list[int]:
    return [max(sizes) for sizes in zip(*(value.shape for value in values), strict=True)]


def _corner(value: Tensor) -> tuple[slice, ...]:
    """Where a row lies in a larger one."""
    return tuple(slice(size) for size in value.shape[1:])
