"""Every case through `onnxruntime_plain.FastVlm`; one line of JSON with the tokens of each.

CASES: [{image, question}, ..], or [{text, limit}, ..], of which the prompt's tokens are said too.

python -m fvlm_conformance.clients.plain BUNDLE DTYPE CASES.json
"""

import json
import sys

from PIL import Image

from .onnxruntime_plain import FastVlm

# Of files, where they are not the precision's name.
SUFFIXES = {"fp32": "", "q8": "_quantized"}


def main():
    bundle, dtype, cases = sys.argv[1:]
    model = FastVlm(bundle, SUFFIXES.get(dtype, f"_{dtype}"))
    for case in json.load(open(cases)):
        if "text" in case:
            prompt, tokens = model.text(case["text"], case["limit"])
            print(json.dumps({"prompt": prompt, "tokens": tokens}), flush=True)
            continue
        print(json.dumps({"tokens": model.ask(Image.open(case["image"]), case["question"])}), flush=True)


if __name__ == "__main__":
    main()
