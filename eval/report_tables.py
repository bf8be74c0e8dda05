"""The report's words: its headline, the table of methods, and how to measure again.

Every function returns a section's content, empty if the record has nothing to say about it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from specdec.eval.bench_record import Json, dig, interval, key, label, measured, number, setting
from specdec.eval.report_charts import NONE, SPEEDUPS, bounded, groups
from specdec.eval.report_html import Html, folded, join, row, table, tag

_COLUMNS = (
    *("method", "τ", "α", "speedup, end to end", "speedup, decoding", "ms a token"),
    *("first token, ms (p50)", "between tokens, ms (p95)", "length ratio", "η", "fidelity"),
    "same tokens",
)

_TERMS = {
    "τ": "tokens a step of the verifier, its own one included",
    "α": "drafted tokens that were accepted",
    "speedup": "how many times as fast as the reference, median over questions, with its 95 % "
    "bootstrap interval; end to end includes the prompt, decoding is what follows it",
    "length ratio": "tokens over the reference’s",
    "η": "speedup of decoding over what τ and the bare forwards allow; 1 is all of it",
    "same tokens": "answers that are the reference’s token by token; a tie parts from it where "
    "the verifier’s own best logits are too close to tell",
}


def best(record: Json) -> Json | None:
    """Of specdec's lossless methods the fastest, end to end. Methods whose tokens were compared
    come before those that were not, and those that said something else do not count.
    """
    found = [
        method
        for method in measured(record)
        if method["lossless"]
        and method.get("ours")
        and method["name"] != record["reference"]
        and not number(method, "gate", "wrong")
        and interval(method, "overall", "speedup_end_to_end")
    ]
    compared = [method for method in found if method.get("gate")]
    return max(compared or found, key=_median, default=None)


def _median(method: Json) -> float:
    return number(method, "overall", "speedup_end_to_end", "median") or 0.0


def headline(record: Json) -> Html:
    """The best lossless speedup, of what, and on which machine."""
    model, found = record["model"], best(record)
    device = dig(record, "machine", "gpu") or dig(record, "machine", "cpu") or "an unknown machine"
    cores = dig(record, "machine", "cores")
    where = f"{device}, {cores} cores" if cores and not dig(record, "machine", "gpu") else device
    name = model.get("name") or "an unnamed model"
    said = [f"{name}, {size}" if (size := _size(model.get("parameters"))) else f"{name}"]
    said += [str(model[each]) for each in ("dtype", "device") if model.get(each)]
    what = tag("p", f"{', '.join(said)}. {where}. {_asked(record)}")
    if found is None:
        return join([tag("h1", "No lossless speedup was measured"), what])
    value = interval(found, "overall", "speedup_end_to_end")
    assert value is not None
    decode = interval(found, "overall", "speedup_decode")
    alone = f"; decoding alone {bounded(decode)}" if decode else ""
    compared = "" if found.get("gate") else " Its tokens were not compared one by one."
    return join(
        [
            tag("h1", tag("span", f"{value.median:.2f}×", class_="big"), " as fast, losslessly"),
            tag(
                "p",
                tag("strong", label(found)),
                f": {bounded(value)} times as fast as {record['reference']}, end to end{alone}."
                f"{compared}{_beaten(record, found)}",
            ),
            what,
        ]
    )


def _beaten(record: Json, found: Json) -> str:
    """What of another's, at the same setting, is faster."""
    rivals = [
        method
        for method in measured(record)
        if method["lossless"] and not method.get("ours") and setting(method) == setting(found)
    ]
    rival = max(rivals, key=_median, default=None)
    if rival is None or _median(rival) <= _median(found):
        return ""
    return f" {label(rival)} is faster: {_median(rival):.2f}."


def _size(parameters: Any) -> str:
    if not isinstance(parameters, int | float) or isinstance(parameters, bool):
        return str(parameters or "")
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if parameters >= unit:
            return f"{parameters / unit:.3g}{name} parameters"
    return f"{parameters} parameters"


def _asked(record: Json) -> str:
    count = record["questions"].get("count")
    return "" if count is None else f"{count} questions."


def methods(record: Json) -> Html:
    """A row per method, the refused ones with their reason."""
    rows = []
    found = groups(record["methods"])
    for at, members in found.items():
        if len(found) > 1:
            rows.append(tag("tr", tag("th", str(at), colspan=len(_COLUMNS), scope="rowgroup")))
        rows += [_method(record, method) for method in members]
    metrics = _metrics(record)
    alone = f"fidelity ({metrics[0]})" if len(metrics) == 1 else "fidelity"
    columns = [alone if name == "fidelity" else name for name in _COLUMNS]
    terms = [part for name, says in _TERMS.items() for part in (tag("dt", name), tag("dd", says))]
    return join(
        [
            table(f"Compared with {record['reference']}", columns, rows, wide=True),
            folded("What the columns mean", tag("dl", *terms)),
        ]
    )


