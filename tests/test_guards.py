"""Guards on every kind of tokenizer: what is guarded, what is not, and that it does not matter how
a text was cut into tokens.
"""

from __future__ import annotations

import functools
import gc
import random
import weakref
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specdec import guard_words
from specdec.guard_state import BLOCK, LINE
from specdec.guard_tokens import guarded_texts
from specdec.guards import GUARDS, Guards, GuardState
from specdec.token_texts import NOT_TEXT, token_texts
from support.vocabularies import KINDS, byte_level, tokenizer, unigram

# In ⟦ ⟧ is what must be guarded; all other words must not be.
TEXTS = {
    "negation": "He ⟦never⟧ saw the dog, a note on the table says; ⟦no⟧ dog is here.",
    "split words": "There is ⟦nothing⟧ here, ⟦without⟧ the house ⟦or⟧ with it. They ⟦cannot⟧ say.",
    "words in words": "The thing is there in the park, on the station, on the floor.",
    "contractions": "It ⟦isn't⟧ here, they ⟦don't⟧ know, he ⟦can't⟧ say.",
    "curly contractions": "It ⟦isn’t⟧ here, they ⟦don’t⟧ know, he ⟦can’t⟧ say.",
    "cases": "⟦No⟧ way. ⟦Nothing⟧ is here, the dog is ⟦NOT⟧",
    "quantifiers": "⟦All⟧ of them, ⟦some⟧ milk ⟦and⟧ water ⟦only⟧ ⟦if⟧ the light is on.",
    "number": "The house is ⟦12.5 in the⟧ list, he is in the house.",
    "long number": "The date is ⟦2019.⟧ The house is old.",
    "money": "The price is ⟦$12,50 now⟧ here.",
    "percent": "The glass is ⟦50 %⟧ of the water.",
    "unit": "The table is ⟦5 m long⟧ here, he is in the house.",
    "unit that is a word": "The table is ⟦12 in of⟧ the way, he is in the house.",
    "unit behind a hyphen": "He is at the ⟦12-inch table⟧ in the house.",
    "no unit": "There is ⟦5 dogs⟧ in the house.",
    "number words": "The ⟦seven people⟧ walk in the park.",
    "unit behind a number word": "The table is ⟦twelve feet long⟧ now, the dog is at my feet.",
    "ordinals": "The ⟦first⟧ man is at the ⟦second⟧ house.",
    "quotes": 'The sign says ⟦"open daily"⟧ in the park.',
    "curly quotes": "The sign says ⟦“open daily”⟧ in the park.",
    "backticks": "The sign says ⟦`open daily`⟧ in the park.",
    "unclosed quote": 'The sign says ⟦"open daily⟧\nThe house is old.',
    "single quotes": "The sign says ⟦'it's open daily' in⟧ the park.",
    "apostrophes": "The dog⟦'s⟧ note is in the dogs⟦'⟧ house ⟦and⟧ the light is on.",
    "inches": "The man is ⟦5'10\" tall⟧ in the list.",
    "json": 'The list: ⟦{"price": [1, 2], "date": {"noon": "the } table"}}⟧ is here.',
    "json over lines": 'The list:\n⟦[\n  {"house": "old"},\n  {"house": "new"}\n]⟧ is here.',
    "unclosed brace": "The list ⟦{ is old\n\n⟧The house is here.",
    "tags": "The sign ⟦<b>open daily</b> in⟧ the park.",
    "table": "⟦| dog | old |\n| cat | new |⟧\nThe house is old.",
    "coordinates": "The dog (left of the table) is at (⟦12, 7)⟧ now.",
    "address": "The note is at http:⟦//the.park/old_house?now in⟧ the park.",
    "block of code": "The list:\n⟦```\nthe house is\n\nold\n```⟧\nThe house is here.",
    "bold": "The ⟦**⟧house⟦**⟧ is old.",
    "prose": "There is a dog in the park: the man at the table (old) saw it; the light is on!",
}
# WordPiece drops the blanks, so it cannot tell these.
BLANKS_MATTER = {"single quotes", "tags", "address", "unclosed quote", "unclosed brace"}
BLANKS_MATTER |= {"table", "block of code", "apostrophes"}


