"""`specdec generate`: the answers of `model.generate`, and one clear line for every mistake."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    BertConfig,
    MambaConfig,
)

import specdec
from specdec.commands.checkpoint import DEMO
from support import families, processors
from support.command_line import Cli, expect_error

PROMPT = "w11 w12 w13"
Spoil = Callable[[Path], None]


def plain_answer(folder: Path, image: Path, tokens: int) -> str:
    """What transformers itself says."""
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    processor: Any = AutoProcessor.from_pretrained(folder)
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": PROMPT}]}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    inputs = processor(images=Image.open(image), text=text, return_tensors="pt")
    out = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
    new = out[0, inputs["input_ids"].shape[1] :]
    return str(processor.decode(new, skip_special_tokens=True))


def spoilt(folder: Path, into: Path, spoil: Spoil) -> Path:
    """A copy of a checkpoint with something done to it."""
    shutil.copytree(folder, into)
    spoil(into)
    return into


@pytest.mark.parametrize(
    "how",
    [("--drafter", "none"), ("--tree", "3"), ("--tree", "2,2,1"), ("--tree", "auto"), ()],
)
def test_answer_is_that_of_generate(
    cli: Cli, llava: Path, picture: Path, how: tuple[str, ...]
) -> None:
    """Streaming that drops or doubles text, a prompt built differently, or a lossy tree."""
    result = cli(
        *("generate", "--model", llava, "--image", picture, "--prompt", PROMPT),
        *("--max-new-tokens", 12, *how),
    )
    assert result.exit_code == 0, result.stderr
    assert result.stdout == plain_answer(llava, picture, 12) + "\n"
    assert "12 tokens in" in result.stderr


@pytest.mark.parametrize("kind", ["drafter", "eagle"])
def test_saved_drafter_and_several_images(
    cli: Cli, llava: Path, kind: str, picture: Path, request: pytest.FixtureRequest
) -> None:
    drafter = request.getfixturevalue(kind)
    arguments = ("generate", "--model", llava, "--image", picture, "--image", picture)
    arguments += ("--prompt", PROMPT, "--max-new-tokens", 8, "--dtype", "fp32")
    drafted = cli(*arguments, "--drafter", drafter)
    alone = cli(*arguments, "--drafter", "none", "--no-stats")
    assert drafted.exit_code == alone.exit_code == 0, drafted.stderr + alone.stderr
    assert drafted.stdout == alone.stdout
    assert "drafted tokens accepted" in drafted.stderr
    assert alone.stderr == ""


def test_sampling_repeats_with_its_seed(cli: Cli, llava: Path, picture: Path) -> None:
    arguments = ("generate", "--model", llava, "--image", picture, "--prompt", PROMPT)
    arguments += ("--max-new-tokens", 10, "--temperature", 1.5, "--top-p", 0.99)
    first, again, other = (cli(*arguments, "--seed", seed).stdout for seed in (1, 1, 2))
    assert first == again != other


def test_text_model_without_image_or_chat_template(cli: Cli, text_model: Path) -> None:
    result = cli("generate", "--model", text_model, "--prompt", PROMPT, "--max-new-tokens", 6)
    model = AutoModelForCausalLM.from_pretrained(text_model).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(text_model)
    inputs = tokenizer(PROMPT, return_tensors="pt")
    out = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == tokenizer.decode(out[0, inputs["input_ids"].shape[1] :]) + "\n"


def test_processor_without_chat_template(
    cli: Cli, llava: Path, picture: Path, tmp_path: Path
) -> None:
    """Without a template nothing writes the placeholders of the image into the prompt."""
    bare = spoilt(llava, tmp_path / "bare", lambda to: (to / "chat_template.jinja").unlink())
    result = cli(
        *("generate", "--model", bare, "--image", picture, "--prompt", PROMPT),
        *("--max-new-tokens", 4),
    )
    assert result.exit_code == 0, result.stderr
    assert result.stdout.strip()


def test_answer_is_cut_to_the_context_and_says_so(cli: Cli, text_model: Path) -> None:
    result = cli("generate", "--model", text_model, "--prompt", PROMPT, "--max-new-tokens", 100)
    assert result.exit_code == 0
    assert "leaves room for 29 tokens, not 100" in result.stderr


def test_shipped_model(
    cli: Cli, llava: Path, drafter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--model demo` drafts with the drafter that came with it, not with look-up."""
    shutil.copytree(llava, tmp_path / "lvlm")
    shutil.copytree(drafter, tmp_path / "drafter")
    monkeypatch.setattr("specdec.demo.ASSETS", tmp_path)
    used = []
    answer = specdec.generate

    def spy(*arguments: Any, **keywords: Any) -> Any:
        used.append(keywords["drafter"].name)
        return answer(*arguments, **keywords)

    monkeypatch.setattr(specdec, "generate", spy)
    result = cli("generate", "--model", DEMO, "--prompt", PROMPT, "--max-new-tokens", 3)
    assert result.exit_code == 0, result.stderr
    assert used == ["text_only"]


