"""Every family against every check: `python tests/families_table.py [FAMILY …]`.

Prints the table and, when it has run over all families, writes it to docs/families.md. Exits with 1
if anything differed in fp32. SPECDEC_FAMILY_PROMPTS and SPECDEC_FAMILY_TOKENS set its size.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent))
os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers

from support import families
from support.families import checks

PROMPTS = int(os.environ.get("SPECDEC_FAMILY_PROMPTS", "20"))
TOKENS = int(os.environ.get("SPECDEC_FAMILY_TOKENS", "64"))
TARGET = Path(__file__).resolve().parent.parent / "docs" / "families.md"
HEAD = """# Families

Each is built small from its transformers config, with random, sharpened weights, and compared with
transformers' own decoding on a CPU (transformers {version}, torch {torch}). Made by
`python tests/families_table.py`.

- *greedy*: answers in fp32 against `model.generate`: {prompts} prompts of {tokens} tokens each,
  with images in all places and without any, in one ragged batch, for each of three trees (of
  Qwen3.5: three chains) and a drafter that is never and one that is often right.
- *nodes*: the largest difference of any tree node's logits from plain decoding of its path, in
  fp32, relative to the largest logit; a tree of eight nodes for each placement of the images.
- *bf16*: tokens compared with `model.generate` up to the first that differs, answers that differ at
  all, and how far apart the two likeliest tokens were there, relative to the largest logit.

| family | images | greedy: tokens | differ | nodes | bf16: tokens | differ | gap |
|---|---|---:|---:|---:|---:|---:|---:|
"""


class Row(NamedTuple):
    """A family's line. ``differ``: answers that are not those of ``model.generate``, in fp32."""

    text: str
    tokens: int
    differ: int


def measure(name: str) -> Row:
    """All checks of one family."""
    counts = checks.greedy(name, PROMPTS, TOKENS).values()
    tokens, differ = (sum(column) for column in zip(*counts, strict=True))
    layouts = checks.build(name).layouts
    torch.manual_seed(0)
    worst = max(checks.node_error(name, seed, layout) for seed, layout in enumerate(layouts))
    bf16 = checks.rounded(name, PROMPTS, TOKENS)
    places = ", ".join(layouts) if name in families.SIGHTED else "–"
    text = f"| {name} | {places} | {tokens:,} | {differ} | {worst:.1e} "
    text += f"| {bf16.tokens:,} | {bf16.parted} | {bf16.gap:.3f} |"
    return Row(text, tokens, differ)


def main(names: list[str]) -> int:
    head = HEAD.format(
        version=transformers.__version__, torch=torch.__version__, prompts=PROMPTS, tokens=TOKENS
    )
    print(head, end="", flush=True)
    rows = []
    for name in names or families.NAMES:
        rows.append(measure(name))
        print(rows[-1].text, flush=True)
    tokens, differ = sum(row.tokens for row in rows), sum(row.differ for row in rows)
    foot = f"\nIn fp32 {tokens:,} tokens were compared; {differ} answers differ.\n"
    print(foot)
    if not names:
        TARGET.write_text(head + "".join(row.text + "\n" for row in rows) + foot)
    return int(differ > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
