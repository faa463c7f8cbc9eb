#!/usr/bin/env python3
"""Compares a bundle with a reference on Python's onnxruntime: a second opinion on `fvlm-conform run`, independent of it.

    python -m fvlm_conformance.reference.check BUNDLE REFERENCE.json [--precision fp32]

Pixels come from Pillow, so the reference's own recipe; encoder stages are not graph outputs and are left to
`fvlm-conform`. Exit code 1 on a mismatch.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from safetensors.numpy import load_file

from ..common import relative_l2
from . import published, record


class Bundle:
    """The three graphs of one precision."""

    def __init__(self, directory, precision, threads):
        self.contract = published.read_json(directory / "bundle.json")
        variant = next(v for v in self.contract["variants"] if v["precision"] == precision)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.sessions = {
            role: onnxruntime.InferenceSession(
                str(directory / variant[role]["path"]), options, providers=["CPUExecutionProvider"]
            )
            for role in ("vision_encoder", "embed_tokens", "decoder")
        }
        self.kv = self.contract["kv"]
        self.kv_dtype = np.float16 if variant["kv_dtype"] == "float16" else np.float32

    def run(self, role, **inputs):
        session = self.sessions[role]
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, inputs)))

    def preprocess(self, images):
        image = self.contract["image"]
        processor = published.clip_processor(
            {
                "size": {"shortest_edge": image["shortest_edge"]},
                "crop_size": {"height": image["height"], "width": image["width"]},
                "image_mean": image["mean"],
                "image_std": image["std"],
                "rescale_factor": image["rescale"],
            }
        )
        return published.Preprocessing(processor, image["aspect"]["kind"] == "pad")(images).numpy()

    def embed(self, ids):
        return self.run("embed_tokens", input_ids=np.array(ids, dtype=np.int64)[None])["inputs_embeds"][0]

    def feed(self, embeds, mask, positions, past):
        """Logits [rows, vocab] and the longer cache."""
        if past is None:
            shape = (embeds.shape[0], self.kv["kv_heads"], 0, self.kv["head_dim"])
            past = {
                f"past_key_values.{i}.{part}": np.zeros(shape, self.kv_dtype)
                for i in range(self.kv["layers"])
                for part in ("key", "value")
            }
        out = self.run("decoder", inputs_embeds=embeds, attention_mask=mask, position_ids=positions, **past)
        return out.pop("logits")[:, -1], out


def values_of(bundle, case):
    """Every value of a case that the bundle's graphs give."""
    found, features = {}, None
    if case["images"]:
        found["pixel_values"] = bundle.preprocess([record.open_image(image)[0] for image in case["images"]])
        features = bundle.run("vision_encoder", pixel_values=found["pixel_values"])["image_features"]
        found["image_features"] = features
    rows = [
        np.concatenate(
            [features[s["image"]] if "image" in s else bundle.embed(s["ids"]) for s in row["segments"]]
        )
        for row in case["rows"]
    ]
    longest = max(map(len, rows))
    embeds = np.stack([np.pad(row, ((longest - len(row), 0), (0, 0))) for row in rows])
    mask = np.array([[0] * (longest - len(row)) + [1] * len(row) for row in rows], dtype=np.int64)
    positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)

    def keep(prefix, logits, cache):
        found[f"{prefix}.logits"] = logits
        found.update({f"{prefix}.{name}": value for name, value in cache.items()})

    logits, cache = bundle.feed(embeds, mask, positions, None)
    keep("prefill", logits, cache)
    for step, ids in enumerate(case["feed"]):
        mask = np.concatenate([mask, np.ones((len(rows), 1), dtype=np.int64)], axis=1)
        past = {name.replace("present", "past_key_values"): value for name, value in cache.items()}
        logits, cache = bundle.feed(
            np.stack([bundle.embed([i]) for i in ids]), mask, mask.sum(axis=1, keepdims=True) - 1, past
        )
        keep(f"steps.{step}", logits, cache)
    return found


def greedy(bundle, case, features, row):
    embeds = np.concatenate(
        [features[s["image"]] if "image" in s else bundle.embed(s["ids"]) for s in row["segments"]]
    )
    embeds, cache, ids, past = embeds[None], None, [], 0
    while len(ids) < len(row["greedy"]):
        total = past + embeds.shape[1]
        renamed = cache and {
            name.replace("present", "past_key_values"): value for name, value in cache.items()
        }
        logits, cache = bundle.feed(
            embeds, np.ones((1, total), np.int64), np.arange(past, total)[None], renamed
        )
        ids.append(int(logits[0].argmax()))
        embeds, past = bundle.embed(ids[-1:])[None], total
    return ids


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("reference", type=Path)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    reference = published.read_json(options.reference)
    tensors = load_file(options.reference.parent / reference["tensors"])
    bundle = Bundle(options.bundle, options.precision, options.threads)
    passed = failed = 0
    for case in reference["cases"]:
        found = values_of(bundle, case)
        for check in case["checks"]:
            if check["value"] not in found:
                continue
            flat = found[check["value"]].astype(np.float32).reshape(-1)
            expected = tensors[check["tensor"]].reshape(-1)
            actual = flat[tensors[check["indices"]]] if check["indices"] else flat
            limit = reference["tolerances"][check["tolerance"]][options.precision]
            if "max_abs" in limit:
                error, bound = np.abs(actual.astype(np.float64) - expected).max(), limit["max_abs"]
            else:
                error, bound = relative_l2(actual, expected), limit["relative_l2"]
            good = list(found[check["value"]].shape) == check["shape"] and error <= bound
            passed, failed = passed + good, failed + (not good)
            print(
                f"{'ok  ' if good else 'FAIL'} {case['name']:12} {check['value']:28} {error:9.2e} of {bound:9.2e}"
            )
        if options.precision == "fp32":
            for k, row in enumerate(case["rows"]):
                ids = greedy(bundle, case, found.get("image_features"), row)
                good = ids == row["greedy"]
                passed, failed = passed + good, failed + (not good)
                print(
                    f"{'ok  ' if good else 'FAIL'} {case['name']:12} greedy ids of row {k}"
                    + ("" if good else f": {ids}, expected {row['greedy']}")
                )
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
