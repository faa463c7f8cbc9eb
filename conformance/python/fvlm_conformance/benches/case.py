"""The case that all contestants run: checkpoint, image, prompt, and the bundles that ours reads.

The image is the scene of `fvlm_conformance.reference.synth`. The prompt has 286 positions with 256 image tokens: the checkpoint gets a
stand-in tokenizer that knows the words of the prompt, unless a real one is given.
"""

import json
import re
import subprocess
import sys

from ..common import ROOT
from ..reference import synth

SEED = 1
QUESTION = "Describe the image and say what is in it."
SYSTEM = "You are a helpful assistant."
# Width, height: a photograph's shape, larger than the network's input, so that preprocessing has its usual work.
IMAGES = {"0.5b": (1600, 1200), "demo": (320, 240)}


def say(text):
    print(text, file=sys.stderr, flush=True)


def run(command, **more):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **more)
    if done.returncode != 0:
        raise SystemExit(f"error: {command[0]} ended with {done.returncode}: {done.stderr.strip()[-2000:]}")
    return done.stdout


def words(text):
    return re.findall(r" ?[A-Za-z]+", text)


def tokenizer_with_words():
    """The byte-level stand-in of `synth`, with every word of the prompt as one token."""
    tokenizer = json.loads((ROOT / "conformance/src/synth/tokenizer.json").read_text(encoding="utf-8"))
    tokenizer["model"]["vocab"] = synth.byte_vocabulary()
    known = sorted(set(words(f"system\n{SYSTEM}\nuser\n{QUESTION}\nassistant")), key=lambda w: (-len(w), w))
    # Of the vocabulary too: added tokens that it does not have get the ids after its last one, whatever they say.
    ids = {word: 256 + i for i, word in enumerate(known)}
    tokenizer["model"]["vocab"] |= ids
    tokenizer["added_tokens"] = [
        {
            "id": i,
            "content": word,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": False,
        }
        for word, i in ids.items()
    ]
    return tokenizer


def scene(width, height, path):
    import numpy
    from PIL import Image

    with numpy.errstate(over="ignore"):
        Image.fromarray(synth.scene(width, height, SEED)).save(path)


def make(work, size, programs, tokenizer=None, outliers=False):
    """Checkpoint, image and ids under `work`; what is there already is kept."""
    work.mkdir(parents=True, exist_ok=True)
    checkpoint, image = work / "checkpoint", work / "image.png"
    if not (checkpoint / "model.safetensors").exists():
        say(f"synthesising the {size} checkpoint, seed {SEED}")
        if tokenizer is None:
            tokenizer = work / "tokenizer.json"
            tokenizer.write_text(json.dumps(tokenizer_with_words()), encoding="utf-8")
        run(
            [
                programs / "fvlm-conform",
                "synth",
                "--size",
                size,
                "--layout",
                "transformers",
                "--seed",
                SEED,
                "--tokenizer",
                tokenizer,
                "-o",
                checkpoint,
            ]
            + (["--outliers"] if outliers else [])
        )
    if not image.exists():
        scene(*IMAGES[size], image)
    write_facts(work, checkpoint)


def write_facts(work, checkpoint):
    from transformers import AutoTokenizer

    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    if tokenizer.chat_template is None:
        tokenizer.chat_template = (checkpoint / "chat_template.jinja").read_text(encoding="utf-8")
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}],
        tokenize=False,
        add_generation_prompt=True,
    )
    ids, image = [], config["image_token_index"]
    for i in tokenizer(text, add_special_tokens=False)["input_ids"]:
        ids += [i] * (config["image_seq_length"] if i == image else 1)
    facts = {"image": "image.png", "prompt": QUESTION, "prompt_ids": ids, "image_token_id": image}
    (work / "case.json").write_text(json.dumps(facts) + "\n", encoding="utf-8")
    say(f"the prompt has {len(ids)} positions, {ids.count(image)} of the image")
