"""What OpenAI's own client sees of a server."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

import specdec
from specdec.demo import Demo, Question, questions
from specdec.serving.replies import ChatCompletion, Completion
from support.servers import Running, running

Messages = list[dict[str, Any]]


@pytest.fixture(scope="module")
def server(demo: Demo) -> Iterator[Running]:
    with running(demo, acceptance=specdec.Relaxed(epsilon=0.5, reliance="divergence")) as there:
        yield there


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[Any]:  # Any: tests hand it plain dictionaries
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as there:
        yield there


def ask(client: Any, messages: Messages, **how: Any) -> Any:
    """Greedy and lossless, unless said otherwise."""
    given = {"temperature": 0, "max_tokens": 24, "extra_body": {"specdec": {"policy": "lossless"}}}
    return client.chat.completions.create(model="demo", messages=messages, **given | how)


def alone(demo: Demo, question: Question, tokens: int) -> str:
    """What `specdec.generate` answers."""
    inputs = question.encode(demo.processor)
    out = specdec.generate(
        demo.model, drafter=demo.drafter, tree=4, **inputs, max_new_tokens=tokens
    )
    text = demo.processor.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert isinstance(text, str)
    return text


def conversation(question: Question) -> Messages:
    """A held-out question in OpenAI's format."""
    urls = iter(
        "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
        for path in question.images
    )
    return [
        {
            "role": turn["role"],
            "content": [
                {"type": "image_url", "image_url": {"url": next(urls)}}
                if part["type"] == "image"
                else {"type": "text", "text": part["text"]}
                for part in turn["content"]
            ],
        }
        for turn in question.messages
    ]


def test_answers_under_load_are_those_of_generate(demo: Demo, client: Any) -> None:
    """Would catch answers that are mixed up, another chat format, or lost tokens: six questions at
    once get, letter for letter, what `specdec.generate` answers to each by itself.
    """
    asked = questions()[:6]
    expected = [alone(demo, question, 24) for question in asked]
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda question: ask(client, conversation(question)), asked))
    assert [answer.choices[0].message.content for answer in answers] == expected


def test_a_stream_says_what_the_whole_says(client: Any, messages: Messages) -> None:
    """Would catch text lost or doubled between events, and usage that is not that of the whole."""
    whole = ask(client, messages)
    chunks = list(ask(client, messages, stream=True, stream_options={"include_usage": True}))
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
    assert said == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks[:-1]][-2:] == [None, "length"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens == 24
    assert chunks[-1].usage.prompt_tokens_details.cached_tokens > 0


def test_an_asynchronous_client_streams(server: Running, messages: Messages) -> None:
    """Would catch events that only a whole answer brings, and a last chunk without metrics where
    usage was not asked for.
    """

    async def stream() -> list[Any]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="any") as there:
            return [chunk async for chunk in await ask(there, messages, stream=True)]

    chunks = asyncio.run(stream())
    assert len(chunks) > 4
    assert all(len(chunk.choices) == 1 for chunk in chunks)
    assert chunks[-1].metrics["speculative_decoding"]["num_spec_steps"] > 0


def test_seeds_say_which_samples(client: Any, messages: Messages) -> None:
    """Would catch samples that share their randomness, and seeds that do not repeat: the second of
    two samples is the first one of the next seed.
    """
    two = ask(client, messages, temperature=1.5, seed=5, n=2)
    other = ask(client, messages, temperature=1.5, seed=6)
    said = [choice.message.content for choice in two.choices]
    assert [choice.index for choice in two.choices] == [0, 1]
    assert said[0] != said[1] == other.choices[0].message.content
    assert two.usage.prompt_tokens == other.usage.prompt_tokens
    assert two.usage.completion_tokens > other.usage.completion_tokens


@pytest.mark.parametrize("stream", [False, True])
def test_nothing_is_said_from_a_stop_string_on(
    client: Any, messages: Messages, stream: bool
) -> None:
    """Would catch a stop string, or its beginning, in what is sent; and tokens computed after it:
    "photo shows" spans two tokens that come in one step.
    """
    whole = ask(client, messages).choices[0].message.content
    before = whole[: whole.index("oto shows")]
    answer = ask(client, messages, stop=["nowhere", "oto shows"], stream=stream)
    if stream:
        chunks = list(answer)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == before
        assert chunks[-1].choices[0].finish_reason == "stop"
    else:
        (choice,) = answer.choices
        assert choice.message.content == before
        assert (choice.finish_reason, choice.stop_reason) == ("stop", "oto shows")
        assert answer.usage.completion_tokens < 12


def test_logprobs_are_those_of_the_tokens(client: Any, messages: Messages) -> None:
    """Would catch entries that belong to other tokens: they spell the answer, and when greedy each
    is the most probable one.
    """
    answer = ask(client, messages, logprobs=True, top_logprobs=2)
    content = answer.choices[0].logprobs.content
    said = b"".join(bytes(entry.bytes) for entry in content).decode()
    assert said == answer.choices[0].message.content
    assert all(len(entry.top_logprobs) == 2 for entry in content)
    assert all(entry.logprob == entry.top_logprobs[0].logprob <= 0 for entry in content)


