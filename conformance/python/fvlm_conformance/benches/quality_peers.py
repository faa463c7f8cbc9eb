#!/usr/bin/env python3
"""What the peers compute of a script of `fvlm-conform quality`, for its --reference and --compare.

    fvlm-conform quality --model BUNDLE --precision fp32 --dump script.safetensors [--text-only]
    python -m fvlm_conformance.benches.quality_peers --model CHECKPOINT --script script.safetensors -o DIR
    fvlm-conform quality --model BUNDLE --reference DIR/transformers-fp32.safetensors \\
        --compare DIR/transformers-bf16.safetensors [--text-only]

The script gives the prompt's ids, the ids fed after it, and the pixels; a row of logits is that after a fed id. Each file
has `logits`, `token_ids`, `prompt_ids` and, where there is an image, `image_features`. onnxruntime-genai takes ids only: it
answers scripts of `--text-only`. It is fed the prompt at once and then id by id, as it generates; transformers is given
all at once. CHECKPOINT is in transformers' layout.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file


class Script:
    def __init__(self, path):
        with safe_open(path, "np") as file:
            names = set(file.keys())
            for name in ("prompt_ids", "token_ids"):
                if name not in names:
                    raise SystemExit(
                        f"error: {path} has no tensor `{name}`: expected what `quality --dump` writes"
                    )
            self.prompt_ids = file.get_tensor("prompt_ids").astype(np.int64)
            self.token_ids = file.get_tensor("token_ids").astype(np.int64)
            self.image = (file.metadata() or {}).get("image", "none")
            self.pixels = file.get_tensor("pixel_values") if "pixel_values" in names else None
        if self.image != "none" and self.pixels is None:
            raise SystemExit(f"error: {path} is of an image and has no `pixel_values`")


def of_transformers(case, script, precision, threads):
    import torch
    from transformers import DynamicCache

    from .contestants.transformers_peer import Transformers, cache_argument

    peer = Transformers(case, precision, threads)
    peer.load()
    with torch.inference_mode():
        ids = torch.tensor(np.concatenate([script.prompt_ids, script.token_ids]))
        at = ids == case.image_token_id
        embeds = peer.model.get_input_embeddings()(ids.clamp(min=0))[None]
        found = {}
        if script.pixels is not None:
            pixels = torch.tensor(script.pixels).reshape(1, *script.pixels.shape[-3:]).to(peer.dtype)
            features = peer.encode(pixels.contiguous(memory_format=torch.channels_last))
            if int(at.sum()) != len(features):
                raise SystemExit(
                    f"error: the prompt has {int(at.sum())} image positions, the image {len(features)}"
                )
            embeds[:, at] = features
            found["image_features"] = features.float().numpy()
        out = peer.model.model.language_model(
            inputs_embeds=embeds, use_cache=True, **{cache_argument(): DynamicCache()}
        )
        last = out.last_hidden_state[0, len(script.prompt_ids) :]
        found["logits"] = peer.model.lm_head(last).float().numpy()
    return found


def of_genai(case, script, _precision, threads):
    from .contestants.genai_peer import Genai

    if script.image != "none":
        return "onnxruntime-genai takes token ids only; make the script with --text-only"
    peer = Genai(case, "int4", threads)
    peer.load()
    peer.start()
    peer.feed(script.prompt_ids.astype(np.int32))
    return {"logits": np.stack([np.array(peer.step(token)) for token in script.token_ids]).astype(np.float32)}


TOOLS = {
    "transformers-fp32": (of_transformers, "fp32"),
    "transformers-bf16": (of_transformers, "bf16"),
    "genai-int4": (of_genai, "int4"),
}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="checkpoint directory")
    parser.add_argument("--script", type=Path, required=True, help="what `fvlm-conform quality --dump` wrote")
    parser.add_argument("--tools", default=",".join(TOOLS), help="comma-separated (default: all)")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--cache", type=Path, help="where converted models are kept (default: OUT/cache)")
    parser.add_argument("-o", "--output", type=Path, required=True, help="directory for NAME.safetensors")
    chosen = parser.parse_args()
    tools = [name for name in chosen.tools.split(",") if name]
    for name in tools:
        if name not in TOOLS:
            parser.error(f"--tools: found `{name}`, expected some of {', '.join(TOOLS)}")
    config = json.loads((chosen.model / "config.json").read_text(encoding="utf-8"))
    if config.get("model_type") != "fast_vlm":
        raise SystemExit(
            f"error: {chosen.model} has model_type {config.get('model_type')}, expected fast_vlm"
        )
    script = Script(chosen.script)
    cache = chosen.cache or chosen.output / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    chosen.output.mkdir(parents=True, exist_ok=True)
    case = SimpleNamespace(
        checkpoint=chosen.model,
        config=config,
        cache=cache,
        prompt_ids=script.prompt_ids.tolist(),
        image_token_id=config["image_token_index"],
    )
    for name in tools:
        compute, precision = TOOLS[name]
        found = compute(case, script, precision, chosen.threads)
        if isinstance(found, str):
            print(f"absent: {name}: {found}", file=sys.stderr)
            continue
        tensors = found | {"token_ids": script.token_ids, "prompt_ids": script.prompt_ids}
        path = chosen.output / f"{name}.safetensors"
        save_file(
            {n: np.ascontiguousarray(t) for n, t in tensors.items()},
            path,
            {"name": name, "image": script.image},
        )
        print(path)


if __name__ == "__main__":
    main()
