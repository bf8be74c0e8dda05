"""What is drawn from a source, what of it is left out, and what each adapter makes of a row."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest

from specdec.eval import questions
from specdec.eval.adapters import CAPTION
from specdec.eval.catalog import CHOICES_SHORT
from specdec.eval.dialogue_adapters import CHOOSE
from specdec.eval.questions import Questions, load
from specdec.training import prompts
from specdec.training.prompts import Asked
from support import processors

STRING, STRINGS = datasets.Value("string"), datasets.List(datasets.Value("string"))
IMAGE = datasets.Image()


def save(
    path: Path, columns: dict[str, tuple[Any, list[Any]]], broken: tuple[int, ...] = ()
) -> str:
    """A data set, each column with its kind, in a folder; images are numbers of noise, those of
    the rows in ``broken`` end too early.
    """
    rows: dict[str, list[Any]] = {}
    for name, (kind, cells) in columns.items():
        if kind is IMAGE:
            cells = [
                None if cell is None else {"bytes": encoded(cell, row in broken), "path": None}
                for row, cell in enumerate(cells)
            ]
        elif kind == datasets.List(IMAGE):
            cells = [[{"bytes": encoded(image), "path": None} for image in cell] for cell in cells]
        rows[name] = cells
    features = datasets.Features({name: kind for name, (kind, _) in columns.items()})
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(path))
    return str(path)


def encoded(seed: int, broken: bool = False) -> bytes:
    """An image file."""
    buffer = io.BytesIO()
    processors.image(seed).save(buffer, "PNG")
    data = buffer.getvalue()
    return data[: len(data) // 2] if broken else data


def vqa(path: Path, rows: int = 12, broken: tuple[int, ...] = (), **changed: Any) -> str:
    """A table like ChartQA's, of two tasks, a third of its rows of the first; ``changed``: cells
    by column.
    """
    columns = {
        "type": (STRING, ["human_test" if i % 3 == 0 else "augmented_test" for i in range(rows)]),
        "question": (STRING, [f"How many {i}?" for i in range(rows)]),
        "answer": (STRING, [str(i) for i in range(rows)]),
        "image": (IMAGE, list(range(rows))),
    }
    for name, cells in changed.items():
        kind, old = columns[name]
        columns[name] = kind, [cells.get(i, cell) for i, cell in enumerate(old)]
    return save(path, columns, broken)


def text(asked: Asked) -> str:
    """The last text of a prompt."""
    found: str = asked.messages[-1]["content"][-1]["text"]
    return found


def shows(asked: Asked, *seeds: int) -> bool:
    """Whether its images are these, and its messages say so."""
    marks = [part for turn in asked.messages for part in turn["content"] if part["type"] == "image"]
    pixels = [image.tobytes() for image in asked.images]
    return len(marks) == len(seeds) and pixels == [
        processors.image(seed).tobytes() for seed in seeds
    ]


CASES: dict[str, tuple[dict[str, tuple[Any, list[Any]]], str, str | None, str, tuple[str, str]]] = {
    # name: columns, question, metric, task, and a right and a wrong answer
    "GQA-joined": (
        {
            "id": (STRING, ["7"]),
            "question": (STRING, ["Is it red?"]),
            "answer": (STRING, ["no"]),
            "image": (IMAGE, [3]),
            "types": ({"semantic": STRING, "structural": STRING}, [{"structural": "verify"}]),
        },
        "Is it red?",
        "exact match",
        "verify",
        ("No.", "no, it is green"),
    ),
    "textvqa": (
        {
            "question": (STRING, ["what is the brand?"]),
            "answers": (STRINGS, [["nokia"] * 10]),
            "image": (IMAGE, [3]),
            "ocr_tokens": (STRINGS, [["NOKIA"]]),
        },
        "what is the brand?",
        "vqa accuracy",
        "",
        ("the Nokia", "sony"),
    ),
    "COCO-Caption": (
        {
            "question": (STRING, ["Please come up with a caption."]),
            "answer": (STRINGS, [["a dog", "a dog on grass"]]),
            "image": (IMAGE, [3]),
        },
        "Please come up with a caption.",
        None,
        "",
        ("", ""),
    ),
    "lmms-ChartQA": (
        {
            "type": (STRING, ["human_test"]),
            "question": (STRING, ["How many?"]),
            "answer": (STRING, ["100"]),
            "image": (IMAGE, [3]),
        },
        "How many?",
        "relaxed accuracy",
        "human_test",
        ("104", "106"),
    ),
    "m4-chartqa": (
        {
            "image": (IMAGE, [3]),
            "query": (STRING, ["How many?"]),
            "label": (STRINGS, [["100"]]),
            "human_or_machine": (datasets.ClassLabel(names=["human", "machine"]), [1]),
        },
        "How many?",
        "relaxed accuracy",
        "machine",
        ("96", "94"),
    ),
    "CharXiv": (
        {
            "category": (STRING, ["physics"]),
            "image": (IMAGE, [3]),
            "descriptive_q1": (datasets.Value("int64"), [4]),
            "reasoning_q": (STRING, ["Which line rises?"]),
            "reasoning_a": (STRING, ["Model A"]),
        },
        "Which line rises?",
        "exact match",
        "physics",
        ("model a", "A"),
    ),
    "DocVQA": (
        {
            "questionId": (STRING, ["9"]),
            "question": (STRING, ["What is the date?"]),
            "question_types": (STRINGS, [["handwritten", "form"]]),
            "image": (IMAGE, [3]),
            "answers": (STRINGS, [["1/8/93", "Jan 8"]]),
        },
        "What is the date?",
        "anls",
        "handwritten",
        ("1/8/93", "unknown"),
    ),
    "mine-plain": (
        {"prompt": (STRING, ["What is it?"]), "images": (datasets.List(IMAGE), [[3]])},
        "What is it?",
        None,
        "",
        ("", ""),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_columns_of_the_usual_data_sets(name: str, tmp_path: Path) -> None:
    """The adapter is found by the data set's name; question, image, task and answers come from the
    columns that the copies on the hub have.
    """
    columns, question, metric, task, (right, wrong) = CASES[name]
    found = load(save(tmp_path / name, columns), count=None, seed=0)
    [asked] = found.asked
    assert asked.messages[0]["role"] == "user"
    assert (text(asked), asked.task, found.metric) == (question, task, metric)
    assert shows(asked, 3)
    assert asked.where == f"{name} row 0"
    assert found.tasks == ({task: 1} if task else {})
    if metric is None:
        assert found.score(0, "a dog") is None
    else:
        assert found.score(0, right) == 1.0
        assert found.score(0, wrong) == 0.0


def test_captions_without_words(tmp_path: Path) -> None:
    """A copy without questions asks for a description, not for nothing."""
    columns: dict[str, tuple[Any, list[Any]]] = {
        "captions": (STRINGS, [["a dog"]]),
        "image": (IMAGE, [3]),
    }
    path = save(tmp_path / "coco", columns)
    assert text(load(path, count=1, seed=0).asked[0]) == CAPTION
    short = load(f"{path}@+short", count=1, seed=0).asked[0]
    assert text(short) == f"{CAPTION}\nUse one sentence."


def test_images_of_gqa_come_from_their_own_table(tmp_path: Path) -> None:
    """Images are found by key, not by place; a key without an image costs its row only."""
    columns: dict[str, tuple[Any, list[Any]]] = {
        "question": (STRING, ["first?", "second?", "third?"]),
        "answer": (STRING, ["yes", "no", "no"]),
        "imageId": (STRING, ["n2", "n5", "gone"]),
    }
    path = save(tmp_path / "gqa_instructions", columns)
    save(tmp_path / "gqa_images", {"id": (STRING, ["n5", "n2"]), "image": (IMAGE, [5, 2])})
    found = load(path, count=None, seed=0)
    assert [text(each) for each in found.asked] == ["first?", "second?"]
    assert shows(found.asked[0], 2)
    assert shows(found.asked[1], 5)
    [skipped] = found.skipped
    assert skipped == ("gqa_instructions row 2", "gqa_images has no image 'gone'")
    other = save(tmp_path / "gqa", columns)
    with pytest.raises(ValueError, match=r'keys of images in imageId, but no images.*"images"'):
        load(other, count=None, seed=0)
    save(tmp_path / "b_instructions", columns)
    save(tmp_path / "b_images", {"key": (STRING, ["n2"]), "image": (IMAGE, [2])})
    with pytest.raises(ValueError, match="b_images has the columns key, image; images were"):
        load(f"{tmp_path}/b_instructions@gqa", count=None, seed=0)


def mmmu(path: Path, question: str, options: str, **images: int | None) -> Questions:
    """One question like MMMU-Pro's."""
    cells = {f"image_{i}": images.get(f"image_{i}") for i in range(1, 8)}
    columns: dict[str, tuple[Any, list[Any]]] = {
        "question": (STRING, [question]),
        "options": (STRING, [options]),
        "answer": (STRING, ["B"]),
        "subject": (STRING, ["Art"]),
        **{name: (IMAGE, [cell]) for name, cell in cells.items()},
    }
    return load(save(path, columns), count=None, seed=0)


