#!/usr/bin/env python3
"""Prints whether a checkpoint's activations are healthy: how large every stage is, how spread attention is, what it says.

python -m fvlm_conformance.reference.health DIR
python -m fvlm_conformance.reference.health DIR --neutralise      what the output would change by, were one tensor left out: least first
"""

import argparse

import numpy as np
import torch
from PIL import Image

from . import published, record, synth


def neutralise(model, text, pixels):
    """Every tensor in turn is zeroed, or its channels are moved by one where zero would say too much."""
    row = text.row("Describe the image.", [0])

    @torch.no_grad()
    def run():
        features = model.features(pixels[:1])
        embeds = record.splice(model, row["segments"], features)
        count = embeds.shape[1]
        logits, _ = model.decode(
            embeds, torch.ones(1, count, dtype=torch.int64), torch.arange(count)[None], None
        )
        return features, logits[0, -1]

    features, logits = run()
    found = []
    for name, tensor in model.model.state_dict().items():
        if not tensor.is_floating_point() or name == "lm_head.weight":
            continue
        kept = tensor.clone()
        if name.endswith((".bn.weight", "identity.weight", "norm.weight", "running_var", ".gamma")):
            tensor.copy_(kept.flatten().roll(1).reshape(kept.shape))
        else:
            tensor.zero_()
        if name.endswith("token_mixer.reparam_conv.weight"):
            tensor[:, :, 1, 1] = 1.0
        other_features, other_logits = run()
        tensor.copy_(kept)
        found.append(
            (
                float((other_logits - logits).norm() / logits.norm()),
                float((other_features - features).norm() / features.norm()),
                name,
            )
        )
    for change, of_features, name in sorted(found)[:20]:
        print(f"logits {change:8.1e}  features {of_features:8.1e}  {name}")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint")
    parser.add_argument("--neutralise", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = published.Transformers(options.checkpoint)
    text = record.Text(options.checkpoint, model)
    with np.errstate(over="ignore"):
        images = [Image.fromarray(synth.scene(320, 240, 1)), Image.fromarray(synth.scene(300, 500, 2))]
    pixels = model.preprocess(images)
    if options.neutralise:
        neutralise(model, text, pixels)
        return
    found = model.encode(pixels)
    for name, value in found.items():
        difference = published.rms(value[0] - value[1]) / published.rms(value)
        channels = value.flatten(2).std(-1).mean() if value.dim() == 4 else value.std(1).mean()
        print(
            f"{name:28} rms {published.rms(value):8.4f}  mean {float(value.mean()):8.4f}  max {float(value.abs().max()):9.3f}"
            f"  spatial std {float(channels):8.4f}  between images {difference:6.3f}"
        )
    model.language_model.config._attn_implementation = "eager"
    entropies, residuals = [], []
    for layer in model.language_model.layers:
        layer.self_attn.register_forward_hook(
            lambda _m, _i, out: (
                entropies.append(float(-(out[1][0, :, -1] * (out[1][0, :, -1] + 1e-12).log()).sum(-1).mean()))
                if out[1] is not None
                else None
            )
        )
        layer.register_forward_hook(
            lambda _m, _i, out: residuals.append(
                (
                    published.rms(out[0] if isinstance(out, tuple) else out),
                    float((out[0] if isinstance(out, tuple) else out).abs().max()),
                )
            )
        )
    row = text.row("Describe the image.", [0])
    embeds = record.splice(model, row["segments"], found["image_features"])
    print(
        f"embeddings rms {published.rms(embeds):.4f}, {embeds.shape[1]} positions, "
        f"uniform attention would have entropy {np.log(embeds.shape[1]):.2f}"
    )
    mask = torch.ones(1, embeds.shape[1], dtype=torch.int64)
    logits, _ = model.decode(embeds, mask, torch.arange(embeds.shape[1])[None], None)
    for i, (entropy, (size, top)) in enumerate(zip(entropies, residuals)):
        print(
            f"layer {i:2}  residual rms {size:8.3f}  max {top:10.2f}  attention entropy of the last position {entropy:5.2f}"
        )
    last = logits[0, -1]
    print(
        f"logits std {float(last.std()):.3f}  max {float(last.max()):.3f}  own token {float(last[row['ids'][-1]]):.3f}"
    )
    for k in (0, 1):
        embeds = record.splice(model, row["segments"], found["image_features"][k : k + 1])
        greedy, margins = record.greedy(model, embeds, 24, set())
        print(f"greedy, image {k}: {greedy}\n  margins {[round(m, 2) for m in margins]}")


if __name__ == "__main__":
    main()