class Place(NamedTuple):
    """One token of a text: how it reads, whether it is guarded, and what the marks say."""

    token: int
    text: str | bytes
    guarded: bool
    marks: frozenset[bool]  # of the characters that are in it
    begins_word: bool


@functools.cache
def guards_of(kind: str, names: tuple[str, ...] = GUARDS) -> Guards:
    made = tokenizer(kind)
    return Guards(made, len(made), names)


def state_behind(guards: Guards, kind: str, text: str) -> GuardState:
    state = guards.start
    for token in tokenizer(kind).encode(text, add_special_tokens=False):
        state = guards.advance(state, token)
    return state


def read(kind: str, marked: str) -> list[Place]:
    """The places of a text with marks, which must come back from its tokens but for blanks."""
    made, guards = tokenizer(kind), guards_of(kind)
    plain = marked.replace("⟦", "").replace("⟧", "")
    expected = list(_characters(marked))
    before, state, places, at = " ", guards.start, list[Place](), 0
    for token in made.encode(plain, add_special_tokens=False):
        text = token_texts(made)[token]
        raw = text if isinstance(text, bytes) else text.encode()
        own = [byte for byte in raw if byte not in b" \n"]
        under = expected[at : at + len(own)]
        assert [byte for byte, _ in under] == own, (kind, marked, text)
        guarded = bool(guards.tokens[token]) or guards.closed(state)
        marks = frozenset(mark for _, mark in under)
        begins = isinstance(text, str) and not (before[-1:].isalpha() and text[:1].isalpha())
        places.append(Place(token, text, guarded, marks, begins))
        before = text if isinstance(text, str) and text else "?"
        state, at = guards.advance(state, token), at + len(own)
    assert at == len(expected)
    return places


def _characters(marked: str) -> Iterator[tuple[int, bool]]:
    """The bytes of a text without blanks, folded as WordPiece does, and whether each is marked."""
    mark = False
    for char in marked:
        if char in "⟦⟧":
            mark = char == "⟦"
        elif not char.isspace():
            for byte in char.encode():
                yield byte, mark


def _lower(marked: str, kind: str) -> str:
    return marked.lower() if kind == "wordpiece" else marked


def _is_open_first_piece(places: list[Place], at: int) -> bool:
    """Whether it is the first piece of a split word, and too short or too common to be guarded."""
    text = places[at].text
    rest = places[at + 1].text if at + 1 < len(places) else ""
    if isinstance(text, bytes) or not places[at].begins_word or not text.strip()[-1:].isalpha():
        return False
    goes_on = isinstance(rest, bytes) or rest[:1].isalpha() or rest.strip()[:1] in ("'", "’")
    word = text.strip().lower()
    return goes_on and (len(word) < 3 or word in guard_words.EVERYDAY)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (kind, name)
        for name in TEXTS
        for kind in KINDS
        if kind != "wordpiece" or name not in BLANKS_MATTER  # it drops them
    ],
)
def test_what_is_guarded_and_what_is_not(kind: str, name: str) -> None:
    """A number, a "not" or a JSON value that a drafter may exchange is a wrong answer, whatever the
    bound says; ordinary words that are guarded make relaxing pointless.
    """
    places = read(kind, _lower(TEXTS[name], kind))
    for at, place in enumerate(places):
        shown = [(p.text, p.guarded) for p in places[max(0, at - 3) : at + 2]]
        if True in place.marks and not _is_open_first_piece(places, at):
            assert place.guarded, shown
        # A lone blank before it hides that a piece begins a word; it is guarded as one inside.
        hidden = isinstance(place.text, bytes) or place.text[:1].islower()
        if place.marks == {False} and place.begins_word and not hidden:
            assert not place.guarded, shown