def test_images_stand_where_a_question_names_them(tmp_path: Path) -> None:
    """Images in options and in another order than their columns; one that is named twice is shown
    once.
    """
    found = mmmu(
        tmp_path / "MMMU_Pro",
        "Between <image 2> and <image 1>, <image 2> is?",
        "['Old <image 3>', \"it's new\"]",
        image_1=1,
        image_2=2,
        image_3=3,
    )
    [asked] = found.asked
    assert shows(asked, 2, 1, 3)
    said = [part.get("text", "*") for part in asked.messages[0]["content"]]
    assert said == [
        "Between",
        "*",
        "and",
        "*",
        ",",
        "image 2",
        "is?\nA. Old",
        "*",
        f"B. it's new\n{CHOOSE}",
    ]
    assert (asked.task, found.metric) == ("Art", "letter")
    assert found.score(0, "It is old. Answer: B") == 1.0


@pytest.mark.parametrize(
    ("question", "options", "why"),
    [
        ("<image 2>?", "['a', 'b']", "column 'image_2' holds no image"),
        ("<image 9>?", "['a', 'b']", "column 'image_9' holds no image"),
        (" ", "['a', 'b']", "column 'question' is empty"),
        ("<image 1>?", "a, b", "column 'options' holds no list"),
        ("<image 1>?", "['a', ", "column 'options' holds no list"),
        ("<image 1>?", "[]", "column 'options' holds no list"),
        ("<image 1>?", repr(list("abcdefghijk")), "column 'options' holds no list of 1 to 10"),
    ],
)
def test_a_choice_that_cannot_be_asked(
    tmp_path: Path, question: str, options: str, why: str
) -> None:
    """Each reason is said with its row."""
    with pytest.raises(ValueError, match=rf"has 0 usable.*mmmu_pro row 0: {why}"):
        mmmu(tmp_path / "mmmu_pro", question, options, image_1=1)


