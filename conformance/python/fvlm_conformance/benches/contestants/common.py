"""What every contestant shares: the case, the stop-watch, and the line that it prints.

A contestant is a class with some of these methods; a phase that it does not have is null in its line.

    load()              everything that a process does once
    preprocess(image)   PIL image in memory -> the encoder's input
    encode(pixels)      -> projected features of the image, [tokens, hidden]
    prefill(features)   whole prompt -> logits of the last position, [vocab]; forgets what was there before
    step(token)         one token more -> logits, [vocab]
"""

import argparse
import json
import os
import statistics
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np

from ... import common


class Case:
    """The files of a work directory that every contestant reads, written by `peers.py`."""

    def __init__(self, work):
        self.work = Path(work)
        facts = json.loads((self.work / "case.json").read_text(encoding="utf-8"))
        self.checkpoint = self.work / "checkpoint"
        self.bundle = self.work / "bundles" / "portable-fp32"
        self.cache = self.work / "cache"
        self.cache.mkdir(exist_ok=True)
        self.image = self.work / facts["image"]
        self.prompt = facts["prompt"]
        self.prompt_ids = facts["prompt_ids"]
        self.image_token_id = facts["image_token_id"]
        self.config = json.loads((self.checkpoint / "config.json").read_text(encoding="utf-8"))
        self.edge = json.loads((self.checkpoint / "preprocessor_config.json").read_text(encoding="utf-8"))[
            "crop_size"
        ]["height"]

    @property
    def image_tokens(self):
        return self.prompt_ids.count(self.image_token_id)

    def text_ids(self):
        """As many ids as the prompt has positions, all of them text: for decoders that take ids only."""
        return [37 * i % 200 if t == self.image_token_id else t for i, t in enumerate(self.prompt_ids)]


def options(description, precisions):
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--work", required=True, help="directory with case.json, checkpoint/ and bundles/")
    parser.add_argument("--precision", choices=precisions, default=precisions[0])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--warm-up", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--decode-tokens", type=int, default=32)
    parser.add_argument(
        "--prepare", action="store_true", help="convert and cache what the engine reads, time nothing"
    )
    return parser.parse_args()


def pixels(image, edge):
    """What CLIP's processor does here: shortest edge by Pillow's bicubic, centre crop, 0 to 1; [1, 3, edge, edge]."""
    from PIL import Image

    scale = edge / min(image.size)
    width, height = (max(edge, int(side * scale)) for side in image.size)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - edge) // 2, (height - edge) // 2
    found = np.asarray(image.crop((left, top, left + edge, top + edge)), np.float32).transpose(2, 0, 1)[None]
    return np.ascontiguousarray(found) / np.float32(255)


def peak_rss_bytes():
    """The greatest resident size that this process had."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None


def spread(seconds):
    if not seconds:
        return None
    return {"median": statistics.median(seconds), "min": min(seconds), "max": max(seconds)}


def relative_l2(found, expected):
    """Distance from transformers in fp32 on the same input, so that nobody wins by computing something else."""
    return common.relative_l2(found.float() if hasattr(found, "float") else found, expected)


def timed(function, *arguments):
    start = time.perf_counter()
    result = function(*arguments)
    return time.perf_counter() - start, result


def measure(contestant, case, options):
    """Seconds of each phase. The phases of one repeat follow each other as they do for a user."""
    from PIL import Image

    image = Image.open(case.image).convert("RGB")
    image.load()
    has = {phase: hasattr(contestant, phase) for phase in ("preprocess", "encode", "prefill", "step")}
    whole = has["preprocess"] and has["encode"] and has["prefill"]
    load, _ = timed(contestant.load)
    features, errors = None, {}
    seconds = {phase: [] for phase in ("preprocess", "encode", "prefill", "ttft", "decode")}
    for k in range(options.warm_up + options.repeat):
        spent, token = {}, None
        start = time.perf_counter()
        if has["preprocess"]:
            spent["preprocess"], pixels = timed(contestant.preprocess, image)
        if has["encode"]:
            spent["encode"], features = timed(contestant.encode, pixels)
        if has["prefill"]:
            spent["prefill"], logits = timed(contestant.prefill, features)
            token = int(np.argmax(logits))
        if whole:
            spent["ttft"] = time.perf_counter() - start
        if k >= options.warm_up:
            for phase, value in spent.items():
                seconds[phase].append(value)
    reference = case.cache / "reference.npz"
    if reference.exists():
        expected = np.load(reference)
        if has["encode"]:
            errors["features"] = relative_l2(features, expected["features"])
        if has["prefill"]:
            errors["logits"] = relative_l2(logits, expected["logits" if has["encode"] else "text_logits"])
    if has["step"]:
        for _ in range(options.decode_tokens + 4):
            spent, logits = timed(contestant.step, token)
            token = int(np.argmax(logits))
            seconds["decode"].append(spent)
        seconds["decode"] = seconds["decode"][4:]
    return {f"{phase}_s": spread(values) for phase, values in ({"load": [load]} | seconds).items()} | {
        "relative_l2": errors
    }


def run(kind, description, precisions, packages):
    """The main function of a contestant's program. `kind(case, precision, threads)` makes the contestant."""
    chosen = options(description, precisions)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(chosen.threads)
    case = Case(chosen.work)
    contestant = kind(case, chosen.precision, chosen.threads)
    if hasattr(contestant, "prepare"):
        contestant.prepare()
    if chosen.prepare:
        return
    line = (
        {
            "version": ", ".join(f"{name} {version(name)}" for name in packages),
            "precision": chosen.precision,
            "threads": chosen.threads,
            "prompt_tokens": len(case.prompt_ids),
        }
        | measure(contestant, case, chosen)
        | {"peak_rss_bytes": peak_rss_bytes()}
    )
    print(json.dumps(line))
    sys.stdout.flush()
