"""A verifier's answers: what they are, how they are kept, and what an interruption may cost."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

from specdec.training import answers
from specdec.training.answers import Teacher
from specdec.training.examples import Examples, without_visual
from specdec.training.prompts import Asked, Asking, answer_key
from specdec.training.shards import Answer, AnswerShards
from specdec.training.skipped import Skipped
from specdec.training.sources import FolderPrompts
from support import families, processors

VISUAL = frozenset([families.IMAGE])


def asks(count: int, images: int = 1) -> list[Asked]:
    return [
        Asked(processors.messages(i, images), [processors.image(i + j) for j in range(images)])
        for i in range(count)
    ]


def contents(shards: AnswerShards) -> list[dict[str, list[Any]]]:
    """All columns of all shards."""
    tables = [datasets.Dataset.from_file(str(shards.path(index))) for index in shards.indices]
    return [table.with_format("arrow")[:].to_pydict() for table in tables]


@pytest.mark.parametrize("count", [1, 4])
def test_answers_are_those_of_generate(teacher: Teacher, count: int) -> None:
    """Padding, visual tokens and the end of an answer are all places to be off by one. A batch of
    ragged prompts must yield what each prompt alone does, and the recorded probabilities must be
    the model's own (1e-4: fp32, other shapes).
    """
    asked = asks(count, images=2)
    answered = teacher.answer(Asking(asked, 0.0), seed=0)
    assert not answered.skipped
    for each, answer in zip(asked, answered.answers, strict=True):
        model: Any = teacher.model
        out = model.generate(
            **teacher.inputs([each]),
            max_new_tokens=8,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        assert answer.tokens.tolist() == out.sequences[0].tolist()
        assert answer.prompt_length == len(answer.tokens) - len(out.logits)
        p = torch.cat(out.logits).softmax(-1).topk(4)
        assert torch.equal(answer.top_ids, p.indices)
        torch.testing.assert_close(answer.top_p, p.values, atol=1e-4, rtol=0)


def test_probabilities_are_those_before_the_temperature(teacher: Teacher) -> None:
    """A drafter learns the verifier's distribution at temperature 1, whatever was sampled at."""
    [asked] = asks(1)
    greedy, sampled = (
        teacher.answer(Asking([asked], temperature), seed=1).answers[0].top_p[0]
        for temperature in (0.0, 0.7)
    )
    torch.testing.assert_close(greedy, sampled, atol=1e-5, rtol=0)


def test_an_answer_ends_with_its_first_end(teacher: Teacher) -> None:
    """Rows that end before the others are padded by `generate`; padding is nothing to learn."""
    config: Any = teacher.model.generation_config
    asking = Asking(asks(4), 0.0)
    before = [answer.tokens.tolist() for answer in teacher.answer(asking, seed=0).answers]
    config.eos_token_id = before[0][-5]
    try:
        after = teacher.answer(asking, seed=0).answers
    finally:
        config.eos_token_id = families.EOS
    for tokens, answer in zip(before, after, strict=True):
        told = tokens[-8:]
        end = told.index(before[0][-5]) + 1 if before[0][-5] in told else 8
        assert answer.tokens.tolist()[answer.prompt_length :] == told[:end]
        assert len(answer.top_ids) == len(answer.top_p) == end