def test_a_question_within_its_image(tmp_path: Path) -> None:
    """MMMU-Pro's vision part has no question in words; what is asked must say how to answer."""
    columns: dict[str, tuple[Any, list[Any]]] = {
        "options": (STRING, ["['a', 'b']"]),
        "answer": (STRING, ["A"]),
        "image": (IMAGE, [4]),
    }
    path = save(tmp_path / "mmmu_pro_vision", columns)
    [asked] = load(path, count=None, seed=0).asked
    assert shows(asked, 4)
    assert text(asked) == CHOOSE
    [short] = load(f"{path}@+short", count=None, seed=0).asked
    assert text(short) == CHOICES_SHORT
    columns["image_1"] = columns.pop("image")
    with pytest.raises(ValueError, match="'question' is empty or no text: None"):
        load(save(tmp_path / "mmmu_pro_none", columns), count=None, seed=0)
    [unnamed] = mmmu(tmp_path / "mmmu_pro", "What?", "['a', 'b']", image_1=7).asked
    assert shows(unnamed, 7)


PART = {"type": STRING, "text": STRING, "index": datasets.Value("int64")}
TURNS = datasets.List({"role": STRING, "content": datasets.List(PART)})
VALUES = datasets.List({"from": STRING, "value": STRING})


def turn(role: str, *parts: str | None) -> dict[str, Any]:
    """A turn of parts; ``None`` is an image."""
    content = [
        {"type": "image" if part is None else "text", "text": part, "index": 0} for part in parts
    ]
    return {"role": role, "content": content}


