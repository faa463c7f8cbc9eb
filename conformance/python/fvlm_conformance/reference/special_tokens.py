#!/usr/bin/env python3
"""Records which ids transformers gives to special tokens, whatever file of a checkpoint has them.

    python -m fvlm_conformance.reference.special_tokens          # writes exporter/tests/data/special-tokens.json

Each case is the demo checkpoint with some small files replaced. `added` says which tokens stay in `tokenizer.json`;
without it there is none, but `vocab.json` and `merges.txt` made of it. exporter/tests/special_tokens.rs makes the
same checkpoints and compares. A case with `refused` is one where transformers' own tokenizers disagree, or where it
makes up an id: an export says so instead. Needs transformers.
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path

from fvlm_conformance.common import ROOT

DEMO = ROOT / "models" / "demo" / "checkpoint"
SMALL = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>")
TEXT = "<|im_start|>user\n<image>\nIt's a cat.<|im_end|>\n<|im_start|>assistant\n"
QWEN2 = {"tokenizer_class": "Qwen2Tokenizer", "model_max_length": 2048}
LISTED = ["<|im_start|>", "<|im_end|>", "<image>"]


def decoder(order=TOKENS, first=1020):
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    return {str(first + index): {"content": token, **flags} for index, token in enumerate(order)}


def added(order=TOKENS, first=1020):
    return {token: first + index for index, token in enumerate(order)}


def cases():
    own = json.loads((DEMO / "tokenizer_config.json").read_text(encoding="utf-8"))
    swapped = ("<|im_start|>", "<|endoftext|>", "<|im_end|>", "<image>")
    config, names = "tokenizer_config.json", {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    with_decoder = {**own, "added_tokens_decoder": decoder()}
    qwen2 = {**QWEN2, **names, "image_token": "<image>"}
    yield "decoder", [], {config: with_decoder}, None
    yield "added_tokens", [], {config: own, "added_tokens.json": added()}, None
    yield "both", [], {config: with_decoder, "added_tokens.json": added()}, None
    yield "decoder_first", [], {config: with_decoder, "added_tokens.json": added(swapped)}, None
    yield "image_in_decoder", TOKENS[:3], {config: with_decoder}, None
    yield "image_by_name", TOKENS[:3], {config: own}, None
    yield "vocab_decoder", None, {config: {**qwen2, "added_tokens_decoder": decoder()}}, None
    yield "vocab_added_tokens", None, {config: qwen2, "added_tokens.json": added()}, None
    special = {**names, "additional_special_tokens": LISTED}
    files = {config: QWEN2, "added_tokens.json": added(), "special_tokens_map.json": special}
    yield "vocab_special_map", None, files, None
    eos = {"eos_token": "<|endoftext|>"}
    files = {config: QWEN2, "special_tokens_map.json": {**eos, "extra_special_tokens": LISTED}}
    yield "vocab_extra_in_map", None, files, None
    yield "vocab_extra", None, {config: {**QWEN2, "additional_special_tokens": LISTED}}, None
    files = {config: {**own, "added_tokens_decoder": decoder(swapped)}}
    yield "contradiction", TOKENS, files, "states id 1020 for `<|im_start|>`, the tokenizer gives it 1021"
    gap = {**decoder(TOKENS[:3]), **decoder(TOKENS[3:], 1030)}
    files = {config: {**qwen2, "added_tokens_decoder": gap}}
    yield "gap", None, files, "states id 1030 for `<image>`, the tokenizer gives it 1023"
    files = {config: {**qwen2, "added_tokens_decoder": {}}, "added_tokens.json": added()}
    yield "empty_decoder", None, files, "`eos_token` is `<|im_end|>`, which the tokenizer does not know"


def write(directory, keep, files):
    for name in SMALL:
        shutil.copy(DEMO / name, directory / name)
    tokenizer = json.loads((DEMO / "tokenizer.json").read_text(encoding="utf-8"))
    path = directory / "tokenizer.json"
    if keep is None:
        path.unlink()
        merges = [
            merge if isinstance(merge, str) else " ".join(merge) for merge in tokenizer["model"]["merges"]
        ]
        lines = ["#version: 0.2", *merges, ""]
        (directory / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
        vocab = json.dumps(tokenizer["model"]["vocab"], ensure_ascii=False)
        (directory / "vocab.json").write_text(vocab, encoding="utf-8")
    else:
        tokenizer["added_tokens"] = [t for t in tokenizer["added_tokens"] if t["content"] in keep]
        path.write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    for name, contents in files.items():
        (directory / name).write_text(json.dumps(contents), encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    golden = ROOT / "exporter" / "tests" / "data" / "special-tokens.json"
    parser.add_argument("-o", "--output", type=Path, default=golden, help="file to write")
    options = parser.parse_args()
    import transformers

    recorded = []
    for name, keep, files, refused in cases():
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder), keep, files)
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        ids = tokenizer.encode(TEXT, add_special_tokens=False)
        recorded.append(
            {
                "name": name,
                "added": None if keep is None else list(keep),
                "files": files,
                "refused": refused,
                "ids": {token: tokenizer.convert_tokens_to_ids(token) for token in TOKENS},
                "encoded": ids,
                "decoded": tokenizer.decode(ids, skip_special_tokens=True),
            }
        )
    contents = {"schema": 1, "transformers": transformers.__version__, "text": TEXT, "cases": recorded}
    options.output.write_text(json.dumps(contents, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
