#!/usr/bin/env python3
"""Writes what transformers answers to the questions of `fvlm-conform quality --agreement`, greedily, in several precisions.

python -m fvlm_conformance.reference.answers conformance/quality/checkpoint --scenes models/demo/eval -o answers.json

`fvlm-conform quality --agreement --answers answers.json` counts those that are the answers of our fp32 word for word.
"""

import argparse
import hashlib
import json
import pathlib

import torch
import transformers
from PIL import Image

# Those of conformance/src/quality/agreement.rs.
QUESTIONS = ["Describe the image.", "What is in the image?", "Name the objects."]
LONGEST = 256
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@torch.no_grad()
def answers(checkpoint, images, dtype):
    """{(image, question): answer}; all images are asked a question together, in rows of the same length."""
    model = transformers.FastVlmForConditionalGeneration.from_pretrained(checkpoint, dtype=dtype).eval()
    processor = transformers.AutoProcessor.from_pretrained(checkpoint)
    found = {}
    for question in QUESTIONS:
        content = [{"type": "image"}, {"type": "text", "text": question}]
        text = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        for start in range(0, len(images), 50):
            part = images[start : start + 50]
            inputs = processor(
                images=[Image.open(path).convert("RGB") for path in part],
                text=[text] * len(part),
                return_tensors="pt",
            )
            inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
            told = model.generate(**inputs, max_new_tokens=LONGEST, do_sample=False)
            told = told[:, inputs["input_ids"].shape[1] :]
            for path, words in zip(part, processor.tokenizer.batch_decode(told, skip_special_tokens=True)):
                found[path.name, question] = words.strip()
    return found


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=pathlib.Path)
    parser.add_argument("--scenes", type=pathlib.Path, required=True, help="folder of PNG files")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=["bf16", "fp32"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("-o", "--output", type=pathlib.Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    images = sorted(options.scenes.glob("*.png"))
    weights = hashlib.sha256((options.checkpoint / "model.safetensors").read_bytes()).hexdigest()
    recorded = []
    for name in options.dtype:
        found = answers(options.checkpoint, images, DTYPES[name])
        told = [
            {"image": path.name, "question": question, "answer": found[path.name, question]}
            for path in images
            for question in QUESTIONS
        ]
        recorded.append({"name": f"transformers {name}", "weights": weights, "answers": told})
    options.output.write_text(json.dumps(recorded, indent=0, ensure_ascii=False) + "\n")
    first, *others = recorded
    for other in others:
        same = sum(a == b for a, b in zip(first["answers"], other["answers"]))
        print(f"{first['name']} and {other['name']}: {same} of {len(first['answers'])} the same")
        for a, b in zip(first["answers"], other["answers"]):
            if a != b:
                print(f"  {a['image']} {a['question']} {a['answer']!r} {b['answer']!r}")


if __name__ == "__main__":
    main()