def chat(path: Path, kind: Any, *conversations: list[Any], images: int = 1) -> Questions:
    """Questions of conversations with as many images each."""
    columns: dict[str, tuple[Any, list[Any]]] = {
        "messages" if kind is TURNS else "conversations": (kind, list(conversations)),
        "images": (datasets.List(IMAGE), [list(range(images))] * len(conversations)),
    }
    return load(save(path, columns), count=None, seed=0)


def test_each_turn_of_a_chat_is_asked(tmp_path: Path) -> None:
    """A later question must come behind the turns before it, with their answers and no others, in
    both ways in which chats are stored.
    """
    parts = [
        turn("user", "\nWhat is it?", None),
        turn("assistant", "A cat."),
        turn("user", "Its colour?"),
        turn("assistant", "Black."),
    ]
    values = [
        {"from": "human", "value": "What is it?\n<image>"},
        {"from": "gpt", "value": "A cat."},
        {"from": "human", "value": "Its colour?"},
        {"from": "gpt", "value": "Black."},
    ]
    found = chat(tmp_path / "llava-mix", TURNS, parts)
    other = chat(tmp_path / "others", VALUES, values)
    assert [each.messages for each in found.asked] == [each.messages for each in other.asked]
    first, later = found.asked
    image, answer = {"type": "image"}, {"type": "text", "text": "A cat."}
    assert first.messages == [
        {"role": "user", "content": [{"type": "text", "text": "What is it?"}, image]}
    ]
    assert later.messages == [
        *first.messages,
        {"role": "assistant", "content": [answer]},
        {"role": "user", "content": [{"type": "text", "text": "Its colour?"}]},
    ]
    assert shows(first, 0)
    assert shows(later, 0)
    assert found.tasks == {"first turn": 1, "later turn": 1}
    assert (found.metric, found.score(0, "A cat.")) == (None, None)


def test_images_of_a_chat(tmp_path: Path) -> None:
    """Images that no turn places stand before the first question; a turn has only the images that
    were shown by then.
    """
    unplaced = [turn("system", "Be kind."), turn("user", "Which?")]
    [asked] = chat(tmp_path / "chat-a", TURNS, unplaced, images=2).asked
    assert shows(asked, 0, 1)
    assert [part["type"] for part in asked.messages[1]["content"]] == ["image", "image", "text"]
    by_turn = [turn("user", None, "One?"), turn("assistant", "1"), turn("user", None, "Two?")]
    first, later = chat(tmp_path / "chat-b", TURNS, by_turn, images=2).asked
    assert shows(first, 0)
    assert shows(later, 0, 1)