# The guards by which a token is guarded for what it reads like. Beginning inside a word counts
# where any words are guarded.
INSIDE = "digits negation units"
TOKENS: dict[str | bytes, str] = {
    **dict.fromkeys(("12", " ½", "Ⅳ", "٣", " ≤", " -", "(-"), "digits"),
    **dict.fromkeys((" Seven", " third", " seventy", "(Two"), "digits"),
    **dict.fromkeys((" No", " NO", "No", "-No", " no.", " isn’t", " Nothing", " and"), "negation"),
    **dict.fromkeys((" %", "°", " €", " km", " KM", " Hours"), "units"),
    **dict.fromkeys((" “", '."', " '", " 'A", " dogs'"), "quotes"),
    "'": f"quotes {INSIDE}",
    **dict.fromkeys(("{", "]", " #", "**", " //", "_"), "markup"),
    **{"</": "markup digits", '{"': "markup quotes"},  # "<" compares, too
    **dict.fromkeys(("ing", "NESS", "'s", "no"), INSIDE),
    **dict.fromkeys((" note", " notable", " android", " however", " m", " in", " hour"), ""),
    **dict.fromkeys((":", ".", ",", "-", " (", "\n", " The", "The", "A", " A", " 图", "图"), ""),
    **dict.fromkeys(("", NOT_TEXT, b"\xe2\x80", "\ufffd"), " ".join(GUARDS)),
}
WORDS = {
    "digits": guard_words.NUMBERS,
    "negation": guard_words.NEGATION,
    "units": guard_words.UNITS,
}


@pytest.mark.parametrize("text", TOKENS, ids=repr)
def test_which_guards_guard_a_token(text: str | bytes) -> None:
    """A guard that is missing lets an answer change; one too many, or "note" taken for "no", costs
    speed.
    """
    texts = {7: text}
    by = {name for name in GUARDS if guarded_texts(texts, {name}, WORDS.get(name, frozenset()))}
    assert by == set(TOKENS[text].split())


PLACES = {
    "in 12": "digits units",
    "in 12 ": "units",
    "in 12 ki": "units",
    "in 12 km": "units",
    "in 12-": "units",
    "in 12 dog": "",
    "in 12 dogs ": "",
    "in 12. ": "",
    "in 12\n": "",
    "in m": "",
    "The Seven": "digits units",
    "The seven ": "units",
    'say "A': "quotes",
    'say "A"': "",
    'say "A\\"': "quotes markup",  # a backslash: up to the next blank
    'say "A \\" A': "quotes",
    'say "A \\\\" A': "",
    "say 'it's": "quotes",
    "say 'A' ": "",
    "dogs' A": "",
    "„A": "quotes",
    "„A“": "",
    "«A": "quotes",
    "`A": "quotes",
    "`A`": "",
    "{A": "markup",
    "{A}": "",
    '{"A': "quotes markup",
    '{"}': "quotes markup",
    '{"}"': "markup",
    '{"}"}': "",
    "[[A]": "markup",
    "[[A]]": "",
    "[A\nA": "markup",
    "[A\n\nA": "",
    "(A": "",
    "(A 1, A": "markup",
    "(A 1, A)": "",
    "(A 1,\nA": "",
    "A < A": "",
    "<a A": "markup",
    "<a A>": "",
    "x=A": "markup",
    "x=A A": "",
    "A/A": "markup",
    "| A": "markup",
    "| A\nA": "",
    "```A\n\nA": "markup",
    "```A\n```\n": "",
}


@pytest.mark.parametrize("kind", ["bytes", "unigram", "shipped"])
@pytest.mark.parametrize("text", PLACES, ids=repr)
def test_which_guards_close_a_place(kind: str, text: str) -> None:
    """A quote that never closes makes the rest of an answer strict; one that closes too soon lets
    its end change.
    """
    closing = set()
    for name in GUARDS:
        guards = guards_of(kind, (name,))
        if guards.closed(state_behind(guards, kind, text)):
            closing.add(name)
    assert closing == set(PLACES[text].split())


