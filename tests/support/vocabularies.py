"""Tokenizers of each kind, made on the spot: byte-level BPE, Unigram with byte fallback, WordPiece,
and the one of the demonstration model.
"""

from __future__ import annotations

import functools

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from specdec.demo import ASSETS

KINDS = ("bytes", "unigram", "wordpiece", "shipped")

SENTENCES = (
    "There is no dog in the picture, but a note on the table says that nothing was missing.",
    "He never saw the house, and neither the man nor the woman isn't here or there.",
    "They don't know whether it is not a cat with a hat; all of them cannot say without some help.",
    "The notable thing is that seven people walk in the park on the left of the old house.",
    "Nothing. Never. No. Not now. NOT here, NO way, and only if the light is on.",
    "The sign says open daily, the shop is new, and the train to York leaves the station at noon.",
    "A box of milk, a bag of apples, a glass of water: the price is on the list, the date too.",
    "The table is five feet long and two meters wide, twelve inches high, and ten years old.",
)
# Whole words that the vocabularies must lack, so that they are split, and the pieces they take.
SPLIT = ("without", "nothing", "cannot", "twelve", "Nothing")
PIECES = ("with", "noth", "Noth", "can", "twel")
ENDINGS = ("out", "ing", "not", "ve")


@functools.cache
def tokenizer(kind: str) -> PreTrainedTokenizerBase:
    """One of ``KINDS``."""
    if kind == "shipped":
        shipped: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(ASSETS / "lvlm")
        return shipped
    return {"bytes": byte_level, "unigram": unigram, "wordpiece": wordpiece}[kind]()


def byte_level(
    sentences: tuple[str, ...] = SENTENCES, vocab_size: int = 700
) -> PreTrainedTokenizerFast:
    """As GPT-2, Llama 3 and Qwen have them, trained on a few sentences."""
    built = Tokenizer(models.BPE())
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        show_progress=False,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    built.train_from_iterator(sentences, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=built, eos_token="<|end|>")


def _words() -> list[str]:
    words = {word.strip(",.;:") for sentence in SENTENCES for word in sentence.split()}
    return sorted(words - set(SPLIT) - {word for word in words if "'" in word})


def unigram(*more: str) -> PreTrainedTokenizerFast:
    """As SentencePiece makes them: "▁" for blanks, bytes for what is unknown."""
    pieces = {f"▁{word}": -5.0 for word in (*_words(), *PIECES)}
    pieces |= dict.fromkeys((*ENDINGS, "isn", "▁isn", "▁don"), -6.0)
    pieces |= {chr(code): -12.0 for code in range(0x21, 0x7F)}
    pieces |= {"▁": -11.0, "“": -12.0, "”": -12.0, "’": -12.0} | dict.fromkeys(more, -6.0)
    vocabulary = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0)]
    vocabulary += [(f"<0x{byte:02X}>", -20.0) for byte in range(256)]
    built = Tokenizer(models.Unigram([*vocabulary, *pieces.items()], 0, byte_fallback=True))
    built.pre_tokenizer = pre_tokenizers.Metaspace()
    built.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(), decoders.Fuse()]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=built, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def wordpiece() -> PreTrainedTokenizerFast:
    """As BERT has it: lower case, no blanks, "##" for what continues a word."""
    words = dict.fromkeys(word.lower() for word in (*_words(), *PIECES, "isn", "don"))
    letters = [chr(code) for code in range(0x21, 0x7F) if not chr(code).isupper()]
    signs = ["“", "”", "’", "°", "€"]
    continued = [f"##{piece}" for piece in (*ENDINGS, *letters)]
    special = ["[PAD]", "[UNK]", "[SEP]"]
    pieces = dict.fromkeys([*special, *words, *letters, *signs, *continued])
    built = Tokenizer(
        models.WordPiece({piece: at for at, piece in enumerate(pieces)}, unk_token="[UNK]")
    )
    built.normalizer = normalizers.BertNormalizer(lowercase=True)
    built.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    built.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(
        tokenizer_object=built, unk_token="[UNK]", pad_token="[PAD]", sep_token="[SEP]"
    )
