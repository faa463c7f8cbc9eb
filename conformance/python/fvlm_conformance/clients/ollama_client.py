"""The `ollama` package against a server.

python -m fvlm_conformance.clients.ollama_client ADDRESS SCENES.json
"""

import json
import pathlib
import sys

import ollama

QUESTION = "Describe the image."
SCHEMA = {
    "type": "object",
    "properties": {"sure": {"type": "boolean"}},
    "required": ["sure"],
    "additionalProperties": False,
}


def main():
    address, scenes = sys.argv[1], json.loads(pathlib.Path(sys.argv[2]).read_text())
    client = ollama.Client(host=address, timeout=120)
    model = client.list().models[0].model
    assert "vision" in client.show(model).capabilities
    assert client.ps().models[0].model == model
    for scene in scenes:
        ask = {"model": model, "options": {"temperature": 0, "num_predict": 64}}
        messages = [{"role": "user", "content": QUESTION, "images": [scene["image"]]}]
        whole = client.chat(messages=messages, **ask)
        assert whole.message.content == scene["answer"], whole
        assert whole.done and whole.done_reason == "stop" and whole.eval_count > 0, whole
        parts = list(client.chat(messages=messages, stream=True, **ask))
        assert "".join(part.message.content for part in parts) == scene["answer"], parts
        assert len(parts) > 3 and parts[-1].done, parts
        once = client.generate(prompt=QUESTION, images=[scene["image"]], **ask)
        assert once.response == scene["answer"], once
    structured = client.chat(messages=messages, format=SCHEMA, **ask)
    assert isinstance(json.loads(structured.message.content)["sure"], bool), structured
    assert client.generate(model=model).done_reason == "load"
    try:
        client.chat(model="none", messages=messages)
    except ollama.ResponseError as error:
        assert error.status_code == 404, error
    else:
        raise AssertionError("a model that is none")
    print("ollama")


if __name__ == "__main__":
    main()
