"""transformers' image-text-to-text pipeline, as it is and inside `specdec.enabled`.

The code that calls the pipeline does not change; nor does what it says. Runs on the model that
comes with the package: `python examples/pipeline.py`.
"""

from __future__ import annotations

import time
from typing import Any

import transformers

import specdec
from specdec.demo import Question, load, questions


def chat(question: Question) -> list[dict[str, Any]]:
    """The question as the pipeline takes it: each image by the path of its file."""
    paths = iter(question.images)
    return [
        {
            "role": message["role"],
            "content": [
                {"type": "image", "url": str(next(paths))} if part["type"] == "image" else part
                for part in message["content"]
            ],
        }
        for message in question.messages
    ]


def main(count: int = 8) -> None:
    """Ask the first questions both ways and compare."""
    model, processor, drafter = load()
    pipe = transformers.pipeline("image-text-to-text", model=model, processor=processor)

    def ask(chats: list[Any]) -> tuple[list[str], float]:
        began = time.perf_counter()
        answers = [pipe(text=chat, max_new_tokens=96, return_full_text=False) for chat in chats]
        return [answer[0]["generated_text"] for answer in answers], time.perf_counter() - began

    chats = [chat(question) for question in questions()[:count]]
    ask(chats[:1])  # what runs first runs slower
    plain, plain_seconds = ask(chats)
    with specdec.enabled(model, drafter):
        fast, fast_seconds = ask(chats)

    for answer in fast:
        print(f"- {answer}")
    same = "the same answers" if fast == plain else "OTHER ANSWERS"
    print(f"{len(fast)} questions, {same}: {plain_seconds:.2f} s, enabled {fast_seconds:.2f} s")


if __name__ == "__main__":
    main()
