"""Requests that fit the server's own description, and some that do not quite, by the thousand:
`python -m specdec.eval.serve_fuzz --cases 5000`. None may be answered with a 5xx.

Needs schemathesis and httpx. The server runs in this process, with the embedded model.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from fastapi import FastAPI
    from schemathesis import Case

MODEL = "demo"
# The others have little to say, and are soon exhausted.
_SHARES = {"/v1/chat/completions": 0.65, "/v1/completions": 0.35}


@dataclass
class Fuzzed:
    """Attributes:
    cases: requests that were sent.
    statuses: how often each was answered.
    failures: the first requests that were answered with a 5xx, and how.
    """

    cases: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


def fuzz(app: FastAPI, cases: int, seed: int = 0) -> Fuzzed:
    """Send `app` requests made from its OpenAPI document; it is closed afterwards."""
    from starlette.testclient import TestClient

    found, dice = Fuzzed(), random.Random(seed)
    with TestClient(app, raise_server_exceptions=False) as client:
        for case in _cases(app, cases, seed):
            request = _request(case, dice)
            response = client.request(**request)
            found.cases += 1
            found.statuses[response.status_code] += 1
            if response.status_code >= 500 and len(found.failures) < 20:
                found.failures.append(f"{response.status_code} {response.text[:200]}: {request}")
    return found


def _cases(app: FastAPI, count: int, seed: int) -> list[Case[Any]]:
    """About so many; of each operation its share."""
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import seed as seeded
    from hypothesis.errors import Unsatisfiable
    from schemathesis import GenerationMode, openapi

    schema = openapi.from_dict(app.openapi())
    # Any: what is right or wrong with an operation of a schema of our own.
    every: Any = schema.get_all_operations()
    operations = [each.ok() for each in every]
    found: list[Case[Any]] = []
    for operation in operations:
        for mode in GenerationMode:
            share = max(4, int(count * _SHARES.get(operation.path, 0) / 2))

            @seeded(seed)
            @settings(
                max_examples=share,
                database=None,
                deadline=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(case=operation.as_strategy(generation_mode=mode))
            def collect(case: Case[Any]) -> None:
                found.append(case)

            # There is no wrong way to ask where nothing is to be said.
            with suppress(Unsatisfiable):
                collect()
    random.Random(seed).shuffle(found)
    return found


def _request(case: Case[Any], dice: random.Random) -> dict[str, Any]:  # Any: arguments of a client
    """As httpx takes it. Mostly of the model that is there: others are refused at once."""
    sent = case.as_transport_kwargs(base_url="http://testserver")
    request = {name: sent[name] for name in ("method", "url", "params", "headers", "cookies")}
    headers = {name: value for name, value in request.pop("headers").items() if value is not None}
    body = sent.get("json")
    if isinstance(body, dict) and isinstance(body.get("model"), str) and dice.random() < 0.8:
        known = case.operation.schema.raw_schema["components"]["schemas"]
        name = "ChatRequest" if "chat" in case.operation.path else "CompletionRequest"
        # Of many fields one is always wrong, and the others are not looked at.
        kept = [key for key in known[name]["properties"] if key in body and dice.random() < 0.3]
        asked = {key: body[key] for key in ("messages", "prompt") if key in body}
        if dice.random() < 0.6:
            plain = {"messages": [{"role": "user", "content": "Read row 1."}], "prompt": "Read"}
            asked = {key: plain[key] for key in asked}
        body = {key: body[key] for key in kept} | asked | {"model": MODEL}
    if body is not None:
        headers["Content-Type"] = "application/json"
        request["content"] = json.dumps(body).encode()
    elif isinstance(sent.get("data"), (str, bytes)):
        request["content"] = sent["data"]
    return {**request, "headers": headers}


def main(
    cases: Annotated[int, typer.Option(min=1, help="Requests, about.")] = 5000,
    seed: Annotated[int, typer.Option(help="Of the requests.")] = 0,
) -> None:
    """Fuzz the server, print how it answered, and fail if it did so with any 5xx."""
    found = fuzz(demo_app(), cases, seed)
    print(f"{found.cases} requests")
    for status, times in sorted(found.statuses.items()):
        print(f"{status}  {times:6d}")
    for failure in found.failures:
        print(failure)
    raise typer.Exit(code=1 if found.failures else 0)


def demo_app() -> FastAPI:
    """The embedded model, with answers of a few tokens."""
    from specdec import AsyncEngine
    from specdec.demo import load
    from specdec.serving.app import create_app
    from specdec.serving.settings import Settings

    demo = load()
    engine = AsyncEngine(demo.model, demo.drafter, tree=2)
    settings = Settings(model=MODEL, max_tokens=2, max_choices=2)
    return create_app(engine, demo.processor, settings)


if __name__ == "__main__":
    typer.run(main)
