#!/usr/bin/env python3
"""Random JSON schemas, and answers that keep to them: every finished answer is valid, by the package jsonschema.

python -m fvlm_conformance.schemas --program target/release/fvlm-run --model BUNDLE --image scene.png

The model draws at temperature 1, so that it does what no training has taught it. Prints how many answers were finished, how
many were cut off by --max-tokens, and which schemas were refused; exit code 1 where an answer is not valid or the program
fails otherwise.
"""

import argparse
import json
import pathlib
import random
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor

import jsonschema

PATTERNS = ["^[A-Z]{2,4}$", "[0-9]", "^(red|green)-[0-9]+$", "^[^x]*$", "a.?b"]
FORMATS = ["date", "time", "ipv4", "uuid", "email"]
WORDS = ["red", 'a "quoted" word', "ü", "C:\\x", "", "日本", "line\nbreak", "</s>", "<|im_end|>"]


class Maker:
    """Schemas of moderate size from one seed."""

    def __init__(self, seed):
        self.random = random.Random(seed)

    def schema(self):
        made = self.any(3)
        if self.random.random() < 0.2:
            made = {
                "$defs": {"part": self.any(1)},
                "type": "object",
                "properties": {"part": {"$ref": "#/$defs/part"}, "rest": made},
                "required": ["part"],
            }
        return made

    def any(self, depth):
        leaves = [self.string, self.number, self.integer, self.enum, self.const, self.plain]
        inner = [self.object, self.object, self.array, self.tuple, self.any_of, self.all_of]
        return self.random.choice(inner + leaves if depth else leaves)(depth)

    def object(self, depth):
        names = self.random.sample(
            ["a", "b", "count", "color name", "é", "x-y", "items"], self.random.randint(1, 5)
        )
        made = {"type": "object", "properties": {name: self.any(depth - 1) for name in names}}
        made["required"] = [name for name in names if self.random.random() < 0.6]
        if self.random.random() < 0.6:
            made["additionalProperties"] = False
        elif self.random.random() < 0.5:
            made["additionalProperties"] = self.any(0)
        return made

    def array(self, depth):
        least = self.random.randint(0, 3)
        made = {"type": "array", "items": self.any(depth - 1), "minItems": least}
        if self.random.random() < 0.8:
            made["maxItems"] = least + self.random.randint(0, 3)
        return made

    def tuple(self, depth):
        parts = [self.any(depth - 1) for _ in range(self.random.randint(1, 3))]
        return {"type": "array", "prefixItems": parts, "items": False, "minItems": len(parts)}

    def any_of(self, depth):
        return {"anyOf": [self.any(depth - 1) for _ in range(self.random.randint(2, 3))]}

    def all_of(self, depth):
        first, second = self.object(depth), self.object(depth)
        for part in (first, second):
            part.pop("additionalProperties", None)
        second["properties"] = {name + "2": value for name, value in second["properties"].items()}
        second["required"] = [name + "2" for name in second["required"]]
        return {"allOf": [first, second]}

    def string(self, _depth):
        made = {"type": "string"}
        kind = self.random.random()
        if kind < 0.3:
            made["pattern"] = self.random.choice(PATTERNS)
        elif kind < 0.5:
            made["format"] = self.random.choice(FORMATS)
        elif kind < 0.9:
            made["minLength"] = self.random.randint(0, 4)
            made["maxLength"] = made["minLength"] + self.random.randint(0, 20)
        return made

    def number(self, _depth):
        made = {"type": "number"}
        least = self.random.choice([-1000, -2.5, 0, 0.125, 7])
        made[self.random.choice(["minimum", "exclusiveMinimum"])] = least
        made[self.random.choice(["maximum", "exclusiveMaximum"])] = least + self.random.choice([1, 0.5, 1000])
        return made

    def integer(self, _depth):
        made = {"type": "integer"}
        if self.random.random() < 0.7:
            made["minimum"] = self.random.randint(-100, 100)
            made["maximum"] = made["minimum"] + self.random.randint(10, 1000)
        if self.random.random() < 0.2:
            made["multipleOf"] = self.random.choice([2, 5, 10])
        return made

    def enum(self, _depth):
        values = self.random.sample(WORDS, 3) + [self.random.randint(-9, 9), None, True]
        return {"enum": self.random.sample(values, self.random.randint(1, 4))}

    def const(self, _depth):
        return {"const": self.random.choice([1, "two", [3, "four"], {"five": 6.5}, None, *WORDS])}

    def plain(self, _depth):
        return {"type": self.random.choice([["string", "null"], "boolean", "null", ["integer", "boolean"]])}


def ask(options, number, folder):
    """What became of schema `number`: a word, and the details."""
    schema = Maker(options.seed + number).schema()
    path = folder / f"{number}.json"
    path.write_text(json.dumps(schema, ensure_ascii=False), encoding="utf-8")
    command = [
        options.program,
        "--model",
        options.model,
        "--json-schema",
        path,
        "--json",
        "--quiet",
        "--threads",
        "1",
    ]
    command += [
        "--temperature",
        "1",
        "--seed",
        str(number),
        "--max-tokens",
        str(options.max_tokens),
        *options.flag,
    ]
    run = subprocess.run(command + [options.image], capture_output=True, text=True, timeout=600)
    if run.returncode == 2 and "cannot keep to the JSON schema" in run.stderr:
        return "refused", f"{run.stderr.strip().splitlines()[0]}\n  {json.dumps(schema)}"
    if run.returncode != 0:
        return "failed", f"exit code {run.returncode}: {run.stderr.strip()}\n  {json.dumps(schema)}"
    answer = json.loads(run.stdout.splitlines()[0])
    if answer["finish"] != "stop":
        return "cut off", answer["finish"]
    try:
        value = json.loads(answer["text"])
        checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
        jsonschema.Draft202012Validator(schema, format_checker=checker).validate(value)
    except (ValueError, jsonschema.ValidationError) as error:
        return "not valid", f"{error}\n  {answer['text']!r}\n  {json.dumps(schema)}"
    return "valid", answer["text"]


# Of all answers, those that are whole and valid: others are cut off, or their schema is refused.
LEAST = 0.7


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--program", type=pathlib.Path, required=True, help="fvlm-run")
    parser.add_argument("--model", type=pathlib.Path, required=True, help="the bundle")
    parser.add_argument("--image", type=pathlib.Path, required=True)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=15)
    parser.add_argument("--max-tokens", type=int, default=400)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--flag", action="append", default=[], help="one more of fvlm-run; several times")
    parser.add_argument("--verbose", action="store_true", help="print every answer")
    options = parser.parse_args()
    counts = {}
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.jobs) as pool:
        results = pool.map(lambda number: ask(options, number, pathlib.Path(folder)), range(options.count))
        for number, (word, details) in enumerate(results):
            counts[word] = counts.get(word, 0) + 1
            if options.verbose or word not in ("valid", "cut off"):
                print(f"schema {number}: {word}: {details}", flush=True)
    print(", ".join(f"{count} {word}" for word, count in sorted(counts.items())))
    few = counts.get("valid", 0) < options.count * LEAST
    if few:
        print(f"error: expected at least {LEAST:.0%} answers that are whole and valid", file=sys.stderr)
    sys.exit(1 if few or counts.get("not valid") or counts.get("failed") else 0)


if __name__ == "__main__":
    main()