def _method(record: Json, method: Json) -> Html:
    if (reason := method.get("refused")) is not None:
        told = tag("td", f"refused: {reason}", colspan=len(_COLUMNS) - 1, class_="refused")
        return tag("tr", tag("th", label(method), scope="row"), told)
    reference = method["name"] == record["reference"]
    found = best(record)
    overall = method["overall"]
    cells = [
        _figure(overall, "acceptance", "mean_acceptance_length"),
        _figure(overall, "acceptance", "draft_acceptance_rate", form="{:.0%}"),
        *("1" if reference else _interval(overall, name) for name in SPEEDUPS),
        _figure(overall, "ms_per_token"),
        _figure(overall, "ttft_ms", "p50", form="{:.1f}"),
        _figure(overall, "inter_token_ms", "p95"),
        _figure(overall, "length_ratio"),
        _figure(method, "efficiency"),
        _fidelity(overall, named=len(_metrics(record)) > 1),
        "reference" if reference else _gate(method),
    ]
    kind = "best" if found is not None and key(found) == key(method) else None
    return row(label(method), cells, kind)


def _figure(part: Json, *path: str, form: str = "{:.2f}") -> str:
    value = number(part, *path)
    return NONE if value is None else form.format(value)


def _interval(overall: Json, name: str) -> str:
    value = interval(overall, name)
    if value is None:
        return NONE
    bounds = tag("small", f"[{value.low:.2f}, {value.high:.2f}]")
    return join([f"{value.median:.2f} ", bounds])


def _metrics(record: Json) -> list[str]:
    """Of fidelity, those that some method was scored by."""
    found = [dig(method, "overall", "fidelity", "metric") for method in measured(record)]
    return list(dict.fromkeys(str(metric) for metric in found if metric is not None))


def _fidelity(overall: Json, *, named: bool) -> str:
    score = number(overall, "fidelity", "score")
    if score is None:
        return NONE
    return f"{score:.3f} {dig(overall, 'fidelity', 'metric')}" if named else f"{score:.3f}"


def _gate(method: Json) -> str:
    gate = method.get("gate")
    if gate is None:
        return "not compared"
    same = gate["answers"] - gate["ties"] - gate["wrong"]
    parts = [f"{same} of {gate['answers']}"]
    if gate["ties"]:
        parts.append(f"{gate['ties']} tie{'s' * (gate['ties'] > 1)}")
    if gate["wrong"]:
        parts.append(tag("strong", f"{gate['wrong']} wrong", class_="wrong"))
    return join([part for index, each in enumerate(parts) for part in (", " * (index > 0), each)])


def memory(record: Json) -> Html:
    """Peak memory and what the caches hold."""
    names = {
        "peak_bytes": "peak",
        "kv_bytes": "keys and values",
        "drafter_kv_bytes": "the drafter’s",
    }
    rows = [
        row(label(method), [_mebibytes(number(method, "memory", name)) for name in names])
        for method in measured(record)
        if any(number(method, "memory", name) is not None for name in names)
    ]
    if not rows:
        return Html("")
    return table("Memory, MiB", ["method", *names.values()], rows)


def _mebibytes(value: float | None) -> str:
    return NONE if value is None else f"{value / 2**20:,.1f}"


def how(record: Json) -> Html:
    """The command, and all that it ran with."""
    parts = {
        "Model": record["model"],
        "Questions": record["questions"],
        "Settings": record["settings"],
        "Bare forwards": record.get("forwards"),
        "Machine": record["machine"],
    }
    tables = [
        table(name, ["what", "value"], [row(what, [said]) for what, said in _flat(part)])
        for name, part in parts.items()
        if part
    ]
    seconds = number(record, "wall_seconds")
    took = f", took {seconds:,.0f} seconds" if seconds is not None else ""
    when = f"Measured {record['started']}{took}." if record.get("started") else ""
    settings = {setting(method) for method in record["methods"]}
    several = "" if len(settings) < 2 else " Speedups refer to the reference at the same setting."
    return join(
        [
            tag("pre", tag("code", record["command"]), tabindex="0"),
            tag("p", f"{when} The reference is {record['reference']}.{several}".strip()),
            tag("div", *tables, class_="facts"),
        ]
    )


def _flat(part: Json, above: str = "") -> Iterator[tuple[str, str]]:
    for name, value in part.items():
        said = f"{above}{str(name).replace('_', ' ')}"
        if isinstance(value, Mapping):
            yield from _flat(value, f"{said}, ")
        elif isinstance(value, float):
            yield said, f"{value:.6g}"
        elif isinstance(value, int) and not isinstance(value, bool):
            yield said, f"{value:,}"
        elif value is not None:
            yield said, str(value)
