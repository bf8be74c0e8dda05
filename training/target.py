"""Train the embedded LVLM from nothing: `python -m specdec.training.target [--out DIR] [--resume]`.

Four stages, each bounded by wall-clock minutes and resumable: `sight` (tower and projector on dense
labels), `terse` (decoder on short answers), `full` (short and full answers, the tower a little
too), `steady` (full answers in words that do not change with the image). The result in DIR loads
with `AutoProcessor` and `AutoModelForImageTextToText` and needs nothing of this package.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn
from transformers import (
    AutoProcessor,
    GenerationConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from specdec.training import align, assess, chat, dialogues, lvlm, sight, speech
from specdec.training.assess import Sample

Told = Callable[[LlavaForConditionalGeneration], None]

MINUTES = {"sight": 27.0, "terse": 9.0, "full": 72.0, "steady": 20.0}
# What the shipped model is trained on; every other task costs all of these time.
TASKS = (
    "grid_cell",
    "grid_row",
    "shapes_at",
    "shapes_color",
    "shapes_absent",
    "shapes_describe",
    "bar_value",
    "bar_absent",
    "bar_compare",
    "bar_table",
    "receipt_price",
    "receipt_absent",
    "receipt_json",
    "pair_first",
)
# Those that it answers well enough to be asked them: see `release`.
SHIPPED = (
    "grid_cell",
    "shapes_at",
    "shapes_color",
    "bar_value",
    "receipt_price",
    "receipt_json",
    "pair_first",
)


def held_out(
    count: int, seed: int = 0, tasks: Sequence[str] = dialogues.TASK_NAMES
) -> list[Sample]:
    """Held-out questions: images, messages, task, fields; nothing in them was seen in training."""
    return assess.samples(count, seed, "held_out", tasks)


def training_split(
    count: int, seed: int = 0, tasks: Sequence[str] = dialogues.TASK_NAMES
) -> list[Sample]:
    """Questions over training-split images, for distilling a drafter from the LVLM's answers."""
    return assess.samples(count, seed, "train", tasks)


def save(model: LlavaForConditionalGeneration, processor: LlavaProcessor, folder: Path) -> None:
    """Write model (bf16) and processor; the folder appears, or is replaced, in one move."""
    fresh = folder.with_name(folder.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    copy = lvlm.build()
    copy.load_state_dict(model.state_dict())
    copy.generation_config = GenerationConfig(
        bos_token_id=lvlm.BOS,
        eos_token_id=lvlm.EOS,
        pad_token_id=lvlm.PAD,
        do_sample=False,
        max_new_tokens=160,
    )
    nn.Module.to(copy, torch.bfloat16)
    copy.save_pretrained(fresh)
    processor.save_pretrained(fresh)
    old = folder.with_name(folder.name + ".old")
    if folder.exists():
        folder.replace(old)
    fresh.replace(folder)
    shutil.rmtree(old, ignore_errors=True)


def _processor(folder: Path) -> LlavaProcessor:
    """The run's processor, fitted once: a resumed run must keep its token ids."""
    if not folder.exists():
        chat.build_processor().save_pretrained(folder)
    loaded = AutoProcessor.from_pretrained(folder)
    assert isinstance(loaded, LlavaProcessor)
    return loaded


def train(
    out: Path, minutes: dict[str, float], tasks: tuple[str, ...], autocast: bool = False
) -> None:
    """Run every unfinished stage; checkpoints go to `out/stages`, the latest LVLM to `out/lvlm`."""
    stages = out / "stages"
    stages.mkdir(parents=True, exist_ok=True)
    model, processor = lvlm.build(), _processor(out / "processor")
    asked = held_out(12 * len(tasks), 7, tasks)
    kinds = dialogues.kinds(tasks)
    heads = sight.train(model, kinds, minutes["sight"], stages / "sight.safetensors")
    sight.settle(model, kinds)
    align.align(model, heads, processor.tokenizer)

    def kept(trained: LlavaForConditionalGeneration) -> None:
        save(trained, processor, out / "lvlm")

    def seen(trained: LlavaForConditionalGeneration) -> None:
        kept(trained)
        plain = lvlm.build().eval()
        plain.load_state_dict(trained.state_dict())
        print(speech.report(plain, processor, asked), flush=True)

    def speak(stage: speech.Stage, told: Told, heads: sight.Heads | None = None) -> None:
        file = stages / f"{stage.name}.safetensors"
        time = minutes[stage.name]
        speech.train(model, processor, stage, time, file, tasks, told, heads, autocast)

    speak(speech.TERSE, kept)
    speak(speech.FULL, seen, heads)
    speak(speech.STEADY, seen)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/lvlm"), help="checkpoints and the finished LVLM"
    )
    parser.add_argument(
        "--resume", action="store_true", help="insist that --out holds something to go on from"
    )
    parser.add_argument(
        "--minutes",
        type=float,
        nargs=len(MINUTES),
        default=list(MINUTES.values()),
        metavar=tuple(stage.upper() for stage in MINUTES),
    )
    parser.add_argument("--tasks", nargs="+", choices=dialogues.TASK_NAMES, default=list(TASKS))
    parser.add_argument(
        "--autocast",
        action="store_true",
        help="compute in bf16 after the first stage; twice as fast on a CPU with AMX",
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    if args.resume and not (args.out / "stages").exists():
        parser.error(f"{args.out} holds no checkpoints to go on from")
    torch.set_num_threads(args.threads)
    minutes = dict(zip(MINUTES, args.minutes, strict=True))
    train(args.out, minutes, tuple(args.tasks), args.autocast)


if __name__ == "__main__":
    main()
