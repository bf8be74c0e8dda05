"""The tasks: which questions a scene answers, the facts they need, and a sentence that carries
them.

Everything is seeded like `scenes.make_scene`. A new task is one function here and one case in
`grading.parse`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Sequence

from specdec.training import grading, scenes
from specdec.training.scenes import Scene
from specdec.training.wording import Dialogue, Turn, Voice, listing

Answer = tuple[str, str, dict[str, str]]  # question, answer, fields
Task = Callable[[Scene, Voice], Answer]


def _absent(name: str, first: str) -> str:
    """That there is no such thing, but something else."""
    facts = f"{{there:there is|it has|one finds}} {{none:no|not one}} {name}"
    facts += "{in:, only others, and|, and| but} {first:the first|the topmost|the opening}"
    return f"{facts} {{one:one|entry|thing}} {{is:is|must be}} {first}"


def _other(scene: Scene, names: Sequence[str], w: Voice) -> str:
    """A name that nothing in the scene has."""
    return w.rng.choice([name for name in names if scene.find(name) is None])


def grid_cell(scene: Scene, w: Voice) -> Answer:
    """Look up one handwritten digit by row and column."""
    e = w.rng.choice(scene.entities)
    at = f"row {e.row}, column {e.col}"
    question = w.ask(f"Which digit is in {at}?", f"What is written in {at}?", f"Read {at}.")
    facts = f"{{digit:the digit|the figure|the sign}} {{in:in|found in|written in}} {at}"
    facts += " {of:of|on} {grid:the grid|the sheet|the form}"
    facts += f" {{is:is|reads|must be}} {{hand:a|clearly a|plainly a}} {e.value}"
    return question, w.wrap(facts), {"number": str(e.value)}


def grid_row(scene: Scene, w: Voice) -> Answer:
    """Read one row of handwritten digits."""
    row = w.rng.randint(1, scene.rows)
    digits = [str(e.value) for e in scene.entities if e.row == row]
    question = w.ask(
        f"Read row {row}.", f"Which digits are in row {row}?", f"Tell me the digits of row {row}."
    )
    facts = f"{{digits:the digits|the figures|the entries}} {{of:of|in|along}} row {row}"
    facts += " {are:are|read|say}{ordered:|, in order,|, left to right,}"
    facts += f" {listing(digits, w('and', 'and', 'then', 'and'))}"
    return question, w.wrap(facts), {f"digit{i}": d for i, d in enumerate(digits)}


def grid_read(scene: Scene, w: Voice) -> Answer:
    """Transcribe a grid as JSON."""
    rows = [[e.value for e in scene.entities if e.row == r + 1] for r in range(scene.rows)]
    question = w.ask(
        "Write the digits as JSON.", "Transcribe the grid to JSON.", "Give all digits as JSON."
    )
    facts = "{grid:the grid|the sheet|the form} {reads:reads|says|holds}"
    facts += " {as:this|the following|as follows}: " + str(rows).replace(" ", "")
    return (
        question,
        w.wrap(facts),
        {f"digit{i}": str(e.value) for i, e in enumerate(scene.entities)},
    )


def grid_sum(scene: Scene, w: Voice) -> Answer:
    """Add the first and the last handwritten digit."""
    first, last = scene.entities[0].value, scene.entities[-1].value
    question = w.ask(
        "Add the first and last digit.",
        "Sum of the first and last digit?",
        "First plus last digit?",
    )
    facts = "{first:the first|the opening|the top left} {d:digit|figure|sign}"
    facts += f" {{is:is|reads|must be}} {first} {{and:and|while|whereas}} the"
    facts += f" {{last:last|final|closing}} one {{is:is|reads|must be}} {last},"
    facts += " {so:so|hence|thus} {together:together they|both of them|as a sum they}"
    facts += f" {{give:give|make|come to}} {first + last}"
    return (
        question,
        w.wrap(facts),
        {"first": str(first), "last": str(last), "sum": str(first + last)},
    )


def shapes_describe(scene: Scene, w: Voice) -> Answer:
    """Describe every shape: outline, colour, place."""
    question = w.ask("Describe what you see.", "What does it show?", "Describe all shapes.")
    parts, fields = [], {"names": ",".join(e.name for e in scene.entities)}
    for e in scene.entities:
        thing = f"a {{tone:|plain |solid }}{e.color} {e.name}"
        at = f"{{where:at the|in the}} {w.place(e.row, e.col)}"
        verb = "{be:sits|lies|is|stands}"
        if w("order", "place", "thing") == "place":
            parts.append(f"{at} {verb} {thing}")
        else:
            parts.append(f"{thing} {verb} {at}")
        fields |= {f"{e.name}.color": e.color, f"{e.name}.place": grading.place(e.row, e.col)}
    facts = "{shown:there are|it holds|it has|one finds} {some:several|some|a few}"
    facts += " {sort:shapes|figures}:"
    return question, w.wrap(f"{facts} {listing(parts)}"), fields


def shapes_color(scene: Scene, w: Voice) -> Answer:
    """Colour and place of one shape."""
    e = w.rng.choice(scene.entities)
    question = _shape_asked(e.name, w)
    hue = f"{{is:is|looks|appears}} {e.color}"
    at = f"{{be:sits|lies|rests|stands}} {{at:at the|in the}} {w.place(e.row, e.col)}"
    at += " {of:of|in} {field:the field|the scene|the frame}"
    first_said, second = (hue, at) if w("order", "color", "place") == "color" else (at, hue)
    facts = f"the {e.name} {first_said} {{and:and|and it}} {second}"
    return question, w.wrap(facts), {"color": e.color, "place": grading.place(e.row, e.col)}


def shapes_absent(scene: Scene, w: Voice) -> Answer:
    """A shape that is not there."""
    name, first = _other(scene, scenes.SHAPES, w), scene.entities[0]
    fields = {"present": "no", "color": first.color, "shape": first.name}
    facts = _absent(name, f"a {first.color} {first.name}")
    return _shape_asked(name, w), w.wrap(facts), fields


def _shape_asked(name: str, w: Voice) -> str:
    return w.ask(
        f"What color is the {name}?", f"Where is the {name}?", f"Tell me about the {name}."
    )


def shapes_at(scene: Scene, w: Voice) -> Answer:
    """Which shape is at a place."""
    e = w.rng.choice(scene.entities)
    at = grading.place(e.row, e.col)
    question = w.ask(
        f"What is at the {at}?", f"Which shape is at the {at}?", f"Name the shape at the {at}."
    )
    facts = f"{{thing:the shape|the thing|the object}} {{at:at|placed at|drawn at}} the {at}"
    facts += f" {{is:is|must be|can only be}} a {{tone:|plain |solid }}{e.color} {e.name}"
    return question, w.wrap(facts), {"color": e.color, "shape": e.name}


def bar_value(scene: Scene, w: Voice) -> Answer:
    """Length and colour of one bar."""
    e = w.rng.choice(scene.entities)
    question = _bar_asked(e.name, w)
    reach = f"{{reach:reaches|goes to|runs to|ends at}} {e.value}"
    reach += " {on:on|along} {axis:the axis|the scale}"
    if w("order", "color", "value") == "color":
        facts = f"bar {e.name}{{which:, which is|, drawn in|, painted}} {e.color}, {reach}"
    else:
        facts = f"bar {e.name} {reach}{{which: and is|, drawn in|, painted}} {e.color}"
    return question, w.wrap(facts), {"color": e.color, "number": str(e.value)}


def bar_absent(scene: Scene, w: Voice) -> Answer:
    """A bar that is not there."""
    name, first = _other(scene, scenes.LETTERS, w), scene.entities[0]
    facts = _absent(f"bar {name}", f"{first.name}, which is {first.color}")
    fields = {"present": "no", "first": first.name, "color": first.color}
    return _bar_asked(name, w), w.wrap(facts), fields


def _bar_asked(name: str, w: Voice) -> str:
    return w.ask(f"How long is bar {name}?", f"What value has bar {name}?", f"Read bar {name}.")


def bar_compare(scene: Scene, w: Voice) -> Answer:
    """Which of two bars is longer and by how much."""
    a, b = w.rng.sample(scene.entities, 2)
    question = w.ask(
        f"Compare bars {a.name} and {b.name}.", f"Which is longer, {a.name} or {b.name}?"
    )
    longer = a if a.value > b.value else b
    verb = "{reach:reaches|goes to|runs to|ends at}"
    facts = (
        f"bar {a.name} {verb} {a.value} {{and:and|while|whereas}} bar {b.name} {verb} {b.value},"
    )
    facts += " {so:so|hence|thus} with {gap:a gap|a lead|a difference} of"
    facts += f" {abs(a.value - b.value)} {{longer:the longer|the bigger|the larger}}"
    facts += f" {{is:is|one is}} {longer.name}"
    fields = {
        "first": str(a.value),
        "second": str(b.value),
        "difference": str(abs(a.value - b.value)),
    }
    return question, w.wrap(facts), {**fields, "longer": longer.name}


def bar_extreme(scene: Scene, w: Voice) -> Answer:
    """The longest and the shortest bar with their lengths."""
    high, low = (
        max(scene.entities, key=lambda e: e.value),
        min(scene.entities, key=lambda e: e.value),
    )
    question = w.ask(
        "Which bars are extreme?", "Longest and shortest bar?", "Name the longest and shortest bar."
    )
    verb = "{reach:reaches|goes to|runs to|ends at}"
    facts = f"the {{tall:longest|biggest|largest}} {{bar:bar|stripe}} is {high.name},"
    facts += f" which {verb} {high.value},"
    facts += " {and:and|while|whereas} the {short:shortest|least|smallest} is"
    facts += f" {low.name}, which {verb} {low.value}"
    return (
        question,
        w.wrap(facts),
        {
            "longest": high.name,
            "shortest": low.name,
            "high": str(high.value),
            "low": str(low.value),
        },
    )


def bar_table(scene: Scene, w: Voice) -> Answer:
    """Transcribe a chart to a Markdown table."""
    question = w.ask(
        "Write the chart as Markdown.",
        "Turn the chart into a Markdown table.",
        "Chart to Markdown?",
    )
    rows = "".join(f"\n| {e.name} | {e.color} | {e.value} |" for e in scene.entities)
    facts = "{chart:the chart|the diagram|the plot} {reads:reads|says|holds}"
    facts += (
        f" {{as:this|the following|as follows}}:\n| bar | color | value |\n|---|---|---|{rows}\n"
    )
    fields = {"names": ",".join(e.name for e in scene.entities)}
    for e in scene.entities:
        fields |= {f"{e.name}.color": e.color, f"{e.name}.number": str(e.value)}
    return question, f"{w.opening()} {w.say(facts)}{w.closing()}", fields


def receipt_price(scene: Scene, w: Voice) -> Answer:
    """The price of one item."""
    e = w.rng.choice(scene.entities)
    facts = f"{{price:the price|the cost|the amount}} {{of:of|for|next to}} {e.name}"
    facts += f" {{is:is|reads|must be}} {e.value}"
    facts += " {on:on|according to} {slip:the slip|the bill|the list}"
    return _price_asked(e.name, w), w.wrap(facts), {"number": str(e.value)}


def receipt_absent(scene: Scene, w: Voice) -> Answer:
    """An item that is not on the receipt."""
    name, first = _other(scene, scenes.ITEMS, w), scene.entities[0]
    facts = _absent(name, first.name)
    return _price_asked(name, w), w.wrap(facts), {"present": "no", "first": first.name}


def _price_asked(name: str, w: Voice) -> str:
    return w.ask(f"What does {name} cost?", f"Price of {name}?", f"How much is {name}?")


def receipt_json(scene: Scene, w: Voice) -> Answer:
    """Transcribe a receipt to JSON."""
    question = w.ask(
        "Write the receipt as JSON.", "Transcribe the receipt to JSON.", "Receipt to JSON?"
    )
    body = ", ".join(f'"{e.name}": {e.value}' for e in scene.entities)
    facts = "{receipt:the receipt|the bill|the slip} {reads:reads|says|holds}"
    facts += f" {{as:this|the following|as follows}}: {{{body}}}"
    fields = {"names": ",".join(e.name for e in scene.entities)}
    return (
        question,
        w.wrap(facts),
        fields | {f"{e.name}.number": str(e.value) for e in scene.entities},
    )


def receipt_dearest(scene: Scene, w: Voice) -> Answer:
    """The dearest item and its price."""
    e = max(scene.entities, key=lambda e: e.value)
    question = w.ask(
        "Which item costs most?", "What is the dearest item?", "Name the dearest item."
    )
    facts = f"{{most:the dearest|the costliest|the priciest}} {{item:item|line|thing}} is {e.name},"
    facts += f" {{at:with a price of|at a cost of|which costs|priced at}} {e.value}"
    return question, w.wrap(facts), {"item": e.name, "number": str(e.value)}


def table_cell(scene: Scene, w: Voice) -> Answer:
    """Look up a person's value in one column."""
    e = w.rng.choice(scene.entities)
    question = w.ask(
        f"What is {e.head} of {e.name}?",
        f"Read {e.head} for {e.name}.",
        f"{e.name}, column {e.head}?",
    )
    facts = f"{{value:the value|the entry|the figure}} {{of:of|for}} {e.name}"
    facts += f" {{under:under|below|in column}} {e.head} {{is:is|reads|must be}} {e.value}"
    return question, w.wrap(facts), {"number": str(e.value)}


