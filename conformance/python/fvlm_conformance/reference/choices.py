#!/usr/bin/env python3
"""Records how likely transformers finds given answers, and the tokens of its own: conformance/tests/data/choices.json.

python -m fvlm_conformance.reference.choices models/demo/checkpoint --scenes models/demo/scenes \
    -o conformance/tests/data/choices.json

In fp32; log-probabilities are those of a softmax in float64 over the ids that the tokenizer has: rows of the table beyond
them stand for no text.
"""

import argparse
import json
import pathlib

import torch
import transformers
from PIL import Image

# Scenes, question and choices; the last two lists have choices that begin others.
CASES = [
    (["scene_1.png"], "Describe the image.", ["A circle", "A square", "Two", "An"]),
    (["scene_2.png"], "How many objects are there?", ["One", "Two", "Three", "Four", "Five", "Six"]),
    (["scene_3.png"], "Is there a circle?", ["Yes", "No"]),
    (
        ["scene_4.png"],
        "What color is the background?",
        ["red", "green", "blue", "It is green.", "\u00e9t\u00e9"],
    ),
    (["scene_5.png"], "Describe the image.", ["Red square.", "Red circle on green.", "Red circle on blue."]),
    ([], "Hello.", ["yes", "no"]),
    (["scene_6.png"], "How many objects are there?", ["1", "10", "100", "2", "20", " 1"]),
    (["scene_7.png"], "Describe the image.", ["Three", "Three red", "Three red circles.", "T"]),
]
TOP = 5
LONGEST = 12


class Recorder:
    def __init__(self, checkpoint):
        self.model = transformers.FastVlmForConditionalGeneration.from_pretrained(
            checkpoint, dtype=torch.float32
        ).eval()
        self.processor = transformers.AutoProcessor.from_pretrained(checkpoint)
        self.tokenizer = self.processor.tokenizer
        ends = self.model.generation_config.eos_token_id
        self.ends = ends if isinstance(ends, list) else [ends]

    def prompt(self, images, question):
        content = [{"type": "image"} for _ in images] + [{"type": "text", "text": question}]
        text = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        return self.processor(images=images or None, text=[text], return_tensors="pt")

    @torch.no_grad()
    def rows(self, inputs, ids):
        """Log-probabilities `[len(ids) + 1, tokens]` after the prompt and after each of `ids`."""
        whole = dict(inputs)
        added = torch.tensor([ids], dtype=torch.int64)
        whole["input_ids"] = torch.cat([inputs["input_ids"], added], dim=1)
        whole["attention_mask"] = torch.ones_like(whole["input_ids"])
        for name in set(whole) - {"input_ids", "attention_mask", "pixel_values"}:
            del whole[name]
        logits = self.model(**whole).logits[0, -len(ids) - 1 :, : len(self.tokenizer)]
        return torch.log_softmax(logits.double(), dim=-1)

    def case(self, names, images, question, choices):
        inputs = self.prompt(images, question)
        tokens = [self.tokenizer(choice, add_special_tokens=False)["input_ids"] for choice in choices]
        begins = any(a is not b and b[: len(a)] == a for a in tokens for b in tokens)
        sums = []
        for ids in tokens:
            rows = self.rows(inputs, ids)
            total = sum(rows[place, token].item() for place, token in enumerate(ids))
            if begins:
                total += torch.logsumexp(rows[len(ids), self.ends], dim=0).item()
            sums.append(total)
        shares = torch.softmax(torch.tensor(sums, dtype=torch.float64), dim=0).tolist()
        return {
            "images": names,
            "question": question,
            "end_counts": begins,
            "choices": [
                {"text": text, "logprob": total, "probability": share}
                for text, total, share in zip(choices, sums, shares)
            ],
            "answer": self.answer(inputs),
        }

    def answer(self, inputs):
        """The greedy answer's tokens, how likely each is, and the likeliest in its place."""
        said = []
        ids = []
        while len(ids) < LONGEST:
            row = self.rows(inputs, ids)[-1]
            top = torch.topk(row, TOP)
            token = top.indices[0].item()
            if token in self.ends:
                break
            ids.append(token)
            likeliest = [[i, p] for i, p in zip(top.indices.tolist(), top.values.tolist())]
            said.append({"id": token, "logprob": row[token].item(), "top": likeliest})
        return said


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=pathlib.Path)
    parser.add_argument("--scenes", type=pathlib.Path, required=True, help="folder of PNG files")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("-o", "--output", type=pathlib.Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    recorder = Recorder(options.checkpoint)
    cases = []
    for names, question, choices in CASES:
        images = [Image.open(options.scenes / name).convert("RGB") for name in names]
        cases.append(recorder.case(names, images, question, choices))
    made = {"transformers": transformers.__version__, "torch": torch.__version__, "cases": cases}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
