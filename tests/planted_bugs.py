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
FOLDERS = ("specdec", "drafters", "verifiers", "training", "eval", "tests", "docs", "examples")
FILES = ("pyproject.toml", "README.md", "CONTRIBUTING.md", "Makefile", "mkdocs.yml")
MAPPED = ("drafters", "verifiers", "training", "eval")


class Bug(NamedTuple):
    """``old`` becomes ``new`` in ``file``; one of ``tests`` has to fail."""

    name: str
    file: str
    old: str
    new: str
    tests: str


PATIENCE = 600  # seconds, several times what the tests named below take
KERNEL = "tests/kernels/test_tree_attention.py"
BESIDE = "tests/kernels/test_beside.py"
ENGINE = "tests/engine tests/test_generation.py tests/verifiers"
GUARDS = "tests/test_guards.py"
REPORT = "tests/eval/test_report.py"
DOCS = "tests/docs"
BATCHING = "tests/engine/test_batching.py"
SERVING = "tests/serving/test_threaded.py"
PAGE = "tests/serving/page"
EXPORT = "tests/drafters/test_eagle_export.py"
BUGS = (
    # Masks and positions.
    Bug(
        "a node sees its siblings",
        "specdec/kernels/batch.py",
        " = ~request.visible",
        " = False",
        "tests/kernels/test_reference.py",
    ),
    Bug(
        "a lone node sees its siblings",
        "specdec/kernels/batch.py",
        " and live[0].visible is None:",
        ":",
        "tests/kernels/test_reference.py tests/runtime tests/drafters",
    ),
    Bug(
        "nodes of a chain see what comes after them",
        "specdec/kernels/batch.py",
        "for node in range(1, r.nodes + 1)]",
        "for node in range(2, r.nodes + 2)]",
        "tests/kernels/test_reference.py",
    ),
    Bug(
        "padding is what lies behind a text",
        "specdec/kernels/padded.py",
        "places.masked_fill(behind, 0)",
        "places",
        "tests/kernels/test_padded.py",
    ),
    Bug(
        "padded heads read each other's masks",
        "specdec/kernels/padded.py",
        "each.repeat(1, groups, 1)",
        "each.repeat_interleave(groups, 1)",
        "tests/kernels/test_padded.py",
    ),
    Bug(
        "rows of groups stay where the groups were",
        "specdec/kernels/padded.py",
        "    if found != list(range(len(found))):",
        "    if False:",
        "tests/kernels/test_padded.py",
    ),
    Bug(
        "single nodes are padded to a piece of a prompt",
        "specdec/kernels/padded.py",
        "<= _CALL + _PADDING",
        "<= 1000 * _CALL + _PADDING",
        "tests/kernels/test_padded.py",
    ),
    Bug(
        "sliding windows ignored",
        "specdec/runtime/hook.py",
        "        if mask_function is plain:\n",
        "        if True:\n",
        "tests/runtime tests/verifiers",
    ),
    Bug(
        "windows count nodes, not depths",
        "specdec/kernels/batch.py",
        "positions[request.committed : request.length] = scratch",
        "pass",
        "tests/kernels/test_reference.py",
    ),
    Bug(
        "positions count nodes, not depths",
        "specdec/runtime/node_batch.py",
        "[first + depth for depth in nodes.depths]",
        "[first + index for index in range(len(nodes.depths))]",
        "tests/runtime tests/verifiers",
    ),
    Bug(
        "positions of M-RoPE without their offset",
        "specdec/runtime/node_batch.py",
        "first = nodes.sequence.end + offset",
        "first = nodes.sequence.end",
        "tests/verifiers",
    ),
    # The Triton kernels.
    Bug(
        "a key behind the split is read",
        "specdec/kernels/tree_attention.py",
        "valid = place < high",
        "valid = place < high + 1",
        KERNEL,
    ),
    Bug(
        "windows end at the tree",
        "specdec/kernels/tree_attention.py",
        "allowed &= (end + depth)[None, :] >= sees_from[:, None]",
        "allowed &= (end + depth)[None, :] >= 0 * sees_from[:, None]",
        KERNEL,
    ),
    Bug(
        "visual mass does not fade",
        "specdec/kernels/tree_attention.py",
        "state_mass = state_mass * fade +",
        "state_mass = state_mass +",
        KERNEL,
    ),
    Bug(
        "ancestors of the first word only",
        "specdec/kernels/tree_attention.py",
        "row * words + word",
        "row * words",
        KERNEL,
    ),
    Bug(
        "the tree is read by every split",
        "specdec/kernels/tree_attention.py",
        "if split == splits - 1:",
        "if split >= 0:",
        KERNEL,
    ),
    Bug(
        "sinks take no weight",
        "specdec/kernels/merge.py",
        "total = tl.exp2(sink - top)",
        "total = 0.0",
        KERNEL,
    ),
    Bug(
        "a shared prefix is read twice",
        "specdec/kernels/packed.py",
        "shared[member] = end",
        "shared[member] = 0",
        KERNEL,
    ),
    Bug(
        "partial results beside overwrite others",
        "specdec/kernels/tree_attention.py",
        "_launch(other, own.parts,",
        "_launch(other, 0,",
        BESIDE,
    ),
    Bug(
        "the end of keys without scratch is taken for a prefix",
        "specdec/kernels/tree_attention.py",
        "tl.where(last > 0,",
        "tl.where(scratch > 0,",
        BESIDE,
    ),
    Bug(
        "queries are not cast to the pools beside",
        "specdec/kernels/tree_attention.py",
        "_Launch(query.to(keys.dtype), ",
        "_Launch(query, ",
        BESIDE,
    ),
    Bug(
        "scratch beside is read where there is none",
        "specdec/kernels/packed.py",
        "scratch = len(requests[request].depths) if last else 0",
        "scratch = max(1, len(requests[request].depths)) if last else 0",
        BESIDE,
    ),
    Bug(
        "windows hide keys beside",
        "specdec/kernels/tree_attention.py",
        "_launch(other, own.parts, state, part_out, scale, softcap)",
        "_launch(other, own.parts, state, part_out, scale, softcap, first)",
        BESIDE,
    ),
    Bug(
        "logits beside are not capped",
        "specdec/kernels/tree_attention.py",
        "_launch(other, own.parts, state, part_out, scale, softcap)",
        "_launch(other, own.parts, state, part_out, scale, None)",
        BESIDE,
    ),
    Bug(
        "rows of no group beside have a prefix part",
        "specdec/kernels/tree_attention.py",
        "for launch in (own, *others)):",
        "for launch in (own,)):",
        BESIDE,
    ),
    Bug(
        "masks are moved by the keys beside",
        "specdec/kernels/reference.py",
        "F.pad(seen, (other.length, 0))",
        "F.pad(seen, (0, other.length))",
        BESIDE,
    ),
    Bug(
        "masks are as wide as the longest request",
        "specdec/kernels/reference.py",
        "        if len(batch.segments) > 1:\n            rows = query",
        "        if own.stop - own.start < batch.nodes:\n            rows = query",
        BESIDE,
    ),
    Bug(
        "joined keys stay wider than queries",
        "specdec/kernels/reference.py",
        "            if key.dtype != query.dtype:\n",
        "            if False:\n",
        BESIDE,
    ),
    Bug(
        "tables that meet again are taken for the same",
        "specdec/kernels/prefix.py",
        "one[low:middle] == other[low:middle]",
        "one[middle - 1] == other[middle - 1]",
        "tests/kernels/test_prefix.py",
    ),
    Bug(
        "members that share nothing are grouped",
        "specdec/kernels/prefix.py",
        "common = min(",
        "common = max(",
        "tests/kernels/test_prefix.py",
    ),
    Bug(
        "moved rows of the wrong length",
        "specdec/kernels/paged_copy.py",
        "tl.load(base + source + at, mask=at < words)",
        "tl.load(base + source + at, mask=at < words - 1)",
        "tests/kernels/test_paged_copy.py",
    ),
    Bug(
        "flags of a page's former owner stay",
        "specdec/cache/pools.py",
        "self._visual.view(-1, self._page_size)[pages] = 0",
        "pass",
        "tests/verifiers/test_visual_mass.py",
    ),
    Bug(
        "flags are not copied with a page",
        "specdec/cache/pools.py",
        "return rows if self._visual is None else [*rows, self._visual.view(-1, 1, 1)]",
        "return rows",
        "tests/cache",
    ),
    # Hidden states.
    Bug(
        "the hidden states of tokens that were run again",
        "specdec/runtime/stateful_model.py",
        "self.hidden[-len(wanted.tokens) :]",
        "self.hidden[: len(wanted.tokens)]",
        "tests/verifiers/test_hidden.py",
    ),
    # Counterfactual labels.
    Bug(
        "tokens depend on an image only if both others change them",
        "training/counterfactual.py",
        ".any(0)",
        ".all(0)",
        "tests/training/test_counterfactual.py",
    ),
    # Files of EAGLE heads.
    Bug(
        "d2t of an export has tokens, not offsets",
        "drafters/eagle_raw.py",
        "tensors = cast(head, dtype)",
        'tensors = cast(head, dtype) | {"d2t": head.spoken}',
        EXPORT,
    ),
    Bug(
        "two norms of an export under each other's names",
        "drafters/eagle_export.py",
        "for name, tensor in head.state_dict().items()",
        """for name, tensor in zip(
            head.state_dict(),
            (
                head.state_dict()[
                    name.replace("hidden_norm", "x")
                    .replace("input_layernorm", "hidden_norm")
                    .replace("x.", "input_layernorm.")
                ]
                for name in head.state_dict()
            ),
            strict=True,
        )""",
        EXPORT,
    ),
    Bug(
        "an export with tied embeddings",
        "drafters/eagle_layer.py",
        '"tie_word_embeddings": False',
        '"tie_word_embeddings": True',
        EXPORT,
    ),
    Bug(
        "an export does not say which layers it reads",
        "drafters/eagle_raw.py",
        "        IDS: list(config.layers),\n",
        "",
        EXPORT,
    ),
    Bug(
        "SGLang is told of the inputs of layers",
        "drafters/eagle_raw.py",
        "[layer - 1 for layer in config.layers]",
        "list(config.layers)",
        EXPORT,
    ),
    Bug(
        "where the residual is taken is lost",
        "drafters/eagle_raw.py",
        'bool(settings.get("norm_before_residual", False))',
        "False",
        EXPORT,
    ),
    Bug(
        "outputs of layers read as inputs",
        "drafters/eagle_raw.py",
        "tuple(layer + 1 for layer in nested)",
        "tuple(nested)",
        "tests/drafters/test_eagle_files.py",
    ),
    Bug(
        "tables that disagree are loaded",
        "drafters/eagle_layer.py",
        'if not torch.equal(marked, tables["t2d"]):',
        "if False:",
        "tests/drafters/test_eagle_files.py",
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
        "specdec/cache/sequence.py",
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
        "copied = begun and self.allocator.refs(sequence.pages[first]) > 1",
        "copied = False",
        "tests/cache",
    ),
    Bug(
        "pixels are not part of a page's name",
        "verifiers/page_keys.py",
        "for place in range(start, end) if place in pixels]",
        "for place in range(start, end) if False]",
        "tests/verifiers/test_sharing.py",
    ),
    Bug(
        "the image does not end a page",
        "verifiers/page_keys.py",
        "lead = -images[-1][0].stop % page_size if images else 0",
        "lead = 0",
        "tests/verifiers/test_sharing.py",
    ),
    Bug(
        "unused slots are read as keys",
        "specdec/kernels/tree_attention.py",
        "slot = lead + place",
        "slot = place",
        KERNEL,
    ),
    Bug(
        "the text behind a cached image has positions of its own",
        "verifiers/prefill.py",
        "range(len(rest)), None, handle.offset",
        "range(len(rest)), None, 0 * handle.offset",
        "tests/verifiers/test_sharing.py",
    ),
    Bug(
        "a page that is given away keeps its name",
        "specdec/cache/pages.py",
        "del self._page_of[self._key_of.pop(page)]",
        "self._key_of.pop(page)",
        "tests/cache",
    ),
    Bug(
        "what a preempted request said is not computed again",
        "specdec/engine/intake.py",
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
        "            _padding(sequence) + sequence.end + depth\n",
        "            sequence.end + depth\n",
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
        "self._pools.get((id(key), id(value)))",
        "dict((ids[0], at) for ids, at in self._pools.items()).get(id(key))",
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
        "drafters/texts.py",
        "kept.append(text.scratch[child])",
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
        "drafters/paged_network.py",
        ".index_fill_(1, self._never, -torch.inf)",
        "",
        "tests/drafters",
    ),
    # Drafters that leave out a part of the image.
    Bug(
        "drafts do not see their root",
        "drafters/self_pruned.py",
        "(1, 0), value=True)",
        "(1, 0), value=False)",
        "tests/drafters/test_self_pruned.py -k branches",
    ),
    Bug(
        "what is left out closes positions up",
        "specdec/cache/sequence.py",
        "return self.committed + self.left_out",
        "return self.committed",
        "tests/drafters/test_self_pruned.py -k masked",
    ),
    Bug(
        "windows count what is left",
        "specdec/runtime/hook.py",
        "if all(sequence.places is None for sequence, *_ in self.rows):",
        "if True:",
        "tests/drafters/test_self_pruned.py -k masked",
    ),
    Bug(
        "windows of prompts count what is left",
        "specdec/runtime/hook.py",
        "if forward is not None and forward.places is not None:",
        "if False:",
        "tests/drafters/test_vision_pruned.py -k masked",
    ),
    Bug(
        "pages with words are left out",
        "drafters/selection.py",
        "else -(-(lead + run.start) // page_size)",
        "else (lead + run.start) // page_size",
        "tests/drafters/test_selection.py",
    ),
    Bug(
        "an image is lost",
        "drafters/selection.py",
        "math.ceil(ratio * len(run)), share_uniform)",
        "math.floor(ratio * len(run)), share_uniform)",
        "tests/drafters/test_selection.py",
    ),
    Bug(
        "the lower layers look",
        "specdec/runtime/gaze.py",
        "return self._seen > self._skipped",
        "return self._seen <= self._counted",
        "tests/verifiers/test_gaze.py",
    ),
    Bug(
        "another node looks",
        "specdec/runtime/hook.py",
        "node = start + watched",
        "node = start + count - 1",
        "tests/verifiers/test_gaze.py",
    ),
    Bug(
        "gaze beyond the window",
        "specdec/runtime/hook.py",
        "seen = within(first, node, length, key.device)",
        "seen = None",
        "tests/verifiers/test_gaze.py",
    ),
    Bug(
        "the choice is never made again",
        "drafters/self_pruned.py",
        "if choice is None or choice.gaze is not request.gaze:",
        "if choice is None:",
        "tests/drafters/test_self_pruned.py -k again",
    ),
    Bug(
        "borrowed pages are kept",
        "drafters/self_pruned.py",
        "                paged.kv.free(sequence)\n",
        "                pass\n",
        "tests/drafters/test_self_pruned.py -k llava",
    ),
    Bug(
        "skipped layers stay skipped",
        "specdec/runtime/bypass.py",
        '            del instance["forward"]\n',
        "            pass\n",
        "tests/drafters/test_self_pruned.py -k Skipping",
    ),
    Bug(
        "other threads miss skipped layers",
        "specdec/runtime/bypass.py",
        "if hook.CURRENT.get() is None:",
        "if False:",
        "tests/drafters/test_self_pruned.py -k threads",
    ),
    Bug(
        "features of other visual tokens",
        "specdec/runtime/text_tower.py",
        "return features[number[row, columns][mask[row, columns]]]",
        "return features[: int(mask[row, columns].sum())]",
        "tests/drafters/test_vision_pruned.py -k qwen3_vl",
    ),
    Bug(
        "a small model's positions close up",
        "drafters/vision_pruned.py",
        "offset=last + 1 - whole",
        "offset=last + 1 - len(places)",
        "tests/drafters/test_vision_pruned.py -k masked",
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
        "p, exact = residual(p, q), None",
        "exact = None",
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
        "specdec/engine/target.py",
        "        if not self.request.finished:\n            self._emit(",
        "        if not verdict.path:\n            self._emit(",
        ENGINE,
    ),
    # Where an answer ends.
    Bug(
        "an answer goes on behind its end",
        "specdec/engine/target.py",
        "if self.request.finished or self.tree.topology",
        "if self.tree.topology",
        ENGINE,
    ),
    Bug(
        "processors are called behind the end",
        "specdec/engine/target.py",
        "return -1 if self.request.finished else int(",
        "return int(",
        "tests/test_rules.py",
    ),
    Bug(
        "processors see the wrong prefix",
        "specdec/engine/request.py",
        "processor(self.ids[None, : self.length]",
        "processor(self.ids[None, : self.length - 1]",
        ENGINE,
    ),
    Bug(
        "rows share a processor that remembers",
        "specdec/rules.py",
        "steps.append(part.fork())",
        "steps.append(part)",
        "tests/test_rules.py",
    ),
    Bug(
        "a row that was stopped ends alone",
        "specdec/engine/together.py",
        "if self.ends_alone or bool(self._ended.all()):",
        "if True:",
        "tests/test_rules.py",
    ),
    # Caches handed in and out.
    Bug(
        "tokens behind the end stay in the cache",
        "specdec/engine/target.py",
        "(0, *self.verdict.path)[: len(self.emissions)]",
        "(0, *self.verdict.path)",
        "tests/test_states.py",
    ),
    Bug(
        "rows that ended go on with other tokens",
        "specdec/states.py",
        "[prepared.pad_token] * (missing - 1)",
        "[7] * (missing - 1)",
        "tests/test_states.py",
    ),
    Bug(
        "two threads switch the attention",
        "specdec/runtime/paged_model.py",
        "        with self._seam.switching:\n",
        "        if True:\n",
        "tests/test_enabled.py",
    ),
    Bug(
        "the context left first takes the other away",
        "specdec/switch.py",
        "switch.open.remove(generate)",
        "switch.open.pop()",
        "tests/test_enabled.py",
    ),
    Bug(
        "padding counts as text",
        "specdec/engine/request.py",
        "padded[prompt.padding[row] :].tolist()",
        "padded.tolist()",
        ENGINE,
    ),
    # Questions to measure on, and their scores.
    Bug(
        "questions: a turn comes with its answer",
        "eval/dialogue_adapters.py",
        "turns[: asked[number] + 1]",
        "turns[: asked[number] + 2]",
        "tests/eval/test_questions.py",
    ),
    Bug(
        "questions: one task is asked before the next",
        "eval/questions.py",
        "waiting.append(queue)",
        "waiting.appendleft(queue)",
        "tests/eval/test_questions.py",
    ),
    Bug(
        "questions: the seed is not used",
        "eval/questions.py",
        "random.Random(seed)",
        "random.Random()",
        "tests/eval/test_questions.py",
    ),
    Bug(
        "questions: a broken row ends the draw",
        "eval/questions.py",
        "        except ValueError as error:\n            skipped.append",
        "        except KeyError as error:\n            skipped.append",
        "tests/eval/test_questions.py",
    ),
    Bug(
        "questions: a broken row is not listed",
        "eval/questions.py",
        "skipped.append(Skipped(pool.where(number), str(error)))",
        "error.add_note(pool.where(number))",
        "tests/eval/test_questions.py",
    ),
    Bug(
        "questions: images by place, not by key",
        "eval/dataset_pool.py",
        "self._images[self._rows[key]]",
        "self._images[list(self._rows).index(key) - 1]",
        "tests/eval/test_questions.py",
    ),
    Bug(
        "questions: a class by its number",
        "eval/dataset_pool.py",
        "row[name] = known[row[name]] if row[name] >= 0 else None",
        "pass",
        "tests/eval/test_questions.py",
    ),
    Bug(
        "questions: images in the order of their columns",
        "eval/dialogue_adapters.py",
        'images_in(row, (f"image_{mark}",))',
        'images_in(row, (f"image_{len(images) + 1}",))',
        "tests/eval/test_questions.py",
    ),
    Bug(
        "scores: all ten answers count",
        "eval/scoring.py",
        "(sum(same) - each) / 3",
        "sum(same) / 3",
        "tests/eval/test_scoring.py",
    ),
    Bug(
        "scores: 5 % of the answer",
        "eval/scoring.py",
        "0.05 * abs(about)",
        "0.05 * abs(number)",
        "tests/eval/test_scoring.py",
    ),
    Bug(
        "scores: half the length is similar",
        "eval/scoring.py",
        "if distance < 0.5",
        "if distance <= 0.5",
        "tests/eval/test_scoring.py",
    ),
    Bug(
        "scores: the first conclusion counts",
        "eval/scoring.py",
        "marked[-1:]",
        "marked[:1]",
        "tests/eval/test_scoring.py",
    ),
    Bug(
        "scores: a hidden answer is empty",
        "eval/scoring.py",
        "if reference.strip()]",
        "]",
        "tests/eval/test_scoring.py",
    ),
    Bug(
        "data sets: splits are mixed",
        "training/tables.py",
        'file.stem.partition("-")[0]',
        '""',
        "tests/training/test_tables.py",
    ),
    # Fidelity, calibration, audits.
    Bug(
        "fidelity: rows draw with other seeds than alone",
        "eval/policy_runs.py",
        "torch.Generator().manual_seed(seed)",
        "torch.Generator().manual_seed(seed + 1)",
        "tests/eval/test_fidelity.py",
    ),
    Bug(
        "fidelity: the oracle's shadows lag behind",
        "eval/oracle.py",
        "super().commit(each, nodes)",
        "super().commit(each, nodes if each is handle.own else nodes[:1])",
        "tests/eval/test_fidelity.py",
    ),
    Bug(
        "fidelity: answers that were cut off state facts",
        "eval/fidelity_bench.py",
        "got.right if answer.ended else 0",
        "got.right",
        "tests/eval/test_fidelity.py",
    ),
    Bug(
        "fidelity: an unfinished line counts",
        "eval/fidelity_run.py",
        'if line.endswith("\\n"):',
        "if line:",
        "tests/eval/test_fidelity.py",
    ),
    Bug(
        "fidelity: curves jump to the next point",
        "eval/retention.py",
        "return np.where(over.any(1), found, np.nan)",
        "return np.where(over.any(1), wanted[rows, right], np.nan)",
        "tests/eval/test_retention.py",
    ),
    Bug(
        "fidelity: a policy is resampled apart from the lossless one",
        "eval/retention.py",
        "lambda: ratio(counts.right, lossless.right)",
        "lambda: ratio(counts.right, counts.total) / ratio(lossless.right, counts.total)[::-1]",
        "tests/eval/test_retention.py",
    ),
    Bug(
        "calibration: a normal bound",
        "eval/bounds.py",
        "    return high\n\n\ndef least",
        "    return np.mean(losses) + 1.64 * np.std(losses) / len(losses) ** 0.5\n\n\ndef least",
        "tests/eval/test_bounds.py",
    ),
    Bug(
        "calibration: the best stake is picked afterwards",
        "eval/bounds.py",
        "    return float(most + np.log(np.exp(logs - most).sum()))\n\n\ndef upper_bound",
        "    return float((logs - np.log(_WEIGHTS)).max())\n\n\ndef upper_bound",
        "tests/eval/test_bounds.py tests/eval/test_calibrate.py",
    ),
    Bug(
        "calibration: tests on behind a failure",
        "eval/calibration.py",
        "stopped.add(policy.gamma)",
        "pass",
        "tests/eval/test_calibrate.py",
    ),
    Bug(
        "calibration: each γ has the whole error probability",
        "eval/calibration.py",
        "(1 - confidence) / len(gammas)",
        "(1 - confidence)",
        "tests/eval/test_calibrate.py",
    ),
    # Planning ahead, and what runs on a GPU.
    Bug(
        "copied texts have keys for values",
        "eval/filled.py",
        "self.context), keys, values)",
        "self.context), values, keys)",
        "tests/eval/test_step_costs.py",
    ),
    Bug(
        "a projection takes drafting for nothing",
        "eval/projection.py",
        "per_token = plain / (verify + draft)",
        "per_token = plain / verify",
        "tests/eval/test_projection.py",
    ),
    Bug(
        "steps that were held back count as refusals",
        "eval/projection.py",
        "steps = stats.num_spec_steps - stats.num_plain_steps",
        "steps = stats.num_spec_steps",
        "tests/eval/test_projection.py",
    ),
    Bug(
        "a replayed position is as probable as all before it",
        "eval/replay.py",
        "self._random.random() * before <",
        "self._random.random() <",
        "tests/eval/test_replay.py",
    ),
    Bug(
        "the drafter behind a replay is not asked",
        "eval/replay.py",
        "            self._behind.propose(batch)",
        "            pass",
        "tests/eval/test_replay.py",
    ),
    Bug(
        "a case is run beyond its part's time",
        "eval/budget.py",
        "        if self.left > 0:",
        "        if self._end:",
        "tests/eval/test_budget.py",
    ),
    Bug(
        "kernels are timed that failed their tests",
        "eval/gpu_suite.py",
        "            if not self._despite:",
        "            if self._despite:",
        "tests/eval/test_gpu_suite.py",
    ),
    Bug(
        "the floor has the table of input embeddings in it",
        "eval/gpu_models.py",
        "    parts = list(text_layers(model).parameters())",
        "    parts = list(model.get_decoder().parameters())",
        "tests/eval/test_gpu_suite.py",
    ),
    Bug(
        "audit: marks slip by a token",
        "specdec/commands/audit.py",
        "in ledger[start:stop]",
        "in ledger[start + 1 : stop + 1]",
        "tests/commands/test_audit.py",
    ),
    Bug(
        "generate: --acceptance is not passed on",
        "specdec/commands/generate.py",
        '"acceptance": check_acceptance(acceptance)',
        '"acceptance": "lossless"',
        "tests/commands/test_audit.py",
    ),
    # Relaxed acceptance.
    Bug(
        "the budget is looked at once a step",
        "specdec/engine/target.py",
        "left=request.budget_left,",
        "left=request.budget_left if index == 0 else float('inf'),",
        "tests/engine/test_relaxed.py",
    ),
    Bug(
        "guarded by the text before the step",
        "specdec/engine/target.py",
        "guarded=request.guarded,",
        "guarded=request.guarded and index == 0,",
        "tests/engine/test_relaxed.py",
    ),
    Bug(
        "the reliance of the child",
        "specdec/engine/target.py",
        "reliance=1.0 if self.reliance is None else self.reliance[index],",
        "reliance=1.0 if self.reliance is None else self.reliance[-1],",
        "tests/engine/test_relaxed.py",
    ),
    Bug(
        "only the model's own stop tokens are guarded",
        "specdec/calls.py",
        'kwargs.get("tokenizer"), stop_tokens(model, kwargs)',
        'kwargs.get("tokenizer"), stop_tokens(model, {})',
        "tests/engine/test_relaxed.py",
    ),
    Bug(
        "excluded tokens gain",
        "specdec/relaxation.py",
        "return (p <= 0) | (p < floor",
        "return (p < 0) | (p < floor",
        "tests/test_relaxation.py",
    ),
    Bug(
        "fixed tokens give way",
        "specdec/relaxation.py",
        "change.masked_fill_(fixed.to(p.device), 0.0)",
        "pass",
        "tests/test_relaxation.py",
    ),
    Bug(
        "greedy relaxes out of guarded tokens",
        "specdec/relaxation.py",
        " or _holds(fixed, best):",
        ":",
        "tests/test_relaxation.py",
    ),
    Bug(
        "the divergence of other nodes",
        "specdec/engine/estimates.py",
        "divergence[inner] = total_variation(p, tree.q[rows].to(p.device)).float()",
        "divergence[inner] = total_variation(p, tree.q[rows].to(p.device)).float().flip(0)",
        "tests/engine/test_relaxed.py",
    ),
    Bug(
        "spent is not recorded",
        "specdec/relaxation.py",
        "decision._replace(epsilon=epsilon, spent=float(spent))",
        "decision._replace(epsilon=epsilon)",
        "tests/engine/test_relaxed.py",
    ),
    # How much to draft, and who.
    Bug(
        "catching up is taken for the cost of a draft",
        "specdec/engine/controller.py",
        "warm = max(1.0 - extra / time, 0.5)",
        "warm = 1.0",
        "tests/engine/test_controller.py",
    ),
    Bug(
        "what was accepted long ago counts for ever",
        "specdec/engine/rates.py",
        "self.hits[depth] = self._keep * self.hits[depth]",
        "self.hits[depth] = self.hits[depth]",
        "tests/engine/test_controller.py",
    ),
    Bug(
        "drafting goes on though it does not pay",
        "specdec/engine/controller.py",
        "if reached < plain or promised > _GAIN * reached or promised == plain:",
        "if promised > _GAIN * reached and promised > plain:",
        "tests/engine/test_controller.py",
    ),
    Bug(
        "one plan for the whole batch",
        "specdec/engine/controller.py",
        "ladders = measured.ladders([row.rates for row in rows], hope",
        "ladders = measured.ladders([rows[0].rates for _ in rows], hope",
        "tests/engine/test_controller.py",
    ),
    Bug(
        "what was measured dies with the engine",
        "specdec/engine/controller.py",
        "measured = self._pairs.get(key)",
        "measured = None",
        "tests/engine/test_controller.py",
    ),
    Bug(
        "the end of an answer is a refusal",
        "specdec/engine/controller.py",
        "min(outcome.asked, outcome.accepted) if outcome.ended else outcome.asked",
        "outcome.asked",
        "tests/engine/test_controller.py",
    ),
    Bug(
        "a slow step counts as long as it took",
        "specdec/engine/costs.py",
        "return min(seconds / plain, _CLIP * (self.of(batch).step(nodes, levels) + extra))",
        "return seconds / plain",
        "tests/engine/test_controller.py",
    ),
    Bug(
        "the first plain time is the only one",
        "specdec/engine/costs.py",
        "        bucket.plain.append((batch, seconds))\n",
        "        if not bucket.plain:\n            bucket.plain.append((batch, seconds))\n",
        "tests/engine/test_controller.py",
    ),
    Bug(
        "nodes are taken for levels",
        "specdec/engine/costs.py",
        "np.array([1.0, nodes, levels])",
        "np.array([1.0, levels, nodes])",
        "tests/engine/test_controller.py",
    ),
    Bug(
        "probes never happen",
        "specdec/engine/measured.py",
        "self._left <= 0 and",
        "False and",
        "tests/engine/test_controller.py",
    ),
    Bug(
        "a drafter is asked for nothing",
        "specdec/engine/drafting.py",
        "        if all(len(request.view.shape) == 1 for request in running):\n",
        "        if False:\n",
        "tests/engine/test_controller.py",
    ),
    Bug(
        "chains only, and trees all the same",
        "specdec/engine/controller.py",
        "if verifier.spec.chains_only and not largest.is_chain:",
        "if False:",
        "tests/engine/test_controller.py",
    ),
    Bug(
        "common beginnings twice",
        "drafters/ensemble.py",
        "            if key not in self.children:\n",
        "            if True:\n",
        "tests/drafters/test_ensemble.py",
    ),
    Bug(
        "the first reader takes all hidden states",
        "drafters/ensemble.py",
        "        for member in readers:\n            state",
        "        for member in readers[:1]:\n            state",
        "tests/drafters/test_ensemble.py",
    ),
    Bug(
        "merits are what was proposed",
        "drafters/ensemble.py",
        "hits = sum(1 for _ in tree.follow(new))",
        "hits = len(tree) - 1",
        "tests/drafters/test_ensemble.py",
    ),
    Bug(
        "members of an ensemble draw",
        "drafters/ensemble.py",
        "            temperature=0.0,\n",
        "            temperature=self.request.temperature,\n",
        "tests/drafters/test_ensemble.py",
    ),
    Bug(
        "members that are silent keep their share",
        "drafters/ensemble.py",
        "later = self.draws[member + 1 :]",
        "later = self.draws[:member] + self.draws[member + 1 :]",
        "tests/drafters/test_ensemble.py",
    ),
    Bug(
        "the latest continuation takes all nodes",
        "drafters/ngram.py",
        "left if place == len(runs) - 1 else (left + 1) // 2",
        "left",
        "tests/drafters/test_ngram.py",
    ),
    Bug(
        "the same continuation takes every place",
        "drafters/ngram.py",
        "if run and all(run != other[: len(run)] for other in found):",
        "if run:",
        "tests/drafters/test_ngram.py",
    ),
    # Guards.
    Bug(
        "a guarded word is found inside others",
        "specdec/guard_tokens.py",
        "not plain.isdisjoint(pattern.findall(text))",
        "any(word in text for word in plain)",
        GUARDS,
    ),
    Bug(
        "guarded words in one case only",
        "specdec/guard_tokens.py",
        "holds(fold(text))",
        "holds(text)",
        GUARDS,
    ),
    Bug(
        "the end of a split word is free",
        "specdec/guard_tokens.py",
        "        begun.update(_beginnings(",
        "        set().update(_beginnings(",
        GUARDS,
    ),
    Bug(
        "the first piece of a split word is free",
        "specdec/guard_tokens.py",
        "            guarded.add(start)\n",
        "            pass\n",
        GUARDS,
    ),
    Bug(
        "pieces inside words are free",
        "specdec/guard_tokens.py",
        "_begins_inside(text) or ",
        "",
        GUARDS,
    ),
    Bug(
        "capital letters at the beginning taken for the inside of a word",
        "specdec/guard_tokens.py",
        "first.isupper() and second.isupper()",
        "first.isupper()",
        GUARDS,
    ),
    Bug(
        "everyday words close what follows",
        "specdec/guard_tokens.py",
        "fold(start).strip() in guard_words.EVERYDAY or ",
        "",
        GUARDS,
    ),
    Bug(
        "words begin inside others",
        "specdec/guards.py",
        "not set(word_starts(tail)).isdisjoint(ends)",
        "True",
        GUARDS,
    ),
    Bug(
        "a word may begin behind blanks only, in Chinese too",
        "specdec/guard_state.py",
        " or is_unspaced(text[at - 1]) or is_unspaced(char)",
        "",
        GUARDS,
    ),
    Bug(
        "what follows a digit is free",
        "specdec/guards.py",
        "is_digit(state.last[-1:]) or word",
        "word",
        GUARDS,
    ),
    Bug(
        "a number reaches beyond the word behind it",
        "specdec/guard_state.py",
        "(state.number and not word) or",
        "state.number or",
        GUARDS,
    ),
    Bug(
        "an apostrophe opens a quoted string",
        "specdec/guard_state.py",
        " and (not last or last[-1].isspace() or last[-1] in '([{<=:,-–—/\"“'):",
        ":",
        GUARDS,
    ),
    Bug(
        "an unclosed quote stays open over lines",
        "specdec/guard_state.py",
        '        return "", kept, since if kept else 0\n',
        "        return quote, kept, since\n",
        GUARDS,
    ),
    Bug(
        "an unclosed quote stays open",
        "specdec/guard_state.py",
        "if since > LINE and (",
        "if since > BLOCK and (",
        GUARDS,
    ),
    Bug(
        "brackets inside strings count",
        "specdec/guard_state.py",
        '            return "", brackets, 0\n    elif char in QUOTES',
        '            return "", brackets, 0\n        if char in BRACKETS:\n'
        '            return quote, "", 0\n    elif char in QUOTES',
        GUARDS,
    ),
    Bug(
        "characters in parts are dropped",
        "specdec/guards.py",
        "decoder.setstate((state.pending, 0))",
        "decoder.reset()",
        GUARDS,
    ),
    Bug(
        "blanks before signs made up by WordPiece are kept",
        "specdec/token_texts.py",
        "text[1:] == piece and not any",
        "text[1:] == piece and any",
        GUARDS,
    ),
    Bug(
        "padding rows are free",
        "specdec/guards.py",
        "        self.tokens[:] = True\n",
        "        self.tokens[: len(texts)] = True\n",
        GUARDS,
    ),
    Bug(
        "special tokens are free",
        "specdec/token_texts.py",
        "dict.fromkeys(special, NOT_TEXT)",
        'dict.fromkeys(special, ".")',
        GUARDS,
    ),
    Bug(
        "tokenizers are kept alive",
        "specdec/token_texts.py",
        "        _READ[key] = size, _read(tokenizer)\n",
        "        _READ[key] = size, _read(tokenizer)\n        _READ[-key] = tokenizer\n",
        GUARDS,
    ),
    # Reports of benchmarks, and what became worse.
    Bug(
        "a report's text is markup",
        "eval/report_html.py",
        'html.escape(text.encode("utf-8", "replace").decode("utf-8"))',
        'text.encode("utf-8", "replace").decode("utf-8")',
        REPORT,
    ),
    Bug(
        "a report's attributes are markup",
        "eval/report_html.py",
        "escaped(value) if isinstance(value, str)",
        "value if isinstance(value, str)",
        REPORT,
    ),
    Bug(
        "a report shows any image",
        "eval/report_answers.py",
        "if _IMAGE.fullmatch(source)",
        "if source",
        REPORT,
    ),
    Bug(
        "a report stumbles over half an emoji",
        "eval/report_html.py",
        '"replace"',
        '"strict"',
        REPORT,
    ),
    Bug(
        "steps that drafted nothing count by position",
        "eval/report_plots.py",
        ' - (acceptance.get("num_plain_steps") or 0)',
        "",
        REPORT,
    ),
    Bug(
        "a relaxed method is the headline",
        "eval/report_tables.py",
        '        if method["lossless"]\n        and method.get("ours")',
        '        if method.get("ours")',
        REPORT,
    ),
    Bug(
        "a wrong method is the headline",
        "eval/report_tables.py",
        '        and not number(method, "gate", "wrong")\n',
        "",
        REPORT,
    ),
    Bug(
        "a part of the drawn methods is lost",
        "eval/report_plots.py",
        "range(0, len(members), SERIES)",
        "range(0, min(len(members), SERIES), SERIES)",
        REPORT,
    ),
    Bug(
        "medians that differ are regressions",
        "eval/regressions.py",
        "changed = after.low > before.high or after.high < before.low",
        "changed = after.median != before.median",
        "tests/eval/test_regressions.py",
    ),
    Bug(
        "methods are compared across batch sizes",
        "eval/bench_record.py",
        'return method["name"], setting(method)',
        'return method["name"], Setting(1, 0.0)',
        "tests/eval/test_regressions.py",
    ),
    Bug(
        "a method that is refused now is no worse",
        "eval/regressions.py",
        "Verdict.SAME if was is not None else Verdict.WORSE",
        "Verdict.SAME",
        "tests/eval/test_regressions.py",
    ),
    Bug(
        "times are compared across machines",
        "eval/regressions.py",
        "_exactly(own / plain)",
        "_exactly(own)",
        "tests/eval/test_regressions.py",
    ),
    # Documentation.
    Bug(
        "bars are as long as the intervals' ends",
        "eval/readme_figure.py",
        'for key in ("median", "low", "high"))',
        'for key in ("high", "low", "median"))',
        "tests/eval/test_readme_figure.py",
    ),
    Bug(
        "an option is renamed, and the documentation has the old name",
        "eval/never_slower.py",
        "    questions: Annotated[int, typer.Option(min=1",
        '    questions: Annotated[int, typer.Option("--each", min=1',
        DOCS,
    ),
    # Many requests at once.
    Bug(
        "batching: pieces of a prompt are counted from its beginning",
        "verifiers/pieces.py",
        "positions=encoded.positions[:, start:stop]",
        "positions=encoded.positions[:, : stop - start]",
        "tests/verifiers/test_families.py -k pieces",
    ),
    Bug(
        "batching: a piece gets the embeddings of the first",
        "verifiers/pieces.py",
        "encoded.embeds[start:stop]",
        "encoded.embeds[: stop - start]",
        "tests/verifiers/test_families.py -k pieces",
    ),
    Bug(
        "batching: images are looked at again and again",
        "verifiers/encoding.py",
        "self._keep(digest, found",
        "len(digest) or self._keep(digest, found",
        SERVING,
    ),
    Bug(
        "batching: what another is just computing is computed twice",
        "verifiers/pieces.py",
        "if missing and any(",
        "if not missing and any(",
        BATCHING,
    ),
    Bug(
        "batching: nobody but the urgent is let in",
        "specdec/engine/limits.py",
        "self._let_in % self._turn == self._turn - 1",
        "self._let_in < 0",
        BATCHING,
    ),
    Bug(
        "batching: the oldest gives way",
        "specdec/engine/limits.py",
        "if r is not oldest and r",
        "if r",
        BATCHING,
    ),
    Bug(
        "batching: trees take the whole step",
        "specdec/engine/engine.py",
        "left = self.limits.max_step_tokens - sum(map(len, trees))",
        "left = self.limits.max_step_tokens",
        BATCHING,
    ),
    Bug(
        "batching: a prompt that fits no cache leaves the engine waiting",
        "specdec/engine/intake.py",
        """            if alone:
                raise
            self.full = True
""",
        """            self.full = True
            if alone:
                raise
""",
        BATCHING,
    ),
    Bug(
        "batching: a whole prompt loses its turn",
        "specdec/engine/limits.py",
        "        self._let_in -= 1\n",
        "",
        BATCHING,
    ),
    Bug(
        "batching: a piece is longer than kernels take",
        "verifiers/pieces.py",
        "return min(end - start, paged_model.PIECE)",
        "return end - start",
        "tests/verifiers/test_backends.py",
    ),
    Bug(
        "text that never decodes is decoded anew at every token",
        "specdec/detokenizer.py",
        "if count - self._start > _LONG and",
        "if False and",
        "tests/test_detokenizer.py",
    ),
    Bug(
        "prompts hold up everybody where nothing is shared",
        "verifiers/transformers_model.py",
        "if not self._in_pieces:",
        "if not self.shares:",
        BATCHING,
    ),
    Bug(
        "batching: a request that was cancelled keeps its pages",
        "specdec/engine/engine.py",
        """                there.remove(request)
                self._release(request)
                return""",
        """                there.remove(request)
                return""",
        BATCHING,
    ),
    Bug(
        "batching: logits that are no numbers are taken for some",
        "specdec/engine/accepting.py",
        "found.isnan() | ",
        "",
        BATCHING,
    ),
    Bug(
        "batching: who runs beside one that fails, fails, too",
        "specdec/engine/engine.py",
        "if len(drafted) + len(pieces) == 1:",
        "if drafted or pieces:",
        BATCHING,
    ),
    Bug(
        "batching: preempted answers lose what they had said",
        "specdec/engine/intake.py",
        "said = request.output[:-1]\n        handle",
        "said = request.output[:0]\n        handle",
        BATCHING,
    ),
    Bug(
        "batching: logprobs are those behind the root",
        "specdec/engine/target.py",
        "self.logits[self._reached].float().log_softmax(-1)",
        "self.logits[0].float().log_softmax(-1)",
        BATCHING,
    ),
    Bug(
        "batching: readers miss the last tokens",
        "specdec/serving/threaded.py",
        "there.listener.deliver(each.get(index, []), True)",
        "there.listener.deliver([], True)",
        SERVING,
    ),
    Bug(
        "batching: times of 17 requests are taken for those of 32",
        "specdec/engine/costs.py",
        "[seconds * (batch / b) ** power for b, seconds in times]",
        "[seconds for b, seconds in times]",
        "tests/engine/test_controller.py",
    ),
    # The server.
    Bug(
        "the beginning of a stop string is streamed",
        "specdec/serving/text.py",
        "max((_overlap(text, stop) for stop in self._stops), default=0)",
        "0",
        "tests/serving/test_text.py",
    ),
    Bug(
        "penalties count what the prompt says",
        "specdec/serving/decoding.py",
        "input_ids[0, self._prompt :]",
        "input_ids[0]",
        "tests/serving/test_decoding.py",
    ),
    Bug(
        "any key opens",
        "specdec/serving/guard.py",
        "any(same)",
        "bool(same)",
        "tests/serving/test_http.py",
    ),
    Bug(
        "a prompt of a client that hung up is answered",
        "specdec/serving/service.py",
        "(working, watching), return_when",
        "(working,), return_when",
        "tests/serving/test_http.py",
    ),
    Bug(
        "each wrong item of a list is an error of its own",
        "specdec/serving/schema.py",
        "Field(fail_fast=True)",
        "Field()",
        "tests/serving/test_schema.py",
    ),
    Bug(
        "unknown fields of a message are dropped in silence",
        "specdec/serving/decoding.py",
        'check_extra(item, f"{place}{name}.{number}.")',
        "pass",
        "tests/serving/test_http.py",
    ),
    Bug(
        "text that is far too long is encoded before it is refused",
        "specdec/serving/chat.py",
        "_letters([said, called]) // self._longest",
        "0",
        "tests/serving/test_chat.py",
    ),
    Bug(
        "images of all connections are decoded at once",
        "specdec/serving/chat.py",
        "_SECTIONS = 2",
        "_SECTIONS = 99",
        "tests/serving/test_chat.py",
    ),
    Bug(
        "the queue is full only for who is encoded",
        "specdec/serving/service.py",
        "check_open(self.preparing.calls - 1)",
        "check_open()",
        "tests/serving/test_chat.py",
    ),
    Bug(
        "who drains reads figures that a step is changing",
        "specdec/serving/threaded.py",
        "self._stats = replace(self._stats, draining=True)",
        "self._tell(force=True)",
        SERVING,
    ),
    Bug(
        "who comes while the engine's thread ends waits for ever",
        "specdec/serving/threaded.py",
        "with self._wake:  # so that whoever was let in before is there by now",
        "if True:",
        "tests/serving/test_faults.py",
    ),
    Bug(
        "a drafter's error brings what a user wrote into the log",
        "specdec/engine/drafting.py",
        "described(error)",
        "error",
        "tests/serving/test_faults.py",
    ),
    Bug(
        "a page of any origin may ask",
        "specdec/serving/guard.py",
        'and not _is_json(headers.get("content-type", ""))',
        "and False",
        "tests/serving/test_guard.py",
    ),
    # The playground.
    Bug(
        "the page has the speedup upside down",
        "specdec/serving/page/figures.js",
        "(theirs / ours).toFixed",
        "(ours / theirs).toFixed",
        PAGE,
    ),
    Bug(
        "the page asks for more than the operator allows",
        "specdec/serving/page/policy.js",
        "share === 1 ? policy.epsilon : Number((share * policy.epsilon).toPrecision(2))",
        "Math.ceil(10 * share * policy.epsilon) / 10",
        PAGE,
    ),
    Bug(
        "half an answer goes into the page's conversation",
        "specdec/serving/page/conversation.js",
        " && !turn.failed",
        "",
        PAGE,
    ),
    Bug(
        "the page leaves an answer going on when its reader stops it",
        "specdec/serving/page/page.js",
        'if (event.key === "Escape") conversation.stop();',
        "",
        PAGE,
    ),
    # Models over several processes.
    Bug(
        "a follower keeps what rank 0 gave back",
        "verifiers/sharded.py",
        'frozenset({"begin", "commit", "release"})',
        'frozenset({"begin", "commit"})',
        "tests/verifiers/test_sharded.py",
    ),
    Bug(
        "each process takes its own heads for all",
        "specdec/runtime/shards.py",
        "if layer.shape[1] * self.processes != self.heads:",
        "if True:",
        "tests/verifiers/test_sharded.py",
    ),
    Bug(
        "each process draws for itself",
        "specdec/generation.py",
        "if generator is None and config.do_sample:",
        "if False:",
        "tests/verifiers/test_sharded.py",
    ),
    Bug(
        "a process goes on that failed alone",
        "verifiers/sharded.py",
        "if len(set(outcomes)) > 1:",
        "if False:",
        "tests/verifiers/test_sharded.py",
    ),
    Bug(
        "tensors are read in another order than they were sent in",
        "verifiers/messages.py",
        "[self.read(part) for part in parts]",
        "[self.read(part) for part in reversed(parts)][::-1]",
        "tests/verifiers/test_messages.py",
    ),
    Bug(
        "an image is sent again with every call",
        "verifiers/messages.py",
        "if name is not None:",
        "if name is not None and not isinstance(value, Tensor):",
        "tests/verifiers/test_messages.py",
    ),
    Bug(
        "what the vision tower gave comes as a mapping",
        "verifiers/messages.py",
        "case ModelOutput():",
        "case ModelOutput() if False:",
        "tests/verifiers/test_messages.py",
    ),
    Bug(
        "a record that nobody knows comes as a tuple",
        "verifiers/messages.py",
        ' or not hasattr(value, "_fields"):',
        " or True:",
        "tests/verifiers/test_messages.py",
    ),
    Bug(
        "tokens are put where embeddings are put aside",
        "specdec/runtime/devices.py",
        'if device.type != "meta":',
        "if True:",
        "tests/verifiers/test_device_map.py",
    ),
    Bug(
        "those who wait share the engine",
        "eval/queueing.py",
        "i = min(running, self.most)",
        "i = running",
        "tests/eval/test_capacity.py",
    ),
    # Replicas.
    Bug(
        "a hot replica gets everything",
        "specdec/serving/affinity.py",
        "if loads[order[0]] >= max(busy, math.ceil(_SLACK * average)):",
        "if False:",
        "tests/serving/test_affinity.py",
    ),
    Bug(
        "questions about one image go anywhere",
        "specdec/serving/affinity.py",
        'own or _encoded(next(said, "")[:_OPENING])',
        '(own or b"") + _encoded(next(said, "")[:_OPENING])',
        "tests/serving/test_affinity.py",
    ),
    Bug(
        "a replica's end has words said twice",
        "specdec/serving/relay.py",
        "if _tells(part):",
        "if False:",
        "tests/serving/test_relay.py",
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
    for name in FILES:
        shutil.copy(ROOT / name, copy)
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