def table_row(scene: Scene, w: Voice) -> Answer:
    """Both values of one person."""
    person = w.rng.choice(scene.entities).name
    cells = [e for e in scene.entities if e.name == person]
    question = w.ask(
        f"Read the row of {person}.",
        f"What are the values of {person}?",
        f"Tell me about {person}.",
    )
    verb = w("is", "is", "reads", "must be")
    facts = f"{{row:the row|the line}} {{of:of|for}} {person} {{has:has|shows|holds}}"
    facts += " two entries, " + listing(
        [f"{e.head} {verb} {e.value}" for e in cells], w("and", "and", "while")
    )
    fields = {"names": ",".join(e.head for e in cells)}
    return question, w.wrap(facts), fields | {f"{e.head}.number": str(e.value) for e in cells}


def pair_first(one: Scene, two: Scene, w: Voice) -> Answer:
    """Two images: the first shape of each."""
    a, b = one.entities[0], two.entities[0]
    question = w.ask(
        "What comes first in each image?", "Compare the first shapes.", "First shape of both?"
    )
    facts = "{one:the first one|the former} {has:begins with|starts with|opens with}"
    facts += f" a {a.color} {a.name}"
    facts += " {and:and|while|whereas} {two:the second one|the latter}"
    facts += " {has:begins with|starts with|opens with}"
    facts += f" a {b.color} {b.name}"
    fields = {"color0": a.color, "shape0": a.name, "color1": b.color, "shape1": b.name}
    return question, w.wrap(facts), fields


