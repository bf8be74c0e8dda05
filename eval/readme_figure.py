"""The README's picture, drawn from recorded figures: `python -m specdec.eval.readme_figure`.

A bar a drafter: how much faster than transformers' ``generate`` it decodes, and end to end. Plain
SVG, with colours for light and dark pages. Measures nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any
from xml.sax.saxutils import escape

import typer

from specdec.files import write_text

RECORD = Path("docs/results/drafters.json")
PICTURE = Path("docs/speed.svg")
TREE = "chain of 8"
UNIT = 105  # pixels for a speedup of 1
LEFT, TOP, ROW, BAR, WIDTH = 156, 80, 42, 14, 540

Json = Mapping[str, Any]  # Any: JSON values

_STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #1f2328; }
  .small { font-size: 11px; fill: #59636e; }
  .title { font-size: 15px; font-weight: 600; }
  .back { fill: #ffffff; } .one { stroke: #59636e; } .interval { stroke: #1f2328; }
  .decode { fill: #7986cb; } .whole { fill: #c5cae9; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3; } .small { fill: #9198a1; }
    .back { fill: #0d1117; } .one { stroke: #9198a1; } .interval { stroke: #e6edf3; }
    .decode { fill: #5c6bc0; } .whole { fill: #303a70; }
  }
"""


def figure(record: Json, tree: str) -> str:
    """The picture of what the drafters of ``record`` achieve with ``tree``.

    Raises:
        ValueError: no drafter was measured with it.
    """
    ending = f", {tree}"
    rows = {
        name.removesuffix(ending): entry["tasks"]["all"]
        for name, entry in record["drafters"].items()
        if name.endswith(ending)
    }
    if not rows:
        trees = sorted({name.split(", ", 1)[1] for name in record["drafters"]})
        raise ValueError(f"no drafter was measured with {tree!r}; there are: {', '.join(trees)}")
    height = TOP + ROW * len(rows) + 40
    machine = record["machine"]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        f'viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="{escape(_said(rows))}">',
        f"<style>{_STYLE}</style>",
        f'<rect class="back" width="{WIDTH}" height="{height}" rx="6"/>',
        f'<text class="title" x="16" y="26">Speed, × transformers’ generate, {escape(tree)}</text>',
        f'<text class="small" x="16" y="44">embedded model, {record["dtype"]}, greedy, '
        f"{record['questions']} questions, medians with 95 % intervals</text>",
        f'<text class="small" x="16" y="59">{escape(machine["cpu"])}, {machine["cores"]} cores'
        "</text>",
    ]
    for index, (name, row) in enumerate(rows.items()):
        y = TOP + ROW * index
        parts.append(f'<text x="16" y="{y + 16}">{escape(name)}</text>')
        parts.append(
            f'<text class="small" x="16" y="{y + 31}">'
            f"{row['mean_acceptance_length']:.2f} tokens a step</text>"
        )
        parts += _bar("decode", y, row["speedup_decode"], "decoding")
        parts += _bar("whole", y + BAR + 2, row["speedup_end_to_end"], "end to end")
    one = LEFT + UNIT
    bottom = TOP + ROW * len(rows)
    parts += [
        f'<line class="one" x1="{one}" x2="{one}" y1="{TOP - 6}" y2="{bottom}" '
        'stroke-dasharray="3 3"/>',
        f'<text class="small" x="{one}" y="{bottom + 16}" text-anchor="middle">generate</text>',
        f'<text class="small" x="16" y="{bottom + 16}">upper bar: decoding;</text>',
        f'<text class="small" x="16" y="{bottom + 30}">lower: end to end</text>',
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _bar(kind: str, y: int, speed: Mapping[str, float], what: str) -> list[str]:
    end, low, high = (LEFT + UNIT * speed[key] for key in ("median", "low", "high"))
    middle = y + BAR / 2
    return [
        f'<rect class="{kind}" x="{LEFT}" y="{y}" width="{end - LEFT:.1f}" height="{BAR}">'
        f"<title>{what}: {_interval(speed)}</title></rect>",
        f'<line class="interval" x1="{low:.1f}" x2="{high:.1f}" y1="{middle}" y2="{middle}"/>',
        f'<text class="small" x="{high + 6:.1f}" y="{y + BAR - 4}">{speed["median"]:.2f}</text>',
    ]


def _interval(speed: Mapping[str, float]) -> str:
    return f"{speed['median']:.2f} [{speed['low']:.2f}, {speed['high']:.2f}]"


def _said(rows: Mapping[str, Json]) -> str:
    each = (f"{name} {row['speedup_decode']['median']:.2f}" for name, row in rows.items())
    return f"Decoding speed over transformers' generate: {', '.join(each)}"


def readme_figure(
    record: Annotated[Path, typer.Option(help="Of `specdec.eval.drafters`.")] = RECORD,
    tree: Annotated[str, typer.Option(help="The tree whose figures are drawn.")] = TREE,
    out: Annotated[Path, typer.Option(help="SVG file to write.")] = PICTURE,
) -> None:
    """Draw what the drafters achieve."""
    try:
        picture = figure(json.loads(record.read_text(encoding="utf-8")), tree)
    except (OSError, ValueError, KeyError) as error:
        raise typer.BadParameter(f"{record}: {error}") from error
    write_text(out, picture)


if __name__ == "__main__":
    typer.run(readme_figure)