def test_biases_and_penalties_reach_the_model(demo: Demo, client: Any, messages: Messages) -> None:
    """Would catch either being dropped: what is forbidden is not said, and repeating costs."""
    first, *_ = ask(client, messages, logprobs=True).choices[0].logprobs.content
    token = demo.processor.tokenizer.convert_tokens_to_ids(first.token)
    others = ask(client, messages, max_tokens=1, logit_bias={str(token): -100})
    assert others.choices[0].message.content != first.token
    sampled = {"max_tokens": 48, "temperature": 1.5, "seed": 1}
    free = ask(client, messages, **sampled).choices[0].message.content
    strict = ask(client, messages, frequency_penalty=2, presence_penalty=2, **sampled)
    assert strict.choices[0].message.content != free


def test_origins_and_policies(client: Any, messages: Messages) -> None:
    """Would catch a looser policy than the operator's being let through, drafts that were not
    wanted, and origins that do not spell the answer.
    """
    free = {"specdec": {"origins": True}}
    answer = ask(client, messages, extra_body=free).choices[0]
    tokens = answer.specdec["tokens"]
    assert "".join(token["text"] for token in tokens) == answer.message.content
    assert {token["origin"] for token in tokens} >= {"drafted", "verifier"}
    plain = ask(client, messages, extra_body={"specdec": {"policy": "lossless", "drafts": False}})
    assert plain.metrics["speculative_decoding"]["num_draft_tokens"] == 0
    strict = ask(client, messages, extra_body={"specdec": {"epsilon": 0.0}})
    assert strict.choices[0].message.content == plain.choices[0].message.content
    with pytest.raises(openai.BadRequestError, match="looser") as caught:
        ask(client, messages, extra_body={"specdec": {"epsilon": 0.6}})
    assert caught.value.param == "specdec.epsilon"


def test_tools_reach_the_chat_format(
    demo: Demo, client: Any, messages: Messages, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch tools dropped in silence: a format without a place for them refuses, one with it
    gets them, and calls of earlier turns with their arguments as an object.
    """
    tool = {"type": "function", "function": {"name": "zoom", "parameters": {"type": "object"}}}
    call = {
        "id": "1",
        "type": "function",
        "function": {"name": "zoom", "arguments": '{"times": 2}'},
    }
    turns = [
        *messages,
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "done"},
    ]
    with pytest.raises(openai.BadRequestError, match="no place for tools"):
        ask(client, messages, tools=[tool])
    plain = ask(client, turns).usage.prompt_tokens
    with_tools = (
        "{% for tool in tools or [] %}{{ tool.function.name }}{% endfor %}{% for m in messages %}"
        "{% for c in m.tool_calls or [] %}{{ c.function.arguments.times }}{% endfor %}{% endfor %}"
    )
    monkeypatch.setattr(
        demo.processor, "chat_template", f"{with_tools}{demo.processor.chat_template}"
    )
    assert ask(client, turns, tools=[tool]).usage.prompt_tokens > plain
    assert ask(client, turns, tools=[tool], tool_choice="none").choices


def test_plain_completions_go_on(demo: Demo, client: Any) -> None:
    """Would catch prompts that get a chat format, lists whose answers are in another order, and
    tokens that are not taken as they are.
    """
    prompts = ["The figure in row 1", "I can see"]
    both = client.completions.create(model="demo", prompt=prompts, temperature=0, logprobs=1)
    ids = [demo.processor.tokenizer(prompt).input_ids for prompt in prompts]
    as_ids = client.completions.create(model="demo", prompt=ids, temperature=0)
    assert [choice.text for choice in both.choices] == [choice.text for choice in as_ids.choices]
    assert both.choices[0].text != both.choices[1].text
    assert "".join(both.choices[0].logprobs.tokens) == both.choices[0].text
    assert both.usage.completion_tokens <= 32
    chunks = list(
        client.completions.create(model="demo", prompt=prompts[1], temperature=0, stream=True)
    )
    assert "".join(chunk.choices[0].text for chunk in chunks) == both.choices[1].text


def test_responses_are_as_described(client: Any, messages: Messages) -> None:
    """Would catch a description at /openapi.json that a field has been left out of."""
    how = {"logprobs": True, "top_logprobs": 1, "extra_body": {"specdec": {"origins": True}}}
    ChatCompletion.model_validate_json(
        client.chat.completions.with_raw_response.create(
            model="demo", messages=messages, max_tokens=8, **how
        ).text
    )
    Completion.model_validate_json(
        client.completions.with_raw_response.create(model="demo", prompt="a", logprobs=1).text
    )


def test_the_model_says_what_it_is(client: Any) -> None:
    """Would catch a client that is not told the operator's policy."""
    (model,) = client.models.list().data
    assert model == client.models.retrieve("demo")
    assert model.specdec["policy"]["epsilon"] == 0.5
    assert model.specdec["images"] is True
    assert model.specdec["max_model_len"] == 1024
    assert model.specdec["max_tokens"] == 4096
