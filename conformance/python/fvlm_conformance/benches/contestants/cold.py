"""One process from nothing to the first token: what a Python user waits for. Prints the token's id.

python -m fvlm_conformance.benches.contestants.cold --work DIR --peer NAME
"""

import argparse
import importlib
import os

import numpy as np

from . import PEERS
from .common import Case

KINDS = {"transformers_peer": "Transformers", "openvino_peer": "OpenVino", "onnxruntime_peer": "OnnxRuntime"}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", required=True)
    parser.add_argument("--peer", required=True, choices=[n for n, p in PEERS.items() if p.module in KINDS])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    chosen = parser.parse_args()
    from PIL import Image
    from tokenizers import Tokenizer

    case = Case(chosen.work)
    peer = PEERS[chosen.peer]
    kind = getattr(importlib.import_module(f"{__package__}.{peer.module}"), KINDS[peer.module])
    contestant = kind(case, peer.precision, chosen.threads)
    tokenizer = Tokenizer.from_file(str(case.checkpoint / "tokenizer.json"))
    contestant.load()
    logits = contestant.prefill(
        contestant.encode(contestant.preprocess(Image.open(case.image).convert("RGB")))
    )
    token = int(np.argmax(logits))
    print(token, repr(tokenizer.decode([token])))


if __name__ == "__main__":
    main()
