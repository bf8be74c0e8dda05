"""A server of specdec's, asked by OpenAI's own client: an image, a stream, what speculation did.

Start one, `specdec serve --model demo`, and then: `python examples/openai_client.py`. Give it the
address of another as the only argument.
"""

from __future__ import annotations

import base64
import os
import sys
from pathlib import Path
from typing import Any

from openai import OpenAI

import specdec

IMAGE = Path(specdec.__file__).parent / "assets/images/000.png"


def question(image: Path, text: str) -> list[dict[str, Any]]:
    """A conversation of one turn."""
    data = base64.b64encode(image.read_bytes()).decode()
    url = f"data:image/{image.suffix[1:]};base64,{data}"
    parts = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": text},
    ]
    return [{"role": "user", "content": parts}]


def main(address: str) -> None:
    """Ask the only model that a server has."""
    client = OpenAI(base_url=f"{address}/v1", api_key=os.environ.get("SPECDEC_API_KEY", "none"))
    (model,) = client.models.list().data
    create: Any = client.chat.completions.create  # Any: it wants messages of types of its own
    chunks = create(
        model=model.id,
        messages=question(IMAGE, "Read row 1, column 1."),
        temperature=0,
        max_tokens=64,
        stream=True,
    )
    for chunk in chunks:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
    speculation = chunk.metrics["speculative_decoding"]
    print(f"\n{speculation['mean_acceptance_length']:.1f} tokens a step of the model")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000")
