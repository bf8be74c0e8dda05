"""Where prompts come from, and what happens to those that cannot be used."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest

from specdec.training.prompts import AT_LENGTH, Asked, answer_key, content
from specdec.training.skipped import Skipped, write_skipped
from specdec.training.sources import DatasetPrompts, FolderPrompts, open_prompts
from support import processors

COUNT = 40
Changes = Sequence[tuple[str, int, object]]


def everything(prompts: Any, size: int = 8) -> list[Asked]:
    """All prompts of all batches."""
    asked, index = [], 0
    while (batch := prompts.batch(index, size)) is not None:
        asked += batch.asked
        index += 1
    return asked


def a_dataset(
    image: str = "image", prompt: str = "question", changed: Changes = ()
) -> datasets.Dataset:
    """Every fourth row asks the same. ``changed``: cells by column, row and value."""
    rows: dict[str, list[Any]] = {
        image: [processors.image(i) for i in range(COUNT)],
        prompt: [f"w5 w{5 + i % 4}" for i in range(COUNT)],
        "other": list(range(COUNT)),
    }
    for name, row, value in changed:
        rows[name][row] = value
    kinds = {image: datasets.Image(), prompt: datasets.Value("string")}
    return datasets.Dataset.from_dict(
        rows, features=datasets.Features({**kinds, "other": datasets.Value("int32")})
    )


def test_held_out_prompts_are_never_asked(prompts: Path) -> None:
    """Acceptance measured on prompts that were learned from would be worth nothing."""
    source = FolderPrompts(prompts)
    held_out = {json.dumps(each.messages) for each in source.held_out(99)}
    asked, temperatures, index = [], set(), 0
    while (batch := source.batch(index, 8)) is not None:
        assert len({len(each.images) for each in batch.asked}) == 1
        asked += [json.dumps(each.messages) for each in batch.asked]
        temperatures.add(batch.temperature)
        index += 1
    assert held_out
    assert not held_out & set(asked)
    assert len(asked) == 3 * (30 - len(held_out))
    assert temperatures == {0.0, 0.7, 1.0}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "line 1: expected"),
        (b'{"prompt": "w5"}', "'image'"),
        (b'{"image": "no.png", "prompt": "w5"}', "there is no image"),
        (b'{"image": "no.png", "prompt": " "}', "the prompt is empty"),
        (b'{"image": "no.png", "prompt": null}', "no text: None"),
        (b'{"image": 5, "prompt": "w5"}', "expected"),
        (b"\xff", "can't decode"),
    ],
)
def test_a_bad_line_is_left_out_and_listed(
    prompts: Path, tmp_path: Path, line: bytes, reason: str
) -> None:
    """One bad line in a million must neither end a run nor go unnoticed; nothing but bad lines is
    an error that says why.
    """
    folder = tmp_path / "bad"
    folder.mkdir()
    (folder / "a.jsonl").write_bytes(line)
    with pytest.raises(ValueError, match=reason):
        FolderPrompts(folder)
    for file in prompts.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    source = FolderPrompts(folder)
    [skipped] = source.skipped
    assert skipped.where == "a.jsonl line 1"
    assert reason.removeprefix("line 1: ") in skipped.why
    assert len(everything(source)) == len(everything(FolderPrompts(prompts)))


def test_a_broken_image_costs_its_prompt_only(prompts: Path, tmp_path: Path) -> None:
    """A file that ends too early opens, and fails only when its pixels are read. It must be listed
    with its line, and the rest of its batch asked.
    """
    for file in prompts.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    whole = everything(FolderPrompts(tmp_path))
    named = next(each for each in whole if len(each.images) == 1)
    [path] = named.sources
    assert isinstance(path, str)
    data = Path(path).read_bytes()
    Path(path).write_bytes(data[: len(data) // 2])
    source = FolderPrompts(tmp_path)
    batches = [source.batch(index, 8) for index in range(9)]
    skipped = {each for batch in batches if batch is not None for each in batch.skipped}
    assert {each.where for each in skipped} == {named.where}
    assert all("cannot be read" in each.why for each in skipped)
    assert len(everything(source)) == len(whole) - 3
    assert write_skipped(tmp_path / "skipped.jsonl", [*skipped, *skipped]) == 1
    [line] = (tmp_path / "skipped.jsonl").read_text().splitlines()
    assert Skipped(**json.loads(line)) in skipped


def test_a_saved_data_set_is_read(tmp_path: Path) -> None:
    """Columns are found by their usual names; prompts come with their own images, after a shuffle
    too, and each can be stored as the bytes it came as.
    """
    saved = a_dataset().shuffle(seed=1)
    saved.save_to_disk(str(tmp_path / "saved"))
    source = open_prompts(str(tmp_path / "saved"))
    asked, held_out = everything(source), source.held_out(99)
    assert held_out
    assert not {content(each) for each in held_out} & {content(each) for each in asked}
    texts = {content(each): each.messages[0]["content"][-1]["text"] for each in [*asked, *held_out]}
    assert len(texts) == COUNT
    pixels = {image["other"]: image["image"].tobytes() for image in saved}
    for each in asked:
        row = int(each.where.rsplit(" ", 1)[1])
        assert each.images[0].tobytes() == pixels[saved[row]["other"]]
        assert texts[content(each)] == saved[row]["question"]
        assert isinstance(each.sources[0], bytes)


def test_columns_may_be_named(tmp_path: Path) -> None:
    """A column that is not there is an error that names those that are."""
    found = a_dataset("picture", "words")
    with pytest.raises(ValueError, match="has the columns picture, words, other; images"):
        DatasetPrompts(found, "mine")
    with pytest.raises(ValueError, match="prompts were expected in prompt or question or text"):
        DatasetPrompts(found, "mine", image_column="picture")
    source = DatasetPrompts(found, "mine", image_column="picture", prompt_column="words")
    assert len(everything(source)) + 3 * len(source.held_out(99)) == 3 * COUNT


def test_rows_without_prompt_or_image_are_left_out() -> None:
    """An empty cell is no reason to stop, nor to ask about nothing."""
    found = a_dataset(changed=[("question", 3, "  "), ("image", 5, None)])
    source = DatasetPrompts(found, "mine")
    assert [each.where for each in source.skipped] == ["mine row 3", "mine row 5"]
    assert [each.why.split(" ")[1] for each in source.skipped] == ["'question'", "'image'"]
    assert len(everything(source)) + 3 * len(source.held_out(99)) == 3 * (COUNT - 2)
    nothing = found.select([3, 5])
    with pytest.raises(ValueError, match=r"0 prompts to learn from .*the first: mine row 0"):
        DatasetPrompts(nothing, "mine")


def test_lists_of_images_and_paths(tmp_path: Path) -> None:
    """Batches must not mix numbers of images: no processor takes them."""
    for i in range(COUNT):
        processors.image(i).save(tmp_path / f"{i}.png")
    rows = {
        "images": [[f"{i}.png", "0.png"][: 1 + i % 2] for i in range(COUNT)],
        "prompt": [f"w{5 + i}" for i in range(COUNT)],
    }
    source = DatasetPrompts(datasets.Dataset.from_dict(rows), "mine", folder=tmp_path)
    asked = everything(source)
    for each in asked:
        row = int(each.where.rsplit(" ", 1)[1])
        wanted = [processors.image(row).tobytes(), processors.image(0).tobytes()][: 1 + row % 2]
        assert [image.tobytes() for image in each.images] == wanted
    assert [len(each.images) for each in source.kinds()] == [1, 2]
    for index in range(6):
        batch = source.batch(index, 8)
        assert batch is not None
        assert len({len(each.images) for each in batch.asked}) == 1


def test_names_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """The split must reach `datasets`, and its failure the user."""
    asked = []

    def load(name: str, *, split: str) -> datasets.Dataset:
        asked.append((name, split))
        if split == "none":
            raise FileNotFoundError("no such split")
        return a_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert everything(open_prompts("hub:owner/name"))
    assert everything(open_prompts("hub:owner/name:test"))
    with pytest.raises(ValueError, match=r"hub:owner/name:none could not be read.*no such split"):
        open_prompts("hub:owner/name:none")
    assert asked == [("owner/name", "train"), ("owner/name", "test"), ("owner/name", "none")]


def test_other_folders(tmp_path: Path) -> None:
    """Arrow files as they are, splits by name, and a folder of neither kind by its contents."""
    a_dataset().save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "arrow").mkdir()
    [file] = (tmp_path / "saved").glob("*.arrow")
    file.rename(tmp_path / "arrow" / "one.arrow")
    assert everything(open_prompts(str(tmp_path / "arrow")))
    splits = datasets.DatasetDict({"test": a_dataset(), "train": a_dataset().select(range(36))})
    splits.save_to_disk(str(tmp_path / "splits"))
    source = open_prompts(str(tmp_path / "splits"))
    assert len(everything(source)) + 3 * len(source.held_out(99)) == 3 * 36
    datasets.DatasetDict({"a": a_dataset(), "b": a_dataset()}).save_to_disk(str(tmp_path / "ab"))
    with pytest.raises(ValueError, match="splits a, b"):
        open_prompts(str(tmp_path / "ab"))
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").touch()
    with pytest.raises(ValueError, match=r"holds a.txt; expected \*.jsonl"):
        open_prompts(str(tmp_path / "notes"))


def test_long_answers_are_asked_for(prompts: Path) -> None:
    """The request must be part of the prompt, so of its key, and of what is held out, too."""
    short, long = open_prompts(str(prompts)), open_prompts(str(prompts), long=True)
    for one, other in (
        (everything(short), everything(long)),
        (short.held_out(9), long.held_out(9)),
        (short.kinds(), long.kinds()),
    ):
        assert one
        for a, b in zip(one, other, strict=True):
            text = a.messages[0]["content"][-1]["text"]
            assert b.messages[0]["content"][-1]["text"] == f"{text} {AT_LENGTH}"
            assert b.images == a.images
            assert answer_key(a, 0.0) != answer_key(b, 0.0)


def test_keys_are_of_contents(prompts: Path, tmp_path: Path) -> None:
    """The name of a file must not make an answer another one; a pixel, a word or the temperature
    must.
    """
    [first, *_] = everything(FolderPrompts(prompts))
    named = first._replace(where="elsewhere", sources=["copy.png"] * len(first.images))
    assert answer_key(named, 0.0) == answer_key(first, 0.0)
    image = first.images[0].copy()
    image.putpixel((3, 4), (1, 2, 3))
    others = [
        answer_key(first, 1.0),
        answer_key(first._replace(images=[image, *first.images[1:]]), 0.0),
        answer_key(first._replace(messages=processors.messages(99)), 0.0),
    ]
    assert len({answer_key(first, 0.0), *others}) == 4
