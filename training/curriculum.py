"""Terse questions and answers about a scene, from which the decoder learns to read before it learns
to talk."""

from __future__ import annotations

import random

from specdec.training import grading, scenes
from specdec.training.scenes import Entity, Scene
from specdec.training.wording import Turn


def _terse(e: Entity, kind: str) -> str:
    if kind == "grid":
        return str(e.value)
    if kind == "shapes":
        return f"{grading.place(e.row, e.col)} {e.color} {e.name}"
    return f"{e.name} {e.color} {e.value}" if kind == "bars" else f"{e.name} {e.head}{e.value}"


def brief(scene: Scene, rng: random.Random) -> list[Turn]:
    """Terse pairs for the curriculum: everything in reading order, then four look-ups."""
    if scene.kind == "grid":
        rows = [
            "".join(str(e.value) for e in scene.entities if e.row == r + 1)
            for r in range(scene.rows)
        ]
        turns = [Turn("all", "/".join(rows))]
    else:
        turns = [Turn("all", "; ".join(_terse(e, scene.kind) for e in scene.entities))]
    turns.append(Turn("first", _terse(scene.entities[0], scene.kind)))
    for e in rng.sample(scene.entities, min(3, len(scene.entities))):
        match scene.kind:
            case "grid":
                turns.append(Turn(f"row {e.row}, column {e.col}", str(e.value)))
            case "shapes":
                turns.append(Turn(e.name, f"{e.color} {grading.place(e.row, e.col)}"))
                turns.append(Turn(grading.place(e.row, e.col), f"{e.color} {e.name}"))
            case "bars":
                turns.append(Turn(e.name, f"{e.color} {e.value}"))
            case "receipt":
                turns.append(Turn(e.name, str(e.value)))
            case _:
                turns.append(Turn(f"{e.name} {e.head}", str(e.value)))
    pool = {"shapes": scenes.SHAPES, "bars": scenes.LETTERS, "receipt": scenes.ITEMS}.get(
        scene.kind, ()
    )
    absent = [name for name in pool if scene.find(name) is None]
    if absent:
        turns.append(Turn(rng.choice(absent), "no"))
    if scene.kind in ("bars", "receipt"):
        e = max(scene.entities, key=lambda e: e.value)
        turns.append(Turn("most", f"{e.name} {e.value}"))
    return turns
