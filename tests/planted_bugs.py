"""Would the tests notice? Plants one bug after another in a copy of the checkout and runs the tests
that should turn red: `python tests/planted_bugs.py [--only TEXT]`.

Exits with 1 if a bug went unnoticed, or if a line to break is not there any more.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("specdec", "drafters", "verifiers", "training", "eval", "tests")
MAPPED = ("drafters", "verifiers", "training", "eval")


class Bug(NamedTuple):
    """``old`` becomes ``new`` in ``file``; one of ``tests`` has to fail."""

    name: str
    file: str
    old: str
    new: str
    tests: str


PATIENCE = 600  # seconds, several times what the tests named below take
ENGINE = "tests/engine tests/test_generation.py tests/verifiers"
BUGS = (
    # Masks and positions.
    Bug(
        "a node sees its siblings",
        "specdec/runtime/hook.py",
        ".masked_fill_(visible, 0)",
        ".fill_(0)",
        "tests/runtime tests/verifiers",
    ),
    Bug(
        "a lone node sees its siblings",
        "specdec/runtime/hook.py",
        " and self.rows[0].visible is None:",
        ":",
        "tests/runtime tests/drafters tests/verifiers",
    ),
    Bug(
        "nodes of a chain see what comes after them",
        "specdec/runtime/hook.py",
        ".triu_(segment.length - count + 1)",
        ".triu_(segment.length - count + 2)",
        "tests/runtime tests/verifiers tests/drafters",
    ),
    Bug(
        "sliding windows ignored",
        "specdec/runtime/hook.py",
        "        if mask_function is not plain:\n",
        "        if False:\n",
        "tests/runtime tests/verifiers",
    ),
    Bug(
        "windows count nodes, not depths",
        "specdec/runtime/hook.py",
        "positions[sequence.committed : segment.length] = scratch",
        "positions[sequence.committed : segment.length] = torch.arange("
        "sequence.committed, segment.length)",
        "tests/runtime tests/verifiers",
    ),
    Bug(
        "positions count nodes, not depths",
        "specdec/runtime/paged_model.py",
        "[first + depth for depth in nodes.depths]",
        "[first + index for index in range(len(nodes.depths))]",
        "tests/runtime tests/verifiers",
    ),
    Bug(
        "positions of M-RoPE without their offset",
        "specdec/runtime/paged_model.py",
        "first = nodes.sequence.committed + offset",
        "first = nodes.sequence.committed",
        "tests/verifiers",
    ),
    # The cache.
    Bug(
        "accepted rows stay where they were",
        "specdec/cache/paged_kv.py",
        "        if moves:\n",
        "        if False:\n",
        "tests/cache",
    ),
    Bug(
        "pages taken for contiguous",
        "specdec/cache/paged_kv.py",
        "sequence.contiguous = sequence.pages == list(range(first, first + len(sequence.pages)))",
        "sequence.contiguous = True",
        "tests/cache",
    ),
    Bug(
        "freed pages are lost",
        "specdec/cache/paged_kv.py",
        "            self.allocator.free(sequence.pages)\n",
        "",
        "tests/cache tests/engine",
    ),
    Bug(
        "a failed forward leaves its nodes",
        "specdec/runtime/paged_model.py",
        "                del sequence.scratch_depths[-count:]\n",
        "                pass\n",
        f"tests/runtime {ENGINE}",
    ),
    # Shared pages.
    Bug(
        "a shared page is written",
        "specdec/cache/paged_kv.py",
        "copied = used > 0 and self.allocator.refs(sequence.pages[first]) > 1",
        "copied = False",
        "tests/cache",
    ),
    Bug(
        "pixels are not part of a page's name",
        "verifiers/page_keys.py",
        "for place in range(start, stop) if place in pixels]",
        "for place in range(start, stop) if False]",
        "tests/verifiers/test_sharing.py",
    ),
    Bug(
        "too little is copied of a marked page",
        "specdec/cache/paged_kv.py",
        "mark.length % self.page_size)",
        "mark.length % self.page_size - 1)",
        "tests/cache",
    ),
    Bug(
        "the text behind a cached image has positions of its own",
        "verifiers/transformers_model.py",
        "range(len(rest)), None, handle.offset",
        "range(len(rest)), None, 0 * handle.offset",
        "tests/verifiers/test_sharing.py",
    ),
    Bug(
        "a page that is given away keeps its name",
        "specdec/cache/pages.py",
        "                del self._page_of[key]\n",
        "                pass\n",
        "tests/cache",
    ),
    Bug(
        "what a preempted request said is not computed again",
        "specdec/engine/engine.py",
        "        if said:\n",
        "        if False:\n",
        "tests/verifiers/test_sharing.py",
    ),
    # The model is left as it was.
    Bug(
        "the attention stays switched",
        "specdec/runtime/paged_model.py",
        "config[_IMPLEMENTATION] = name",
        "pass",
        f"tests/runtime {ENGINE}",
    ),
    # Families.
    Bug(
        "Llama 4's nodes are where they are in the row",
        "verifiers/llama4.py",
        "before = [place - index for index, place in enumerate(places)]",
        "before = [places[0] for _ in places]",
        "tests/verifiers/test_families.py -k llama4",
    ),
    Bug(
        "Llama 4 forgets a row's padding",
        "verifiers/llama4.py",
        "            _padding(sequence) + sequence.committed + depth\n",
        "            sequence.committed + depth\n",
        "tests/verifiers/test_families.py -k llama4",
    ),
    Bug(
        "latents of one node for another's",
        "specdec/runtime/dense.py",
        "part = slice(start, start + count)",
        "part = slice(0, count)",
        "tests/verifiers/test_families.py -k deepseek_v3",
    ),
    Bug(
        "expanded keys are seen by siblings",
        "specdec/runtime/dense.py",
        "allowed[:, sequence.committed :] &= visible.to(device)",
        "pass",
        "tests/verifiers/test_families.py -k deepseek_v3",
    ),
    Bug(
        "values that a layer changes are not noticed",
        "specdec/runtime/hook.py",
        "self._layers.get((id(key), id(value)))",
        "dict((ids[0], at) for ids, at in self._layers.items()).get(id(key))",
        "tests/verifiers/test_unlisted.py",
    ),
    Bug(
        "refused tokens stay in the state",
        "specdec/runtime/states.py",
        "index: _copy(layer) if index in self.recurrent else layer",
        "index: layer",
        "tests/verifiers/test_families.py -k qwen3_5",
    ),
    Bug(
        "accepted tokens never reach the state",
        "specdec/runtime/stateful_model.py",
        "            beside.behind += [beside.nodes[node] for node in nodes]\n",
        "            pass\n",
        "tests/verifiers/test_families.py -k qwen3_5",
    ),
    Bug(
        "every row gets the first one's state",
        "specdec/runtime/states.py",
        "layer.reorder_cache(torch.tensor([row]))",
        "layer.reorder_cache(torch.tensor([0]))",
        "tests/verifiers/test_families.py -k padded",
    ),
    Bug(
        "every row sees the first one's images",
        "specdec/runtime/stateful_model.py",
        "value[row : row + 1, -1:]",
        "value[:1, -1:]",
        "tests/verifiers/test_families.py -k mllama",
    ),
    # Drafters.
    Bug(
        "the drafter commits the wrong branch",
        "drafters/text_only.py",
        "kept.append(state.scratch[child])",
        "kept.append(len(kept))",
        "tests/drafters",
    ),
    Bug(
        "the drafter reads visual tokens",
        "drafters/text_only.py",
        "token < self._vocab_size and token not in self._visual",
        "token < self._vocab_size",
        "tests/drafters",
    ),
    Bug(
        "the drafter says visual tokens",
        "drafters/text_only.py",
        ".index_fill_(1, self._never, -torch.inf)",
        "",
        "tests/drafters",
    ),
    # Acceptance.
    Bug(
        "a sibling too many is accepted",
        "specdec/acceptance.py",
        "return u * q < p",
        "return u * q < 1.05 * p",
        "tests/test_acceptance.py",
    ),
    Bug(
        "rejections leave the target as it is",
        "specdec/acceptance.py",
        "        p = residual(p, q)\n",
        "",
        "tests/test_acceptance.py",
    ),
    Bug(
        "siblings drawn without replacement, tried as if with",
        "specdec/acceptance.py",
        'if tree.siblings == "without_replacement":',
        "if False:",
        "tests/test_acceptance.py",
    ),
    Bug(
        "the bonus token is forgotten",
        "specdec/engine/engine.py",
        "zip((0, *verdict.path), (*verdict.path, None), strict=True)",
        "zip((0, *verdict.path), verdict.path, strict=False)",
        ENGINE,
    ),
    # Where an answer ends.
    Bug(
        "an answer goes on behind its end",
        "specdec/engine/engine.py",
        "        if request.finished:\n            break\n",
        "",
        ENGINE,
    ),
    Bug(
        "processors see the wrong prefix",
        "specdec/engine/request.py",
        "self.ids[None, : self.length + depth]",
        "self.ids[None, : self.length]",
        ENGINE,
    ),
    Bug(
        "padding counts as text",
        "specdec/engine/request.py",
        "padded[prompt.padding[row] :].tolist()",
        "padded.tolist()",
        ENGINE,
    ),
)


def main() -> int:
    """Plant every bug; 0 if each was noticed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="bugs whose name contains this")
    chosen = [bug for bug in BUGS if parser.parse_args().only in bug.name]
    missed = []
    for bug in chosen:
        with tempfile.TemporaryDirectory() as folder:
            verdict = _plant(bug, Path(folder))
        print(f"{verdict:>9}  {bug.name}", flush=True)
        if verdict != "noticed":
            missed.append(bug.name)
    print(f"{len(chosen) - len(missed)} of {len(chosen)} planted bugs noticed")
    return 1 if missed else 0


def _plant(bug: Bug, copy: Path) -> str:
    """`noticed` or what went wrong."""
    for name in FOLDERS:
        links = shutil.ignore_patterns(*MAPPED, "__pycache__") if name == "specdec" else None
        shutil.copytree(ROOT / name, copy / name, ignore=links)
    shutil.copy(ROOT / "pyproject.toml", copy)
    for name in MAPPED:
        (copy / "specdec" / name).symlink_to(copy / name)
    file = copy / bug.file
    text = file.read_text()
    if text.count(bug.old) != 1:
        return f"{text.count(bug.old)} times"
    file.write_text(text.replace(bug.old, bug.new))
    try:
        ran = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-x", "-m", "not gpu", *bug.tests.split()],
            cwd=copy,
            env={**os.environ, "PYTHONPATH": str(copy)},
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )
    except subprocess.TimeoutExpired:
        return "noticed"  # an answer that never ends
    if ran.returncode == 1:
        return "noticed"
    return "UNNOTICED" if ran.returncode == 0 else f"rc {ran.returncode}"


if __name__ == "__main__":
    sys.exit(main())