@pytest.mark.parametrize(
    ("turns", "why"),
    [
        ([turn("assistant", "Hello.")], "the user has no turn"),
        ([], "the user has no turn"),
        ([turn("tool", "x"), turn("user", "y")], "column 'messages' has a turn of 'tool'"),
        ([turn("user", None, None, "y")], "its turns show 2 images, column 'images' has 1"),
        ([turn("user", None, "y"), turn("user", " ")], "turn 2 is empty"),
    ],
)
def test_a_chat_that_cannot_be_asked(tmp_path: Path, turns: list[Any], why: str) -> None:
    """Each reason is said with its row, and costs no other conversation."""
    good = [turn("user", "What?")]
    found = chat(tmp_path / "chat", TURNS, good, turns)
    assert text(found.asked[0]) == "What?"
    [skipped] = found.skipped
    assert (skipped.where, skipped.why) == ("chat row 1", why)


def test_the_same_seed_draws_the_same(tmp_path: Path) -> None:
    """A benchmark is repeated with its seed; more questions begin with the fewer, and another seed
    asks others.
    """
    path = vqa(tmp_path / "chartqa", rows=30)

    def drawn(count: int, seed: int) -> list[str]:
        return [text(each) for each in load(path, count=count, seed=seed).asked]

    assert drawn(8, 5) == drawn(8, 5) == drawn(20, 5)[:8]
    assert drawn(8, 5) != drawn(8, 6)
    assert len(set(drawn(30, 1))) == 30
    in_order = [text(each) for each in load(path, count=None, seed=9).asked]
    assert in_order == [f"How many {i}?" for i in range(30)]


def test_tasks_are_drawn_evenly(tmp_path: Path) -> None:
    """A task with half as many rows gets as many questions, until it has no more."""
    path = vqa(tmp_path / "chartqa", rows=12)
    assert load(path, count=6, seed=0).tasks == {"human_test": 3, "augmented_test": 3}
    assert load(path, count=10, seed=0).tasks == {"human_test": 4, "augmented_test": 6}
    one = load(path, count=3, seed=0, tasks=("human_test",))
    assert one.tasks == {"human_test": 3}
    with pytest.raises(ValueError, match=r"unknown tasks x; .*chartqa has augmented_test, human"):
        load(path, count=1, seed=0, tasks=("x",))
    with pytest.raises(ValueError, match=r"has 4 usable questions, 5 were asked for"):
        load(path, count=5, seed=0, tasks=("human_test",))
    with pytest.raises(ValueError, match="0 questions were asked for"):
        load(path, count=0, seed=0)


