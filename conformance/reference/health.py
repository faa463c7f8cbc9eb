#!/usr/bin/env python3
"""Prints whether a checkpoint's activations are healthy: how large every stage is, how spread attention is, what it says.

    python health.py DIR [--threads 2]
"""

import argparse

import numpy as np
import torch
from PIL import Image

import published
import record
import synth


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = published.Transformers(options.checkpoint)
    text = record.Text(options.checkpoint, model)
    with np.errstate(over="ignore"):
        images = [Image.fromarray(synth.scene(320, 240, 1)), Image.fromarray(synth.scene(300, 500, 2))]
    pixels = model.preprocess(images)
    found = model.encode(pixels)
    for name, value in found.items():
        difference = published.rms(value[0] - value[1]) / published.rms(value)
        channels = value.flatten(2).std(-1).mean() if value.dim() == 4 else value.std(1).mean()
        print(f"{name:28} rms {published.rms(value):8.4f}  mean {float(value.mean()):8.4f}  max {float(value.abs().max()):9.3f}"
              f"  spatial std {float(channels):8.4f}  between images {difference:6.3f}")
    model.language_model.config._attn_implementation = "eager"
    entropies, residuals = [], []
    for layer in model.language_model.layers:
        layer.self_attn.register_forward_hook(lambda _m, _i, out: entropies.append(
            float(-(out[1][0, :, -1] * (out[1][0, :, -1] + 1e-12).log()).sum(-1).mean())) if out[1] is not None else None)
        layer.register_forward_hook(lambda _m, _i, out: residuals.append(
            (published.rms(out[0] if isinstance(out, tuple) else out), float((out[0] if isinstance(out, tuple) else out).abs().max()))))
    row = text.row("Describe the image.", [0])
    embeds = record.splice(model, row["segments"], found["image_features"])
    print(f"embeddings rms {published.rms(embeds):.4f}, {embeds.shape[1]} positions, "
          f"uniform attention would have entropy {np.log(embeds.shape[1]):.2f}")
    mask = torch.ones(1, embeds.shape[1], dtype=torch.int64)
    logits, _ = model.decode(embeds, mask, torch.arange(embeds.shape[1])[None], None)
    for i, (entropy, (size, top)) in enumerate(zip(entropies, residuals)):
        print(f"layer {i:2}  residual rms {size:8.3f}  max {top:10.2f}  attention entropy of the last position {entropy:5.2f}")
    last = logits[0, -1]
    print(f"logits std {float(last.std()):.3f}  max {float(last.max()):.3f}  own token {float(last[row['ids'][-1]]):.3f}")
    for k in (0, 1):
        embeds = record.splice(model, row["segments"], found["image_features"][k: k + 1])
        greedy, margins = record.greedy(model, embeds, 24, set())
        print(f"greedy, image {k}: {greedy}\n  margins {[round(m, 2) for m in margins]}")


if __name__ == "__main__":
    main()