@pytest.mark.parametrize(
    ("opening", "limit"),
    [('"', LINE), ("(1", LINE), ("<a ", LINE - 1), ("{", BLOCK), ('["', BLOCK), ("```", None)],
    ids=["quote", "coordinates", "tag", "brace", "string in json", "code"],
)
def test_what_is_never_closed_is_given_up(opening: str, limit: int | None) -> None:
    """One stray quote must not make the whole rest of a long answer strict."""
    guards = guards_of("bytes", ("quotes", "markup"))
    state = state_behind(guards, "bytes", f"The {opening}")
    dot = tokenizer("bytes").convert_tokens_to_ids(".")
    lengths = range(1, 2 * BLOCK)
    open_for = 0
    for length in lengths:
        state = guards.advance(state, dot)
        if guards.closed(state):
            open_for = length
    assert open_for == (lengths[-1] if limit is None else limit)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "spelling", [str, str.capitalize, str.upper], ids=["small", "Title", "ALL"]
)
def test_every_guarded_word_is_guarded_from_its_first_telling_piece(
    kind: str, spelling: Callable[[str], str]
) -> None:
    """Over all built-in words: one token is guarded; of several, every one but a first one that is
    short or everyday.
    """
    made, guards = tokenizer(kind), guards_of(kind)
    texts = token_texts(made)
    words = guard_words.NUMBERS | guard_words.NEGATION | guard_words.UNITS
    tried = 0
    for word in sorted(words):
        state = state_behind(guards, kind, "The dog")
        before = ""
        for token in made.encode(f" {spelling(word)}", add_special_tokens=False):
            text = texts[token]
            guarded = bool(guards.tokens[token]) or guards.closed(state)
            first = before.strip().lower()
            whole = str(text).strip().lower()
            free = not whole or (
                # A first piece that says little, or what comes behind it as a lone capital.
                whole != word and (len(whole) < 3 or whole in guard_words.EVERYDAY)
                if not first
                else first in guard_words.EVERYDAY and len(whole) == 1 and str(text).isupper()
            )
            assert guarded or free, (word, before, text)
            before += text if isinstance(text, str) else "?"
            state = guards.advance(state, token)
            tried += not free
    assert tried > len(words)


@pytest.mark.parametrize("kind", KINDS)
def test_no_free_token_continues_a_word(kind: str) -> None:
    """If one did, "not" could become "notable", or "with" "without"."""
    texts, free = token_texts(tokenizer(kind)), ~guards_of(kind).tokens
    continuing = [
        text
        for token, text in texts.items()
        if free[token] and isinstance(text, str) and text[:1].isalpha() and not text[0].isupper()
    ]
    assert continuing == []


@pytest.mark.parametrize("kind", ["bytes", "unigram", "shipped"])
def test_prose_stays_free(kind: str) -> None:
    """Of the tokens that begin a word of plain prose, a few percent are guarded: articles, "can" or
    "with" as beginnings of guarded words would multiply that.
    """
    prose = (
        "The dog is in the park with the man in the hat. They walk on the station road, to the "
        "house that they know so well, and the light is on. The sign at the shop says that it is "
        "open daily. It can be seen that a table is there, with a glass of water and the list. "
        "The train leaves for York. Is it on time? The note was on the table in the house."
    )
    begin = [place for place in read(kind, prose) if str(place.text)[:1] == " "]
    begin = [place for place in begin if str(place.text).strip()]
    assert len(begin) > 60
    guarded = [place.text for place in begin if place.guarded]
    # Two times "and".
    assert set(guarded) == {" and"}
    assert len(guarded) == 2


SIGNS = "1 2 . , ( ) [ ] { } < > \" “ ” ' ’ ` ``` | / _ \\ % € - ="
WORDS_AND_PARTS = "a A The no not NOT hing noth with out seven it's km m 😀 é"
segments = st.lists(
    st.sampled_from([*f"{SIGNS} {WORDS_AND_PARTS}".split(" "), " ", " ", "\n", "\n\n"]), max_size=60
).map("".join)


@pytest.mark.parametrize("kind", KINDS)
@given(text=segments, seed=st.integers(0, 1000))
def test_it_does_not_matter_how_a_text_is_cut(kind: str, text: str, seed: int) -> None:
    """A drafter may spell a text in other tokens than the target; what is open behind it depends on
    the text alone.
    """
    made, guards = tokenizer(kind), guards_of(kind)
    by_bytes = _by_bytes(kind)
    rng = random.Random(seed)
    raw = text.encode()
    seen: dict[int, GuardState] = {}
    for _ in range(3):
        at, state = 0, guards.start
        while at < len(raw):
            fitting = [piece for piece in by_bytes.get(raw[at], ()) if raw.startswith(piece[0], at)]
            if not fitting:
                break
            piece, token = rng.choice(fitting)
            at, state = at + len(piece), guards.advance(state, token)
            assert seen.setdefault(at, state) == state
            assert hash(state) == hash(seen[at])
    assert len(made) == len(token_texts(made))


