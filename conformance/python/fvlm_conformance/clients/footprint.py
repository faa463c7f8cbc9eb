"""What the forms of a bundle take in a plain ONNX Runtime, which has none of our kernels: bytes of files, and memory.

    python -m fvlm_conformance.clients.footprint BUNDLE IMAGE [TOKENS]

A Markdown table on stdout. Each form has a process of its own, which opens the three graphs, answers a question about the image
with TOKENS tokens (16) and ends; its peak is what the system says of it (`VmHWM`, mapped pages of weights included). Tokens are
compared with those of the first form.
"""

import json
import subprocess
import sys
from pathlib import Path

from PIL import Image

from .onnxruntime_plain import FastVlm


def files(bundle, variant):
    """Bytes of a variant's graphs and of the data that they read, each file once."""
    graphs = [variant[name] for name in ("vision_encoder", "embed_tokens", "decoder")]
    paths = {path for graph in graphs for path in [graph["path"], *graph["data"]]}
    return sum((bundle / path).stat().st_size for path in paths)


def answer(bundle, suffix, image, tokens):
    """In a process of its own: one line of JSON."""
    model = FastVlm(bundle, suffix)
    model.stop = set()
    found = model.ask(Image.open(image), "Describe the image.", tokens)
    status = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
    print(json.dumps({"tokens": found, "peak": peak}))


def main():
    bundle, image = Path(sys.argv[1]), sys.argv[2]
    tokens = int(sys.argv[3]) if len(sys.argv) > 3 else 16
    if len(sys.argv) > 4:
        return answer(bundle, sys.argv[4].removeprefix("suffix="), image, tokens)
    contract = json.loads((bundle / "bundle.json").read_text())
    print("| form | files | peak memory | tokens equal |\n|---|---|---|---|")
    expected = None
    for variant in contract["variants"]:
        if "fixed" in variant:
            continue
        suffix = Path(variant["decoder"]["path"]).stem.removeprefix("decoder_model_merged")
        command = [sys.executable, "-m", __spec__.name, bundle, image, str(tokens), f"suffix={suffix}"]
        done = subprocess.run(command, capture_output=True, text=True)
        name = f"`{variant['target']}` {variant['precision']}"
        if done.returncode != 0:
            sys.exit(f"error: {name}: {done.stderr.strip().splitlines()[-1]}")
        found = json.loads(done.stdout.splitlines()[-1])
        expected = expected or found["tokens"]
        equal = sum(a == b for a, b in zip(found["tokens"], expected))
        size, peak = files(bundle, variant) / 1e6, found["peak"] / 1e6
        print(f"| {name} | {size:.0f} MB | {peak:.0f} MB | {equal} of {len(expected)} |", flush=True)


if __name__ == "__main__":
    main()
