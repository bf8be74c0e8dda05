"""The report's answers: every token and where it came from.

Prompts, answers and images are whatever a model or a stranger wrote; images are shown only as
embedded PNG, JPEG or WebP.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from specdec.eval.bench_record import Json, number
from specdec.eval.report_html import Html, join, tag

ORIGINS = {
    "drafted": "drafted, and what the verifier would have said",
    "relaxed": "drafted, the verifier gave way; v is how much the token depends on the image",
    "own": "the verifier’s own",
}
_IMAGE = re.compile(r"data:image/(?:png|jpeg|webp);base64,[A-Za-z0-9+/]+={0,2}")


def answers(record: Json) -> Html:
    """All answers; without JavaScript only the first one, by its first method, is shown."""
    found: Sequence[Json] = record.get("answers") or []
    if not found:
        return Html("")
    names = list(dict.fromkeys(name for each in found for name in each.get("methods") or {}))
    asked = [f"{place + 1}. {_title(each)}" for place, each in enumerate(found)]
    keys = [tag("li", _example(origin), says) for origin, says in ORIGINS.items()]
    return join(
        [
            tag(
                "div",
                _choice("question", "Question", asked),
                _choice("method", "Method", names),
                class_="controls",
                hidden=True,
            ),
            tag("ul", *keys, class_="legend origins"),
            *(_answer(place, each, names) for place, each in enumerate(found)),
        ]
    )


def _example(origin: str) -> Html:
    value = _value(0.31) if origin == "relaxed" else ""
    return tag("span", "token", value, class_=_kind(origin))


def _title(answer: Json) -> str:
    return str(answer.get("task") or answer.get("prompt") or "question")[:60]


def _choice(name: str, shown: str, options: Sequence[str]) -> Html:
    listed = [tag("option", each, value=str(place)) for place, each in enumerate(options)]
    return tag("label", f"{shown} ", tag("select", *listed, id=f"pick-{name}"))


def _answer(place: int, answer: Json, names: Sequence[str]) -> Html:
    said = answer.get("methods") or {}
    shown = next((name for name in names if name in said), None)
    reference = answer.get("reference")
    return tag(
        "article",
        tag("h3", f"Question {place + 1}: {_title(answer)}"),
        tag("div", *_images(answer.get("images") or []), class_="images"),
        tag(
            "p", tag("span", "Asked", class_="who"), str(answer.get("prompt") or ""), class_="text"
        ),
        *(_said(which, name, said.get(name), name == shown) for which, name in enumerate(names)),
        tag("p", tag("span", "The reference", class_="who"), reference, class_="text")
        if reference
        else "",
        data_question=str(place),
        hidden=place > 0,
    )


def _images(sources: Sequence[str]) -> list[Html]:
    return [
        tag("img", src=source, alt=f"image {place + 1} of the question")
        if _IMAGE.fullmatch(source)
        else tag("p", f"Image {place + 1} is no embedded PNG, JPEG or WebP and is not shown.")
        for place, source in enumerate(sources)
    ]


def _said(which: int, name: str, tokens: Sequence[Json] | None, shown: bool) -> Html:
    if tokens is None:
        body = tag("p", "This method did not answer this question.")
    else:
        counts = Counter(str(token.get("origin")) for token in tokens)
        summary = (
            f"{len(tokens)} tokens: {counts['drafted']} drafted and exact, "
            f"{counts['relaxed']} relaxed, {counts['own']} the verifier’s own"
        )
        body = join(
            [
                tag("p", *(_token(token) for token in tokens), class_="tokens"),
                tag("p", summary, class_="note"),
            ]
        )
    return tag("div", tag("h4", name), body, data_method=str(which), hidden=not shown)


def _token(token: Json) -> Html:
    origin = str(token.get("origin"))
    says, value = ORIGINS.get(origin, "of unknown origin"), number(token, "v")
    relaxed = origin == "relaxed" and value is not None
    return tag(
        "span",
        str(token.get("text") or ""),
        _value(value) if relaxed and value is not None else "",
        class_=_kind(origin) if origin in ORIGINS else None,
        title=f"{says}: v = {value:.3f}" if relaxed else says,
    )


def _kind(origin: str) -> str:
    return f"from-{origin}"


def _value(value: float) -> Html:
    return tag("sub", f"v {value:.2f}")