def test_only_what_is_drawn_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten questions of a million must not read a million images."""
    path = vqa(tmp_path / "chartqa", rows=30)
    opened = []

    def counted(source: Any, original: Any = prompts.open_image) -> Any:
        opened.append(source)
        return original(source)

    monkeypatch.setattr(prompts, "open_image", counted)
    monkeypatch.setattr(
        datasets.Image, "decode_example", lambda *_, **__: pytest.fail("decoded by datasets")
    )
    load(path, count=5, seed=0)
    assert len(opened) == 5


def test_rows_that_cannot_be_used(tmp_path: Path) -> None:
    """Each is listed with its reason, and another is drawn in its place; a broken image that no one
    draws is not looked at.
    """
    path = vqa(
        tmp_path / "chartqa",
        rows=12,
        broken=(4,),
        question={1: "  ", 2: None},
        image={3: None},
        answer={5: None, 7: " "},
    )
    found = load(path, count=8, seed=0)
    assert len(found.asked) == 8
    whole = load(path, count=None, seed=0)
    assert [int(each.where.split()[-1]) for each in whole.asked] == [0, 5, 6, 7, 8, 9, 10, 11]
    assert [each.where.split()[-1] for each in whole.skipped] == ["1", "2", "3", "4"]
    reasons = [each.why for each in whole.skipped]
    assert reasons[0] == "column 'question' is empty or no text: '  '"
    assert reasons[1] == "column 'question' is empty or no text: None"
    assert reasons[2] == "column 'image' holds no image"
    assert "cannot be read" in reasons[3]
    assert set(found.skipped) <= set(whole.skipped)
    assert [whole.score(i, "x") for i in (0, 1, 3)] == [0.0, None, None]
    with pytest.raises(ValueError, match=r"has 8 usable questions, 9 were asked for; 4 left out"):
        load(path, count=9, seed=0)


def test_columns_that_do_not_fit(tmp_path: Path) -> None:
    """The message names what is there, what was expected, and which adapters would do."""
    path = vqa(tmp_path / "numbers")
    there = "has the columns type, question, answer, image"
    with pytest.raises(ValueError, match=f"{there}; adapters that fit: gqa, coco, chartqa, plain"):
        load(path, count=1, seed=0)
    expected = "adapter docvqa expects image, question, answers. Adapters that fit: gqa, coco"
    with pytest.raises(ValueError, match=f"{there}; {expected}"):
        load(f"{path}@docvqa", count=1, seed=0)
    named = vqa(tmp_path / "TextVQA_copy")
    with pytest.raises(ValueError, match="adapter textvqa expects image, question, answers"):
        load(named, count=1, seed=0)
    assert load(f"{path}@gqa", count=1, seed=0).metric == "exact match"
    with pytest.raises(ValueError, match="unknown adapter 'ocr'; there are gqa, textvqa, coco"):
        load(f"{path}@ocr", count=1, seed=0)
    (tmp_path / "gqa").mkdir()
    inner = vqa(tmp_path / "gqa" / "chartqa")
    assert load(inner, count=1, seed=0).metric == "relaxed accuracy"
    useless = save(tmp_path / "useless", {"a": (STRING, ["x"])})
    with pytest.raises(ValueError, match="has the columns a; adapters that fit: none"):
        load(useless, count=1, seed=0)


def test_options_of_a_source(tmp_path: Path) -> None:
    """A lenient score must be called so, and a short answer be asked for, only when wanted."""
    path = vqa(tmp_path / "chartqa")
    strict = load(path, count=None, seed=0)
    assert strict.score(3, "There are 3.") == 0.0
    lenient = load(f"{path}@+short+contains", count=None, seed=0)
    assert lenient.metric == "contains"
    assert lenient.score(3, "There are 3.") == 1.0
    assert text(lenient.asked[3]).startswith("How many 3?\nAnswer the question using a single word")
    assert text(strict.asked[3]) == "How many 3?"
    with pytest.raises(ValueError, match="unknown option long; there are short, contains"):
        load(f"{path}@gqa+long", count=1, seed=0)
    for adapter, why in (("mmmu-pro", "letters"), ("coco", "no right answers")):
        with pytest.raises(ValueError, match=f"contains compares words, {adapter} has {why}"):
            load(f"{path}@{adapter}+contains", count=1, seed=0)


def test_a_folder_of_lines(tmp_path: Path) -> None:
    """Few lines are enough, unlike for training; answers and tasks are optional, and a line with
    an answer of no use is listed.
    """
    processors.image(1).save(tmp_path / "1.png")
    lines: list[dict[str, Any]] = [
        {"image": "1.png", "prompt": "Colour?", "answer": "red", "task": "colour"},
        {"images": ["1.png", "1.png"], "prompt": "Same?", "answers": ["yes", "the same"]},
        {"image": "1.png", "prompt": "Describe."},
        {"image": "2.png", "prompt": "Colour?"},
        {"image": "1.png", "prompt": "Bad", "answer": 5},
        {"image": "1.png", "prompt": "Bad", "answers": "x"},
        {"image": "1.png", "prompt": "Bad", "task": 1},
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = load(str(tmp_path), count=None, seed=0)
    assert [text(each) for each in found.asked] == ["Colour?", "Same?", "Describe."]
    assert shows(found.asked[1], 1, 1)
    assert [each.task for each in found.asked] == ["colour", "", ""]
    assert found.metric == "contains"
    assert [found.score(i, "They are the same.") for i in range(3)] == [0.0, 1.0, None]
    assert found.score(0, "Red.") == 1.0
    assert [each.where for each in found.skipped] == [f"a.jsonl line {i}" for i in (4, 5, 6, 7)]
    assert "there is no image" in found.skipped[0].why
    assert ["answer" in each.why for each in found.skipped[1:]] == [True, True, False]
    assert load(str(tmp_path), count=1, seed=0, tasks=("colour",)).asked[0].task == "colour"
    with pytest.raises(ValueError, match="whose lines need no adapter"):
        load(f"{tmp_path}@gqa", count=1, seed=0)


def test_the_questions_that_ship() -> None:
    """Scored by facts, not by words, and drawn evenly though their tasks differ in number."""
    found = load("suite", count=14, seed=3)
    assert set(found.tasks.values()) == {2}
    assert found.metric == "facts"
    [cell] = load("suite", count=1, seed=3, tasks=("grid_cell",)).asked
    assert cell.images
    number = next(i for i, each in enumerate(found.asked) if each.task == "grid_cell")
    scores = [found.score(number, f"The number there is {digit}.") for digit in range(10)]
    assert sorted(scores, key=float) == [0.0] * 9 + [1.0]
    assert len(load("suite", count=None, seed=0).asked) == 200


def test_names_of_the_hub_have_usual_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bare name must ask the questions that are usually reported, and GQA's images of the same
    part; what the user says comes first.
    """
    asked: list[tuple[str, ...]] = []

    def refused(*names: str, split: str) -> None:
        asked.append((*names, split))
        raise FileNotFoundError("no network")

    monkeypatch.setattr(datasets, "load_dataset", refused)
    for source in (
        "hub:lmms-lab/GQA",
        "hub:lmms-lab/textvqa",
        "hub:lmms-lab/COCO-Caption",
        "hub:HuggingFaceM4/ChartQA",
        "hub:princeton-nlp/CharXiv:test",
        "hub:lmms-lab/DocVQA",
        "hub:MMMU/MMMU_Pro",
        "hub:MMMU/MMMU_Pro:vision:test",
        "hub:HuggingFaceH4/llava-instruct-mix-vsft",
        "hub:me/mine@textvqa",
    ):
        with pytest.raises(ValueError, match=r"could not be read as owner/name.*no network"):
            load(source, count=1, seed=0)
    assert asked == [
        ("lmms-lab/GQA", "testdev_balanced_instructions", "testdev"),
        ("lmms-lab/textvqa", "validation"),
        ("lmms-lab/COCO-Caption", "val"),
        ("HuggingFaceM4/ChartQA", "test"),
        ("princeton-nlp/CharXiv", "test"),
        ("lmms-lab/DocVQA", "DocVQA", "validation"),
        ("MMMU/MMMU_Pro", "standard (10 options)", "test"),
        ("MMMU/MMMU_Pro", "vision", "test"),
        ("HuggingFaceH4/llava-instruct-mix-vsft", "test"),
        ("me/mine", "validation"),
    ]
    with pytest.raises(ValueError, match=r"a:b:c:d could not be read as owner/name"):
        load("hub:a:b:c:d", count=1, seed=0)


def test_gqa_of_the_hub_is_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    """The images' part of the hub must be that of the questions."""
    tables = {
        "val_balanced_instructions": {"question": ["q"], "answer": ["a"], "imageId": ["n1"]},
        "val_balanced_images": {"id": ["n1"], "image": [{"bytes": encoded(1), "path": None}]},
    }

    def served(name: str, config: str, split: str) -> datasets.Dataset:
        assert (name, split) == ("lmms-lab/GQA", "val")
        return datasets.Dataset.from_dict(tables[config])

    monkeypatch.setattr(datasets, "load_dataset", served)
    found = load("hub:lmms-lab/GQA:val_balanced_instructions:val", count=1, seed=0)
    assert shows(found.asked[0], 1)


def test_without_the_package_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A base installation must say which extra it lacks."""
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"pip install -e '.\[train\]'"):
        load(str(tmp_path), count=1, seed=0)
    assert load(questions.SUITE, count=1, seed=0).asked