def test_sampling_follows_the_seed_only(teacher: Teacher) -> None:
    """A shard must not depend on what was drawn before it, nor disturb what is drawn after."""
    asking = Asking(asks(1), 1.0)

    def tokens(seed: int) -> list[int]:
        return teacher.answer(asking, seed).answers[0].tokens.tolist()

    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = tokens(3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    assert tokens(3) == first
    assert any(tokens(seed) != first for seed in range(4, 9))


def test_empty_answers_are_left_out(teacher: Teacher) -> None:
    """An answer that is nothing but its end teaches to end."""
    config: Any = teacher.model.generation_config
    asked = [each._replace(where=f"row {i}") for i, each in enumerate(asks(3))]
    first = teacher.answer(Asking(asked, 0.0), seed=0).answers[1]
    config.eos_token_id = int(first.tokens[first.prompt_length])
    try:
        answered = teacher.answer(Asking(asked, 0.0), seed=0)
    finally:
        config.eos_token_id = families.EOS
    assert Skipped("row 1", "the answer is empty") in answered.skipped
    assert len(answered.answers) + len(answered.skipped) == 3


def test_too_long_prompts_are_left_out(teacher: Teacher) -> None:
    """The others of their batch must be answered as without them, and the room for the answer
    counts.
    """
    asked = [each._replace(where=f"row {i}") for i, each in enumerate(asks(5))]
    lengths = [int(teacher.inputs([each])["attention_mask"].sum()) for each in asked]
    limit = sorted(lengths)[2]
    short = Teacher(teacher.model, teacher.processor, 8, 4, max_length=limit + 8)
    answered = short.answer(Asking(asked, 0.0), seed=0)
    assert {each.where for each in answered.skipped} == {
        f"row {i}" for i, length in enumerate(lengths) if length > limit
    }
    assert all(f"at most {limit}" in each.why for each in answered.skipped)
    fitting = [each for each, length in zip(asked, lengths, strict=True) if length <= limit]
    assert [answer.asked.where for answer in answered.answers] == [each.where for each in fitting]


def test_the_processor_may_refuse_one_prompt(
    teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One image that a processor cannot take must not cost its batch; refusing all is an error."""
    asked = [each._replace(where=f"row {i}") for i, each in enumerate(asks(3))]
    kind, original = type(teacher.processor), type(teacher.processor).__call__

    def refuse(texts: Sequence[str]) -> None:
        def call(self: Any, **given: Any) -> Any:
            if any(text in whole for text in texts for whole in given["text"]):
                raise ZeroDivisionError("too narrow")
            return original(self, **given)

        monkeypatch.setattr(kind, "__call__", call)

    texts = [each.messages[0]["content"][-1]["text"] for each in asked]
    refuse(texts[1:2])
    answered = teacher.answer(Asking(asked, 0.0), seed=0)
    assert [answer.asked.where for answer in answered.answers] == ["row 0", "row 2"]
    [skipped] = answered.skipped
    assert skipped.where == "row 1"
    assert "too narrow" in skipped.why
    refuse(texts)
    with pytest.raises(ValueError, match=r"Llava.*row 0.*LlavaProcessor refuses: too narrow"):
        teacher.answer(Asking(asked, 0.0), seed=0)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ("template", r"\(1 images\): LlavaProcessor refuses"),
        ("last image", r"\(2 images\): LlavaProcessor refuses"),
        ("refusal", "one image only"),
        ("placeholder", r"none of the verifier's visual tokens \[149\]"),
        ("count", "cannot read prompts such as prompts.jsonl line [0-9]+, with 1 images"),
    ],
)
def test_what_does_not_go_together_is_named(prompts: Path, changed: str, reason: str) -> None:
    """A template without a place for the images, or for all of them, or a processor with another
    placeholder or another number of them, would have the verifier answer blindly, or fail hours
    later.
    """
    model, processor = families.build("llava").model, processors.build()
    templates = {
        "template": "w2 {{ messages[0]['content'][-1]['text'] }}",
        "last image": "w2 <image> w5",
        "refusal": "{{ raise_exception('one image only') }}",
    }
    processor.chat_template = templates.get(changed, processor.chat_template)
    if changed == "placeholder":
        model.config.image_token_id = 149
    if changed == "count":
        processor.num_additional_image_tokens = 1
    with pytest.raises(ValueError, match=rf"LlavaForConditionalGeneration.*{reason}"):
        Teacher(model, processor).check(FolderPrompts(prompts))


def test_other_vocabularies_are_named(prompts: Path, teacher: Teacher) -> None:
    """An id beyond the embeddings is an index error on a CPU, and worse on a GPU."""
    processor = processors.build()
    processor.tokenizer.add_tokens(["w2"], special_tokens=True)
    processor.tokenizer.add_tokens(["beyond"])
    processor.chat_template = "beyond " + processors.TEMPLATE
    with pytest.raises(ValueError, match=r"go up to 16\d, the verifier has a vocabulary of 160"):
        Teacher(teacher.model, processor).check(FolderPrompts(prompts))


def test_shards_resume_to_the_same_answers(teacher: Teacher, prompts: Path, tmp_path: Path) -> None:
    """A run that is cut off between shards, or within one, must end with the very shards of an
    uninterrupted run, and must not answer anything twice.
    """

    def collect(folder: Path, wanted: int) -> list[int]:
        source, shards = FolderPrompts(prompts), AnswerShards(folder)
        steps = answers.collect(teacher, source, shards, wanted=wanted, batch=8, minutes=9)
        return [count for count, _ in steps]

    whole = collect(tmp_path / "whole", 40)
    assert whole[-1] >= 40
    assert all(b - a <= 8 for a, b in pairwise([0, *whole]))
    collect(tmp_path / "parts", 10)
    (tmp_path / "parts" / "answers-00002.tmp").write_bytes(b"cut off")
    rest = collect(tmp_path / "parts", 40)
    assert rest == [count for count in whole if count > 16]
    one, other = (contents(AnswerShards(tmp_path / name)) for name in ("whole", "parts"))
    assert one == other


_ENDLESS = """
import sys
from pathlib import Path
import torch
from specdec.training import answers
from specdec.training.shards import AnswerShards
from specdec.training.skipped import Skipped
from specdec.training.sources import FolderPrompts
from support import families, processors

torch.set_num_threads(1)
teacher = answers.Teacher(families.build("llava").model, processors.build(), 8, 4)
source, shards = FolderPrompts(Path(sys.argv[1])), AnswerShards(Path(sys.argv[2]))
for _ in answers.collect(teacher, source, shards, wanted=999, batch=4, minutes=9):
    pass
"""


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_a_killed_run_goes_on_to_the_same_shards(
    teacher: Teacher, prompts: Path, tmp_path: Path
) -> None:
    """`kill -9` leaves no time to tidy up: half a shard under its name, or what was known only in
    memory, would show in what is there after going on.
    """

    path = str(Path(__file__).parents[1])
    code = f"import sys; sys.path.insert(0, {path!r})\n{_ENDLESS}"
    command = [sys.executable, "-c", code, str(prompts), str(tmp_path / "parts")]
    killed = subprocess.Popen(command)
    limit = time.monotonic() + 120
    parts, whole = AnswerShards(tmp_path / "parts"), AnswerShards(tmp_path / "whole")
    while not parts.path(2).exists():
        assert killed.poll() is None
        assert time.monotonic() < limit
        time.sleep(0.005)
    killed.kill()
    killed.wait()
    reached = len(parts.indices)
    for shards in (parts, whole):
        source = FolderPrompts(prompts)
        list(answers.collect(teacher, source, shards, wanted=999, batch=4, minutes=9))
    assert 3 <= reached < len(whole.indices)
    assert contents(parts) == contents(whole)
    assert not list((tmp_path / "parts").glob("*.tmp"))


def test_the_same_is_answered_once(teacher: Teacher, prompts: Path, tmp_path: Path) -> None:
    """A copy of a prompt and its image under other names teaches nothing new; at another
    temperature it does. After going on the copies must still be known.
    """
    folder = tmp_path / "twice"
    folder.mkdir()
    for file in prompts.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    lines = (prompts / "prompts.jsonl").read_text().splitlines()
    for file in prompts.glob("*.png"):
        (folder / f"copy-{file.name}").write_bytes(file.read_bytes())
    copies = [json.loads(line.replace('.png"', '.png" ')) for line in lines]
    (folder / "copies.jsonl").write_text(
        "\n".join(
            json.dumps(
                {"images": [f"copy-{name}" for name in row.get("images", [row.get("image")])]}
                | {"prompt": row["prompt"]}
            )
            for row in copies
        )
    )

    def collect(name: str, wanted: int) -> AnswerShards:
        shards = AnswerShards(tmp_path / name)
        source = FolderPrompts(folder)
        list(answers.collect(teacher, source, shards, wanted=wanted, batch=8, minutes=9))
        return shards

    shards = collect("whole", 999)
    keys = [key for index in shards.indices for key in shards.facts(index).keys]
    assert len(set(keys)) == len(keys)
    source = FolderPrompts(folder)
    batches = [batch for i in range(99) if (batch := source.batch(i, 8)) is not None]
    every = {answer_key(each, batch.temperature) for batch in batches for each in batch.asked}
    left_out = {each.where for each in shards.skipped}
    assert len(every) - len(keys) <= 3 * len(left_out)
    collect("parts", 30)
    assert contents(collect("parts", 999)) == contents(shards)


def test_held_out_contents_are_not_answered(
    teacher: Teacher, prompts: Path, tmp_path: Path
) -> None:
    """A copy of a held-out prompt among those to learn from makes the measurement too good."""
    source = FolderPrompts(prompts)
    first = source.batch(0, 8)
    assert first is not None
    shards = AnswerShards(tmp_path)
    steps = answers.collect(
        teacher, source, shards, wanted=1, batch=8, minutes=9, avoid=first.asked[:3]
    )
    next(steps)
    avoided = {answer_key(each, first.temperature) for each in first.asked[:3]}
    assert shards.facts(0).keys
    assert not avoided & set(shards.facts(0).keys)


def test_nothing_of_use_is_an_error(prompts: Path, tmp_path: Path, teacher: Teacher) -> None:
    """Training on nothing would end with a drafter that knows nothing."""
    short = Teacher(teacher.model, teacher.processor, 8, 4, max_length=12)
    shards = AnswerShards(tmp_path)
    with pytest.raises(ValueError, match=r"no prompt has an answer.*line .*leave room"):
        list(answers.collect(short, FolderPrompts(prompts), shards, wanted=9, batch=8, minutes=9))
    assert len({each.where for each in shards.skipped}) >= 20


def test_shards_return_what_was_written(teacher: Teacher, tmp_path: Path) -> None:
    """Numbers to the bit; images that were made here, that came as bytes and that lie in files;
    seconds and what was left out beside them. A shard of nothing is one, too.
    """
    processors.image(2).save(tmp_path / "2.png")
    data = (tmp_path / "2.png").read_bytes()
    asked = asks(3, images=2)
    asked[1] = asked[1]._replace(
        images=[processors.image(2)] * 2, sources=[str(tmp_path / "2.png"), data], task="two"
    )
    written = [a for t in (0.0, 1.0) for a in teacher.answer(Asking(asked, t), seed=1).answers]
    shards, left_out = AnswerShards(tmp_path / "answers"), [Skipped("a", "b"), Skipped("c", "d")]
    shards.write(0, written[:2], 2.0, left_out)
    shards.write(1, [], 1.0)
    shards.write(2, written[2:], 3.5, left_out[:1])
    shards = AnswerShards(tmp_path / "answers")
    assert len(shards) == len(written)
    assert shards.seconds == 6.5
    assert shards.skipped == left_out
    for number, answer in enumerate(written):
        read = shards.answer(*shards.place(number))
        assert_same(read, answer)
        assert read.asked.task == answer.asked.task
    [row] = datasets.Dataset.from_file(str(shards.path(0))).select([1])
    assert [image.tobytes() for image in row["images"]] == [processors.image(2).tobytes()] * 2
    with pytest.raises(IndexError):
        shards.place(len(written))
    processors.image(3).save(tmp_path / "2.png")
    with pytest.raises(ValueError, match=r"answers-00000.arrow row 1: an image of .*2.png"):
        shards.answer(0, 1)


def assert_same(one: Answer, other: Answer) -> None:
    assert one.key == other.key
    assert one.asked.messages == other.asked.messages
    assert [i.tobytes() for i in one.asked.images] == [i.tobytes() for i in other.asked.images]
    assert one.temperature == other.temperature
    assert one.prompt_length == other.prompt_length
    for name in ("tokens", "top_ids", "top_p"):
        assert torch.equal(getattr(one, name), getattr(other, name))


def test_text_only_drafters_see_the_text_only(teacher: Teacher, tmp_path: Path) -> None:
    """A prompt length that still counts visual tokens would teach the prompt as the answer."""
    shards = AnswerShards(tmp_path)
    shards.write(0, teacher.answer(Asking(asks(3, images=2), 0.0), seed=1).answers, 1.0)
    for example in Examples(shards, VISUAL):
        assert example.visual.sum() == 32
        assert bool((example.tokens[example.visual] == families.IMAGE).all())
        text = without_visual(example)
        assert text.tokens.tolist() == [t for t in example.tokens.tolist() if t != families.IMAGE]
        assert len(text.visual) == len(text.tokens)
        assert not text.visual.any()
        said = example.tokens[example.prompt_length :]
        assert torch.equal(text.tokens[text.prompt_length :], said)
        assert torch.equal(text.top_ids, example.top_ids)
