"""How many replicas does a load take, and what will waiting be like?
`python -m specdec.eval.capacity`.

What answering takes is measured here, for a model of any size (:mod:`specdec.eval.serving_costs`);
what comes of it under a load is expected (:mod:`specdec.eval.queueing`), not measured. `--check`
puts a load on the demonstration model and says how far the expectation was off.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedModel

from specdec.eval.capacity_check import Checked, check
from specdec.eval.known_configs import NAMES
from specdec.eval.plan import acceptance_of, drafter_of, model_of, numbers_of
from specdec.eval.queueing import Work, expected
from specdec.eval.random_models import image_prompt
from specdec.eval.record import machine, write
from specdec.eval.serving_costs import ServingCosts, measure
from specdec.eval.suite import DTYPES
from specdec.eval.timing import Inputs

SCHEMA = "specdec.capacity/1"
_FULL = 0.8  # of its capacity: what a replica is planned for


def replicas_for(work: Work, rate: float, full: float = _FULL) -> int:
    """The fewest of which none is fuller than that."""
    return math.ceil(rate / (full * work.rate(work.most)))


def pays_up_to(costs: ServingCosts, most: int) -> int:
    """The most requests in a step for which drafting is faster, of those that were measured; 0 if
    it never is.
    """
    last = min(most, costs.plain.measured[-1][0])
    return max((i for i in range(1, last + 1) if costs.speedup(i) > 1), default=0)


def prompt_pairs(model: PreTrainedModel, words: int, count: int) -> list[tuple[Inputs, Inputs]]:
    """Questions of so many tokens about images of noise, two about each."""
    pairs: list[tuple[Inputs, Inputs]] = []
    for number in range(count):
        one, other = (image_prompt(model, words, seed=2 * number + i) for i in range(2))
        pixels = one["pixel_values"] + 0.01 * number
        pairs.append(({**one, "pixel_values": pixels}, {**other, "pixel_values": pixels}))
    return pairs


def plan_of(
    costs: ServingCosts,
    *,
    rate: float,
    answer: float,
    shared: float,
    most: int,
    kv_bytes: float,
    drafter: bool = True,
) -> dict[str, Any]:  # Any: JSON values
    """What a load takes, drafted for or not, whichever takes fewer replicas first; plainly alone
    where there is no ``drafter``, whose time would be left out.

    Raises:
        ValueError: the keys of a single request do not fit.
    """
    each = (costs.prompt_tokens + answer) * costs.kv_bytes_per_token
    if 0 < kv_bytes < each:
        raise ValueError(
            f"the keys of one request take {each / 2**20:.3g} MiB, and there are "
            f"{kv_bytes / 2**20:.3g} MiB for keys"
        )
    fits = int(kv_bytes // each) if kv_bytes else most
    plans: list[dict[str, Any]] = []
    for drafts in (True, False)[not drafter :]:
        work = costs.work(answer=answer, shared=shared, most=min(most, fits), drafts=drafts)
        replicas = replicas_for(work, rate)
        found = expected(work, rate / replicas)
        plans.append(
            {
                "drafts": drafts,
                "replicas": replicas,
                "capacity_per_replica": work.rate(work.most),
                "expected_per_replica": found._asdict(),
                "kv_bytes_per_replica": round(found.running * each),
            }
        )
    plans.sort(key=lambda plan: plan["replicas"])
    return {
        "load": {"rate": rate, "answer_tokens": answer, "shared_images": shared},
        "kv_bytes_per_request": round(each),
        "max_batch": min(most, fits),
        "drafting_pays_up_to_batch": pays_up_to(costs, most) if drafter else None,
        "plans": plans,
    }


def _table(plan: dict[str, Any], title: str) -> Table:
    table = Table(title=title, box=SIMPLE_HEAD, padding=0, show_edge=False)
    for column in ("", "replicas", "each\nreq/s", "in\nflight", "KV\nMiB", "busy", "waiting"):
        table.add_column(column, justify="right")
    for column in ("first\ntoken ms", "between\ntokens ms", "end to\nend s"):
        table.add_column(f"expected\n{column}", justify="right")
    for each in plan["plans"]:
        found = each["expected_per_replica"]
        table.add_row(
            "drafting" if each["drafts"] else "plain",
            str(each["replicas"]),
            f"{each['capacity_per_replica']:.2f}",
            f"{found['running']:.1f}",
            f"{each['kv_bytes_per_replica'] / 2**20:.0f}",
            f"{100 * found['utilisation']:.0f} %",
            f"{found['waiting']:.2f}",
            f"{1000 * found['first_token']:.1f}",
            f"{1000 * found['between_tokens']:.2f}",
            f"{found['end_to_end']:.2f}",
        )
    return table


def _say(checked: Checked, console: Console) -> None:
    for load in checked.loads:
        said, hoped = load.measured, load.expected
        full = "more than" if hoped is None else f"{100 * hoped.utilisation:.0f} % of"
        console.print(
            f"{said.rate:.2f} requests/s, {full} capacity: first token "
            f"{1000 * said.first_token:.0f} ms, then one in {1000 * said.between_tokens:.1f} ms, "
            "measured; expected were "
            + (", ".join(f"{n} {e:+.0f} %" for n, e in load.error_percent.items()) or "none")
        )
    most = checked.saturated
    console.print(
        f"saturated: {most.measured.tokens_per_second:.0f} tokens/s, measured; expected were "
        f"{most.tokens_per_second:.0f}, {most.error_percent:+.0f} %"
    )


def capacity(
    model: Annotated[
        str, typer.Option(help=f"A folder with a config, demo, or one of {', '.join(NAMES)}.")
    ] = "demo",
    drafter: Annotated[
        str,
        typer.Option(help="A saved drafter, demo, eagle for a head of random weights, or none."),
    ] = "none",
    acceptance: Annotated[
        float, typer.Option(min=0, max=1, help="Assumed: accepted drafts, of those reached.")
    ] = 0.7,
    profile: Annotated[
        Path | None, typer.Option(help="Benchmark's record to read acceptance from instead.")
    ] = None,
    method: Annotated[str | None, typer.Option(help="Method of that record.")] = None,
    rate: Annotated[float, typer.Option(min=1e-6, help="Requests a second.")] = 10.0,
    words: Annotated[int, typer.Option(min=1, help="Tokens of a prompt behind its image.")] = 32,
    answer: Annotated[int, typer.Option(min=2, help="Tokens of an answer.")] = 128,
    shared: Annotated[
        float, typer.Option(min=0, max=1, help="Share of requests whose image a replica knows.")
    ] = 0.0,
    batch: Annotated[str, typer.Option(help="Requests that share a step, by commas.")] = "1,2,4,8",
    depth: Annotated[int, typer.Option(min=1, help="Of the chains that are drafted.")] = 4,
    most: Annotated[int, typer.Option("--max-batch", min=1, help="Of a replica.")] = 32,
    kv_gib: Annotated[
        float, typer.Option(min=0, help="For keys and values, GiB a replica; 0: enough.")
    ] = 0.0,
    rounds: Annotated[int, typer.Option(min=1, help="Prompts that are timed.")] = 8,
    dtype: Annotated[str, typer.Option(help=f"One of {', '.join(DTYPES)}.")] = "bf16",
    device: Annotated[str | None, typer.Option(help="As torch names it.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    compare: Annotated[
        bool, typer.Option("--check", help="Put loads on the demonstration model as well.")
    ] = False,
    loads: Annotated[
        str, typer.Option(help="With --check: percent of a replica's capacity, by commas.")
    ] = "30,60,85",
    requests: Annotated[int, typer.Option(min=2, help="With --check: of each load.")] = 100,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
) -> None:
    """Measure what answering costs here and say how many replicas a load takes."""
    if threads is not None:
        torch.set_num_threads(threads)
    on = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    console = Console()
    record: dict[str, Any] = {"schema": SCHEMA, "machine": machine()}
    try:
        if dtype not in DTYPES:
            raise ValueError(f"dtype {dtype!r}: known are {', '.join(DTYPES)}")
        if compare and (model, drafter) != ("demo", "demo"):
            raise ValueError("--check is of the demonstration model: --model demo --drafter demo")
        verifier = model_of(model, DTYPES[dtype], on)
        drafts = drafter_of(drafter, verifier)
        accepted = acceptance_of(acceptance, profile, method)
        pairs = prompt_pairs(verifier, words, 1 + rounds)
        each = numbers_of(batch, "batch")
        costs = measure(verifier, drafts, accepted, pairs, batches=each, depth=depth, tokens=answer)
        sizes: dict[str, Any] = {"rate": rate, "answer": answer, "shared": shared, "most": most}
        plan = plan_of(costs, **sizes, kv_bytes=kv_gib * 2**30, drafter=drafts is not None)
        checked: Checked | None = None
        if compare:
            assert drafts is not None
            checked = check(
                verifier,
                drafts,
                batches=each,
                depth=depth,
                shares=[share / 100 for share in numbers_of(loads, "loads")],
                requests=requests,
                answer=answer,
                most=most,
            )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    who = f"drafter {drafter}; acceptance {accepted.source}" if drafts else "no drafter"
    console.print(_table(plan, f"{model}, {who}. Expected, not measured"))
    pays = plan["drafting_pays_up_to_batch"]
    if pays is not None:
        console.print(
            f"drafting pays in steps of up to {pays} requests" if pays else "drafting never pays"
        )
    record |= {
        **{"model": model, "drafter": drafter, "dtype": dtype, "device": str(on)},
        "acceptance": accepted.source if drafts else None,
        "costs": costs.to_dict(),
        "plan": plan,
    }
    if checked is not None:
        _say(checked, console)
        record["check"] = checked.to_dict()
    if out is not None:
        write(out, record)


if __name__ == "__main__":
    typer.run(capacity)
