"""The `openai` package against a server, and LangChain's `ChatOpenAI`, which is built on it; a check is a function.

python -m fvlm_conformance.clients.openai_client ADDRESS SCENES.json
"""

import base64
import json
import math
import pathlib
import sys
from typing import Literal

import openai
from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

QUESTION = "Describe the image."


class Answer(BaseModel):
    """What an answer must be; a small model would not come to the end of a text that is free."""

    name: Literal["unicorn", "train"]
    sure: bool


def part(path):
    data = base64.b64encode(pathlib.Path(path).read_bytes()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}


def about(path, question=QUESTION):
    return {"role": "user", "content": [part(path), {"type": "text", "text": question}]}


def answers(client, model, scenes):
    """Whole and streamed, each scene has the words that are known."""
    for scene in scenes:
        ask = {
            "model": model,
            "messages": [about(scene["image"])],
            "temperature": 0,
            "seed": 1,
            "user": "test",
        }
        whole = client.chat.completions.create(**ask)
        assert whole.choices[0].message.content == scene["answer"], whole
        assert whole.choices[0].finish_reason == "stop", whole
        usage = whole.usage
        assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens, usage
        text, last = "", None
        for chunk in client.chat.completions.create(
            **ask, stream=True, stream_options={"include_usage": True}
        ):
            text += chunk.choices[0].delta.content or "" if chunk.choices else ""
            last = chunk
        assert text == scene["answer"], text
        assert last.usage.completion_tokens == usage.completion_tokens, last
        assert last.usage.prompt_tokens_details.cached_tokens > 0, last


def logprobs(client, model, scenes):
    """The chosen token of a greedy answer is the likeliest; tokens together are the answer."""
    ask = {"model": model, "messages": [about(scenes[0]["image"])], "logprobs": True, "top_logprobs": 5}
    tokens = client.chat.completions.create(**ask).choices[0].logprobs.content
    assert b"".join(bytes(token.bytes) for token in tokens).decode() == scenes[0]["answer"], tokens
    for token in tokens:
        assert len(token.top_logprobs) == 5
        assert token.top_logprobs[0].token == token.token
        assert token.logprob <= 0
        assert sum(math.exp(other.logprob) for other in token.top_logprobs) <= 1 + 1e-6
    streamed = []
    for chunk in client.chat.completions.create(**ask, stream=True):
        streamed += (chunk.choices[0].logprobs.content or []) if chunk.choices[0].logprobs else []
    assert [token.token for token in streamed] == [token.token for token in tokens]


def structured(client, model, scenes):
    """An answer is what a schema says."""
    messages = [about(scenes[0]["image"])]
    parsed = client.chat.completions.parse(
        model=model, messages=messages, response_format=Answer, max_tokens=200, temperature=0
    )
    choice = parsed.choices[0]
    assert isinstance(choice.message.parsed, Answer), choice
    any_object = client.chat.completions.create(
        model=model, messages=messages, response_format={"type": "json_object"}, max_tokens=100
    )
    choice = any_object.choices[0]
    assert choice.finish_reason == "length" or isinstance(json.loads(choice.message.content), dict), choice
    one = client.chat.completions.create(
        model=model, messages=messages, extra_body={"structured_outputs": {"choice": ["yes", "no"]}}
    )
    assert one.choices[0].message.content in ("yes", "no"), one


def conversations(client, model, scenes):
    """Several turns and images; the second turn reads only what is new."""
    first = [{"role": "system", "content": "Be brief."}, about(scenes[0]["image"])]
    said = client.chat.completions.create(model=model, messages=first)
    more = [
        *first,
        {"role": "assistant", "content": said.choices[0].message.content},
        {"role": "user", "content": "What color is the background?"},
    ]
    then = client.chat.completions.create(model=model, messages=more, max_completion_tokens=20)
    assert then.choices[0].message.content, then
    assert then.usage.prompt_tokens_details.cached_tokens >= said.usage.prompt_tokens, then.usage
    both = {
        "role": "user",
        "content": [
            part(scenes[0]["image"]),
            part(scenes[1]["image"]),
            {"type": "text", "text": "What is there?"},
        ],
    }
    two = client.chat.completions.create(model=model, messages=[both], max_tokens=20)
    assert two.usage.prompt_tokens > said.usage.prompt_tokens, two.usage


def lengths(client, model, scenes):
    """Answers end where they are told to."""
    ask = {"model": model, "messages": [about(scenes[0]["image"])]}
    cut = client.chat.completions.create(**ask, max_tokens=2).choices[0]
    assert cut.finish_reason == "length" and scenes[0]["answer"].startswith(cut.message.content), cut
    stopped = client.chat.completions.create(**ask, stop=[" and"]).choices[0]
    expected = scenes[0]["answer"].split(" and")[0]
    assert (stopped.finish_reason, stopped.message.content) == ("stop", expected), stopped


def errors(client, model, scenes):
    """Each has the class that the client has for it."""
    ask = {"model": model, "messages": [about(scenes[0]["image"])]}
    for change, kind, param in [
        ({"model": "none"}, openai.NotFoundError, "model"),
        ({"n": 2}, openai.BadRequestError, "n"),
        ({"temperature": 3}, openai.BadRequestError, "temperature"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, openai.BadRequestError, "tools"),
        ({"messages": []}, openai.BadRequestError, "messages"),
    ]:
        try:
            client.chat.completions.create(**{**ask, **change})
        except kind as error:
            assert error.param == param, error
        else:
            raise AssertionError(change)
    bad = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    try:
        client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": [bad]}], stream=True
        )
    except openai.BadRequestError as error:
        assert error.code == "invalid_image", error
    else:
        raise AssertionError(bad)


def langchain(address, model, scenes):
    """The same questions through LangChain."""
    chat = ChatOpenAI(base_url=f"{address}/v1", api_key="none", model=model, temperature=0, max_retries=0)
    for scene in scenes[:3]:
        message = HumanMessage(content=about(scene["image"])["content"])
        assert chat.invoke([message]).content == scene["answer"]
        assert "".join(chunk.content for chunk in chat.stream([message])) == scene["answer"]
    answered = chat.with_structured_output(Answer, method="json_schema").invoke([message])
    assert isinstance(answered, Answer), answered


def main():
    address, scenes = sys.argv[1], json.loads(pathlib.Path(sys.argv[2]).read_text())
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=120)
    model = client.models.list().data[0].id
    assert client.models.retrieve(model).id == model
    for check in (answers, logprobs, structured, conversations, lengths, errors):
        check(client, model, scenes)
        print(f"openai {check.__name__}", flush=True)
    langchain(address, model, scenes)
    print("langchain", flush=True)


if __name__ == "__main__":
    main()