@functools.cache
def _by_bytes(kind: str) -> dict[int, list[tuple[bytes, int]]]:
    """The texts of all tokens but special ones, by their first byte."""
    found: dict[int, list[tuple[bytes, int]]] = {}
    for token, text in token_texts(tokenizer(kind)).items():
        raw = text if isinstance(text, bytes) else text.encode()
        if raw and text != NOT_TEXT:
            found.setdefault(raw[0], []).append((raw, token))
    return found


@given(text=segments)
def test_states_stay_small(text: str) -> None:
    """Requests keep one each; it must not grow with the answer."""
    state = state_behind(guards_of("bytes"), "bytes", text * 4)
    assert len(repr(state)) < 400


def test_a_character_in_parts_is_guarded_and_open() -> None:
    """Half a character is no choice of words; and “ is a quotation mark in bytes, too."""
    for kind in ("bytes", "unigram", "shipped"):
        guards, made = guards_of(kind), tokenizer(kind)
        state = state_behind(guards, kind, "The")
        tokens = made.encode("😀", add_special_tokens=False)[-4:]
        for token in tokens:
            assert guards.tokens[token]
            state = guards.advance(state, token)
            assert guards.closed(state) == (token != tokens[-1])
        # Cut off: what comes next is read all the same.
        state = guards.advance(guards.start, tokens[0])
        (quote,) = made.encode('"', add_special_tokens=False)[-1:]
        assert guards.advance(state, quote).quote == '"'


OWN = ("Zürich", "New York", "Bank of Greece", "Ελλάδα", "דלת", "covid-19", "没有")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("word", OWN)
def test_words_of_the_user(kind: str, word: str) -> None:
    """In any language, of several words or with signs: from the second piece on at least."""
    made = tokenizer(kind)
    if kind == "wordpiece" and made.unk_token in made.tokenize(word):
        pytest.skip("the vocabulary lacks these letters")
    guards = Guards(made, len(made), (), words=OWN)
    state = state_behind(guards, kind, "The dog of")
    texts = token_texts(made)
    begun = False
    for token in made.encode(f" {word}", add_special_tokens=False):
        if begun:
            assert guards.tokens[token] or guards.closed(state), (word, texts[token], state)
        begun |= bool(str(texts[token]).strip())
        state = guards.advance(state, token)
    assert not guards.closed(state)


def test_a_capital_letter_inside_a_word_of_the_user() -> None:
    """In "i" + "Phone" only the second piece says something, and nothing shows that it is one."""
    made = unigram("▁i", "Phone")
    guards = Guards(made, len(made), (), words=["iPhone"])
    assert made.tokenize("an iPhone")[-2:] == ["▁i", "Phone"]
    assert guards.tokens[made.convert_tokens_to_ids("Phone")]
    assert not guards.tokens[made.convert_tokens_to_ids("▁i")]


def test_marks_belong_to_their_letters() -> None:
    """Else a Hindi word ends at its first vowel, and other words are found in it."""
    made = unigram("▁नहीं", "▁नह")
    whole, part = made.convert_tokens_to_ids(["▁नहीं", "▁नह"])
    assert Guards(made, len(made), (), words=["नहीं"]).tokens[[whole, part]].tolist() == [
        True,
        False,
    ]
    assert Guards(made, len(made), (), words=["नह"]).tokens[[whole, part]].tolist() == [False, True]