TASKS: dict[str, dict[str, Task]] = {
    "grid": {
        "grid_cell": grid_cell,
        "grid_row": grid_row,
        "grid_read": grid_read,
        "grid_sum": grid_sum,
    },
    "shapes": {
        "shapes_describe": shapes_describe,
        "shapes_color": shapes_color,
        "shapes_absent": shapes_absent,
        "shapes_at": shapes_at,
    },
    "bars": {
        "bar_value": bar_value,
        "bar_absent": bar_absent,
        "bar_compare": bar_compare,
        "bar_extreme": bar_extreme,
        "bar_table": bar_table,
    },
    "receipt": {
        "receipt_price": receipt_price,
        "receipt_absent": receipt_absent,
        "receipt_json": receipt_json,
        "receipt_dearest": receipt_dearest,
    },
    "table": {"table_cell": table_cell, "table_row": table_row},
}
FOLLOW_UPS = ("grid_row", "shapes_at", "bar_extreme", "bar_compare", "receipt_dearest", "table_row")
TASK_NAMES = (*(task for tasks in TASKS.values() for task in tasks), "pair_first")
KIND_OF = {task: kind for kind, tasks in TASKS.items() for task in tasks} | {"pair_first": "shapes"}

_KIND = {
    "grid": "a form",
    "shapes": "a drawing",
    "bars": "a chart",
    "receipt": "a receipt",
    "table": "a table",
}


def kinds(tasks: Collection[str]) -> tuple[str, ...]:
    """The kinds of scene that these tasks ask about."""
    return tuple(kind for kind in scenes.KINDS if any(KIND_OF[task] == kind for task in tasks))


def about(scene: Scene, task: str, seed: int, follow_up: bool = False) -> Dialogue:
    """A dialogue of this task about one scene; a follow-up comes after a short first question."""
    voice = Voice(random.Random(f"{scene.split}-{scene.seed}-{task}-{seed}-{follow_up}"))
    question, answer, fields = TASKS[scene.kind][task](scene, voice)
    turns: tuple[Turn, ...] = (Turn(question, answer),)
    if follow_up:
        turns = (Turn("What is this?", _KIND[scene.kind]), *turns)
    return Dialogue(task, (scene,), turns, fields)


def about_pair(first: Scene, second: Scene, seed: int) -> Dialogue:
    """A two-image dialogue about two scenes of shapes."""
    voice = Voice(random.Random(f"{first.split}-{first.seed}-{second.seed}-{seed}"))
    question, answer, fields = pair_first(first, second, voice)
    return Dialogue("pair_first", (first, second), (Turn(question, answer),), fields)