def test_shipped_model_may_be_missing(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("specdec.demo.ASSETS", tmp_path)
    expect_error(cli("generate", "--model", DEMO, "--prompt", "w5"), "no demonstration model")


def test_bug_while_answering_is_a_traceback(
    cli: Cli, text_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ValueError from the middle of an answer is no refusal."""

    def fail(*arguments: Any, on_emission: Callable[[Any], None], **keywords: Any) -> Any:
        on_emission(specdec.engine.Emission(0, 5, False))
        raise ValueError("inside")

    monkeypatch.setattr(specdec, "generate", fail)
    result = cli("generate", "--model", text_model, "--prompt", PROMPT)
    assert isinstance(result.exception, ValueError)


def test_refusal_of_generate_is_one_line(
    cli: Cli, text_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any, **keywords: Any) -> Any:
        raise ValueError("specdec does not support num_beams=4 in generate")

    monkeypatch.setattr(specdec, "generate", refuse)
    arguments = ("generate", "--model", text_model, "--prompt", PROMPT, "--max-new-tokens", 9)
    result = cli(*arguments)
    expect_error(result, "LlamaForCausalLM cannot answer this: .*num_beams=4")


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        (("--tree", "wide"), "--tree wide: expected a number"),
        (("--tree", "2,0"), "--tree 2,0: expected"),
        (("--tree", "9,9,9"), r"--tree 9,9,9 has 819 drafted tokens, at most 256"),
        (("--tree", "999999999999"), r"--tree 999999999999 has"),
        (("--top-p", "0.5"), "--top-p has no effect.*--temperature"),
        (("--drafter", "no/such"), "--drafter no/such: no such folder.*ngram, self_pruned or none"),
        (("--image", "{picture}"), "text model .*no --image"),
        (("--prompt", ""), "the prompt has no tokens"),
        (("--prompt", "w5 " * 40), "40 tokens, 0 of them for images.* context of 32"),
    ],
)
def test_wrong_options(
    cli: Cli, text_model: Path, picture: Path, options: tuple[str, ...], pattern: str
) -> None:
    placed = [option.format(picture=picture) for option in options]
    arguments = ("generate", "--model", text_model, "--prompt", PROMPT, "--max-new-tokens", 9)
    expect_error(cli(*arguments, *placed), pattern)


def remove(*patterns: str) -> Spoil:
    def spoil(folder: Path) -> None:
        for pattern in patterns:
            for path in folder.glob(pattern):
                path.unlink()

    return spoil


def write(name: str, text: str) -> Spoil:
    return lambda folder: (folder / name).write_text(text) and None


def truncate_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:4000])


def drop_a_weight(folder: Path) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    del weights[next(name for name in sorted(weights) if name.endswith("q_proj.weight"))]
    save_file(weights, path, metadata={"format": "pt"})


def shrink_a_weight(folder: Path) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    name = next(name for name in sorted(weights) if name.endswith("q_proj.weight"))
    weights[name] = weights[name][:-1].clone()
    save_file(weights, path, metadata={"format": "pt"})


def pickle_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    torch.save(load_file(path), folder / "pytorch_model.bin")
    path.unlink()


def lose_a_shard(folder: Path) -> None:
    remove("model.safetensors")(folder)
    index = {"metadata": {}, "weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


CUSTOM = json.dumps({"model_type": "mine", "auto_map": {"AutoConfig": "code.Mine"}})


@pytest.mark.parametrize(
    ("spoil", "pattern"),
    [
        (remove("config.json"), "holds no config.json"),
        (write("config.json", "{"), "config.json is not JSON"),
        (write("config.json", "[]"), "no JSON object"),
        (write("config.json", '{"model_type": "unheard"}'), "config.json cannot be used.*unheard"),
        (write("config.json", CUSTOM), "'mine'.* code of its own"),
        (write("config.json", BertConfig().to_json_string().replace("bert", "vit")), "neither"),
        (remove("model.safetensors"), "no weights"),
        (pickle_weights, "pickled .pytorch_model.bin"),
        (truncate_weights, "weights cannot be loaded"),
        (drop_a_weight, "1 weights of LlavaForConditionalGeneration are missing.*q_proj"),
        (shrink_a_weight, "weights cannot be loaded"),
        (lose_a_shard, "2 of 2 shards missing: one.safetensors"),
        (remove("processor_config.json", "*preprocessor*"), "processor"),
        (remove("tokenizer*", "processor*", "*.jinja"), "processor cannot be loaded"),
        (write("chat_template.jinja", "{{ raise_exception('no images') }}"), "no images"),
        (write("chat_template.jinja", "{{ 'w5' }}"), "LlavaProcessor|cannot answer"),
    ],
)
def test_wrong_checkpoints(
    cli: Cli, llava: Path, picture: Path, tmp_path: Path, spoil: Spoil, pattern: str
) -> None:
    folder = spoilt(llava, tmp_path / "model", spoil)
    expect_error(
        cli("generate", "--model", folder, "--image", picture, "--prompt", PROMPT), pattern
    )


def test_unsupported_model_is_refused_without_its_weights(cli: Cli, tmp_path: Path) -> None:
    """A model that cannot run is found out before gigabytes are read: here there are none."""
    processors.build().tokenizer.save_pretrained(tmp_path)
    MambaConfig().save_pretrained(tmp_path)
    result = cli("generate", "--model", tmp_path, "--prompt", PROMPT)
    expect_error(result, "cannot run MambaForCausalLM: its text tower has layers .*linear_att")


def test_model_path_that_is_no_folder(cli: Cli, picture: Path) -> None:
    expect_error(cli("generate", "--model", "no/such", "--prompt", "w5"), "no/such does not exist")
    expect_error(cli("generate", "--model", picture, "--prompt", "w5"), "is a file, not a folder")


def test_drafters_that_do_not_fit(cli: Cli, llava: Path, drafter: Path, tmp_path: Path) -> None:
    families.causal_lm(vocab_size=40).save_pretrained(tmp_path / "small")
    broken = spoilt(drafter, tmp_path / "broken", truncate_weights)
    unknown = spoilt(drafter, tmp_path / "unknown", write("drafter.json", '{"kind": "psychic"}'))
    for folder, pattern in (
        (tmp_path / "small", "does not fit: .*vocabulary of 40.* 160"),
        (broken, "cannot be loaded"),
        (unknown, "'psychic' is not known"),
        (tmp_path, "no config.json"),
    ):
        result = cli("generate", "--model", llava, "--prompt", PROMPT, "--drafter", folder)
        expect_error(result, pattern)


def test_wrong_images_are_found_before_the_model_is_loaded(cli: Cli, tmp_path: Path) -> None:
    empty = tmp_path / "empty.png"
    empty.touch()
    expect_error(
        cli("generate", "--model", "no/such", "--image", empty, "--prompt", "w5"), "0 bytes"
    )