@pytest.mark.parametrize(
    ("pieces", "strict"),
    [
        ("图 中 没 有 猫 人 关 系 不 是", ["没", "有", "没", "关", "不"]),
        ("图 中 没有 没 有 猫 人 关 系 不是", ["没有", "不是"]),
    ],
    ids=["characters", "words"],
)
def test_words_without_blanks_between_them(pieces: str, strict: list[str]) -> None:
    """In Chinese a guarded word may begin behind any character, and its parts may be common."""
    made = unigram(*pieces.split())
    guards = Guards(made, len(made), (), words=["没有", "不"])
    texts, state, guarded = token_texts(made), guards.start, []
    for token in made.encode("图中没有猫有人没关系不是人", add_special_tokens=False):
        if guards.tokens[token] or guards.closed(state):
            guarded.append(texts[token])
        state = guards.advance(state, token)
    assert guarded == strict


def test_special_tokens_stop_tokens_and_ids_without_a_text() -> None:
    """Relaxing into a token that ends the answer cuts it short; a padding row says nothing."""
    made = byte_level()
    made.add_special_tokens({"additional_special_tokens": ["<box>"]})
    free = made.convert_tokens_to_ids(".")
    guards = Guards(made, len(made) + 3, (), stop_tokens=[free, len(made) + 7])
    assert guards.tokens[[made.eos_token_id, made.convert_tokens_to_ids("<box>"), free]].all()
    assert guards.tokens[len(made) :].tolist() == [True] * 3
    assert guards.tokens.sum() == 6 + sum(
        isinstance(text, bytes) for text in token_texts(made).values()
    )
    # A special token is no text: its sign opens nothing.
    state = guards_of("bytes").advance(GuardState(), made.convert_tokens_to_ids("<box>"))
    assert not Guards(made, len(made)).closed(state)


def test_a_vocabulary_with_gaps_and_a_narrow_head() -> None:
    """Ids that nobody assigned, or that the verifier's head lacks, must not crash or be free."""
    made = tokenizer("wordpiece")
    guards = Guards(made, 100)
    assert guards.tokens.shape == (100,)
    assert guards.tokens.device.type == "cpu"
    assert guards.advance(guards.start, 10_000) == guards.start


def test_without_a_tokenizer() -> None:
    guards = Guards(None, 8, (), stop_tokens=(2, 5))
    assert guards.tokens.nonzero().flatten().tolist() == [2, 5]
    assert guards.advance(guards.start, 3) == guards.start
    assert not guards.closed(guards.start)
    with pytest.raises(ValueError, match="none was given"):
        Guards(None, 8)
    with pytest.raises(ValueError, match="none was given"):
        Guards(None, 8, (), words=["dog"])


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown guards colour; known: digits, negation"):
        Guards(tokenizer("bytes"), 700, ("digits", "colour"))


def test_texts_are_read_once_and_go_with_their_tokenizer() -> None:
    """Reading 150 000 tokens takes a second; keeping a tokenizer alive takes memory for good."""

    class Unhashable(type(byte_level())):  # type: ignore[misc]  # made by a function
        __hash__ = None

    made = Unhashable(tokenizer_object=byte_level().backend_tokenizer)
    texts = token_texts(made)
    assert token_texts(made) is texts
    made.add_tokens(["Zurich"])
    assert "Zurich" in token_texts(made).values()
    gone = weakref.ref(made)
    guards = Guards(made, len(made))
    del made
    gc.collect()
    assert gone() is None
    assert guards.closed(guards.advance(guards.start, 20)) in (True, False)


@pytest.mark.parametrize("kind", KINDS)
def test_texts_of_tokens_add_up(kind: str) -> None:
    """A blank that is lost or made up turns two words into one."""
    made = tokenizer(kind)
    sentence = "the dog is here, with the note: it says “open” (on the list)."
    texts = [token_texts(made)[token] for token in made.encode(sentence, add_special_tokens=False)]
    whole = b"".join(text if isinstance(text, bytes) else text.encode() for text in texts).decode()
    if kind == "wordpiece":
        assert whole == " the dog is here, with the note: it says“ open”( on the list)."
    else:
        assert whole.removeprefix(" ") == sentence


def test_one_guard_more_by_inheritance() -> None:
    """The way the documentation names."""

    class Parentheses(Guards):
        def closed(self, state: GuardState) -> bool:
            return "(" in state.brackets or super().closed(state)

    made = tokenizer("bytes")
    guards = Parentheses(made, len(made))
    assert guards.closed(state_behind(guards, "bytes", "The (dog"))
