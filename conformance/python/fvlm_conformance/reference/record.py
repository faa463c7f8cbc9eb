#!/usr/bin/env python3
"""Records what the published implementation computes: the files of conformance/golden (schema in its README.md).

python conformance/reference/record.py --recipe NAME         one of recipes.json, into conformance/golden
python conformance/reference/record.py --recipe all
python conformance/reference/record.py --model DIR|ORG/NAME --image FILE [--question TEXT] [--image-size N] -o OUT      for weights of your own
"""

import argparse
import copy
import hashlib
import json
import os
import shlex
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors.numpy import save_file
from transformers import DynamicCache

from ..common import ROOT
from . import published, synth

HERE = Path(__file__).resolve().parent
GOLDEN = ROOT / "conformance" / "golden"
IMAGE = "<image>"
TOP = 10
# A choice closer than this is a coin toss between correct implementations: the greedy ids end before it.
CLOSE_CALL = 0.01
TOLERANCES = {
    # One step of a byte: Pillow's rounding is the reference, another resampler may fall on its other side.
    "pixels": {"fp32": {"max_abs": 1.001 / 255}, "fp16": {"max_abs": 1.001 / 255}},
    # Decoders of JPEG round differently, by four levels at most.
    "jpeg_pixels": {"fp32": {"max_abs": 1.001 / 255}, "fp16": {"max_abs": 1.001 / 255}},
    "stage": {"fp32": {"relative_l2": 1e-4}, "fp16": {"relative_l2": 5e-3}},
    "features": {"fp32": {"relative_l2": 1e-4}, "fp16": {"relative_l2": 5e-3}},
    "kv": {"fp32": {"relative_l2": 5e-4}, "fp16": {"relative_l2": 5e-3}},
    "logits": {"fp32": {"relative_l2": 5e-4}, "fp16": {"relative_l2": 5e-3}},
}


# How many times the error that noise of fp16's step in the parameters makes is granted to fp16, where that is more than
# the named tolerance: engines may keep sums in half precision, as tract does.
NOISE_FACTOR = 5.0


# --- prompts ------------------------------------------------------------------------------------------------------


class Text:
    """Tokenizer, chat template and stop ids of a checkpoint."""

    def __init__(self, source, model):
        from transformers import AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(source)
        self.llava = model.llava
        self.image_id = None if model.llava else model.model.config.image_token_index
        if self.tokenizer.chat_template is None:
            self.tokenizer.chat_template = synth.TABLE["templates"][
                "llava" if model.llava else "transformers"
            ]
        found = published.find_file(source, "generation_config.json")
        stop = published.read_json(found).get("eos_token_id") if found else None
        stop = self.tokenizer.eos_token_id if stop is None else stop
        self.stop_ids = set(stop if isinstance(stop, list) else [stop])

    def render(self, question, images):
        if self.llava:
            content = f"{IMAGE}\n" * len(images) + question
        else:
            content = [{"type": "image"}] * len(images) + [{"type": "text", "text": question}]
        return self.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )

    def row(self, question, images):
        """The prompt of one turn: text, segments and ids (the image's id, or -200 as Apple's code has it)."""
        text = self.render(question, images)
        segments, ids = [], []
        pieces = text.split(IMAGE)
        for k, piece in enumerate(pieces):
            if k > 0:
                segments.append({"image": images[k - 1]})
                ids.append(-200 if self.image_id is None else self.image_id)
            piece_ids = self.tokenizer(piece, add_special_tokens=False)["input_ids"]
            if piece_ids:
                segments.append({"ids": piece_ids})
            ids += piece_ids
        if self.image_id is not None and ids != self.tokenizer(text, add_special_tokens=False)["input_ids"]:
            raise SystemExit("error: the prompt tokenises differently in pieces and as a whole")
        return {"text": text, "question": question, "segments": segments, "ids": ids}


def splice(model, segments, features):
    """Embeddings of one row, [1, positions, hidden]."""
    parts = [features[s["image"]] if "image" in s else model.embed(s["ids"]) for s in segments]
    return torch.cat(parts)[None]


# --- generation ---------------------------------------------------------------------------------------------------


@torch.no_grad()
def greedy(model, embeds, count, stop_ids):
    ids, margins, cache, past = [], [], None, 0
    while len(ids) < count:
        new = embeds.shape[1]
        logits, cache = model.decode(
            embeds, torch.ones(1, past + new, dtype=torch.int64), torch.arange(past, past + new)[None], cache
        )
        past += new
        best = logits[0, -1].topk(2)
        margin = float(best.values[0] - best.values[1])
        if margin < CLOSE_CALL:
            break
        ids.append(int(best.indices[0]))
        margins.append(margin)
        if ids[-1] in stop_ids:
            break
        embeds = model.embed([ids[-1]])[None]
    return ids, margins


# --- recorded tensors ---------------------------------------------------------------------------------------------


class Recording:
    """Collects the checks of a reference and the tensors that they name."""

    def __init__(self, full_limit, samples):
        self.full_limit = full_limit
        self.samples = samples
        self.tensors = {}

    def check(self, case, value, tensor, tolerance, top=False, padding=None):
        array = np.ascontiguousarray(tensor.detach().float().numpy())
        flat = array.reshape(-1)
        live = np.ones(array.shape, dtype=bool)
        if padding is not None and any(padding):
            for row, count in enumerate(padding):
                live[row, :, :count] = False
        else:
            padding = None
        live = live.reshape(-1)
        name = f"{case}.{value}"
        check = {
            "value": value,
            "shape": list(array.shape),
            "tolerance": tolerance,
            "tensor": name,
            "indices": None,
            "norm": float(np.sqrt(np.sum(flat[live].astype(np.float64) ** 2))),
            "abs_max": float(np.abs(flat[live]).max()),
            "top": None,
            "padding": padding,
        }
        if padding is None and flat.size <= self.full_limit:
            self.tensors[name] = array
        else:
            indices = sample(name, np.flatnonzero(live), self.samples)
            check["indices"] = f"{name}.indices"
            self.tensors[check["indices"]] = indices.astype(np.int32)
            self.tensors[name] = flat[indices]
        if top:
            best = tensor.float().topk(TOP)
            check["top"] = {"ids": best.indices.tolist(), "logits": best.values.tolist()}
        return check


def sample(name, candidates, count):
    """Ascending positions, the same for the same name on any machine."""
    if len(candidates) <= count:
        return candidates.astype(np.int64)
    with np.errstate(over="ignore"):
        noise = synth.splitmix64(
            candidates.astype(np.uint64)
            + np.uint64(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little"))
        )
    return np.sort(candidates[np.argpartition(noise, count)[:count]]).astype(np.int64)


# --- cases --------------------------------------------------------------------------------------------------------


def is_jpeg(path):
    return Path(path).suffix.lower() in (".jpg", ".jpeg")


def open_image(source):
    """The picture and its entry in the reference."""
    if source["kind"] == "scene":
        with np.errstate(over="ignore"):
            pixels = synth.scene(source["width"], source["height"], source["seed"])
        return Image.fromarray(pixels), source | {"sha256": hashlib.sha256(pixels.tobytes()).hexdigest()}
    path = Path(source["path"])
    found = path if path.exists() else ROOT / path
    picture = ImageOps.exif_transpose(Image.open(found))
    return picture, source | {"sha256": hashlib.sha256(found.read_bytes()).hexdigest()}


def record_case(model, text, recipe, recording, detail):
    """One case of the recipe: its entry of NAME.json."""
    name, brief = recipe["name"], recipe.get("brief", False)
    opened = [open_image(image) for image in recipe.get("images", [])]
    # What follows from pixels that no two decoders agree about is no reference: of it, only what is said counts.
    vague = any(is_jpeg(image.get("path", "")) for _, image in opened)
    rows = [text.row(row["question"], row.get("images", [])) for row in recipe["rows"]]
    checks, features = [], None
    if opened:
        pixels = model.preprocess([picture for picture, _ in opened])
        found = model.encode(pixels)
        features = found.pop("image_features")
        checks.append(recording.check(name, "pixel_values", pixels, "jpeg_pixels" if vague else "pixels"))
        if recipe.get("stages", not brief) and not vague:
            order = ["stem", *(f"stages.{s}" for s in range(published.STAGES)), "final_conv"]
            checks += [
                recording.check(name, f"vision_tower.{v}", found[f"vision_tower.{v}"], "stage") for v in order
            ]
        if not vague:
            checks.append(recording.check(name, "image_features", features, "features"))
    embeds = [splice(model, row["segments"], features) for row in rows]
    for row, embed in zip(rows, embeds):
        row["greedy"], row["margins"] = greedy(model, embed, recipe["greedy"], text.stop_ids)
        row["answer"] = text.tokenizer.decode(row["greedy"], skip_special_tokens=True)
    if model.whole and len(rows) == 1:
        compare_with_whole(
            model, text, rows[0], embeds[0], pixels if opened else None, features.shape[1] if opened else 0
        )
    images = [image for _, image in opened]
    if vague:
        return entry_of(name, images, rows, [], checks), features.shape[1]

    # The batch, left padded.
    longest = max(embed.shape[1] for embed in embeds)
    padding = [longest - embed.shape[1] for embed in embeds]
    batch = torch.cat([torch.nn.functional.pad(e, (0, 0, p, 0)) for e, p in zip(embeds, padding)])
    mask = torch.tensor([[0] * p + [1] * (longest - p) for p in padding])
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    logits, cache = model.decode(batch, mask, positions, None)
    layers = len(model.language_model.layers)
    chosen = sorted({0, layers // 2, layers - 1})
    checks.append(recording.check(name, "prefill.logits", logits[:, -1], "logits", top=True))
    if detail:
        if len(rows) == 1:
            checks.append(recording.check(name, "prefill.logits.all", logits, "logits"))
    for layer in [] if brief else chosen:
        for part, tensor in zip(("key", "value"), model.keys_and_values(cache, layer)):
            checks.append(
                recording.check(name, f"prefill.present.{layer}.{part}", tensor, "kv", padding=padding)
            )
    feed, last = [], logits[:, -1].argmax(-1)
    for step in range(recipe["steps"]):
        feed.append(last.tolist())
        mask = torch.cat([mask, torch.ones(len(rows), 1, dtype=torch.int64)], dim=1)
        logits, cache = model.decode(
            torch.stack([model.embed([i]) for i in feed[-1]]), mask, (mask.sum(-1, keepdim=True) - 1), cache
        )
        last = logits[:, -1].argmax(-1)
        checks.append(recording.check(name, f"steps.{step}.logits", logits[:, -1], "logits", top=True))
    for part, tensor in zip(("key", "value"), model.keys_and_values(cache, layers - 1)):
        if recipe["steps"]:
            checks.append(
                recording.check(
                    name,
                    f"steps.{recipe['steps'] - 1}.present.{layers - 1}.{part}",
                    tensor,
                    "kv",
                    padding=padding,
                )
            )
    return entry_of(name, images, rows, feed, checks), (features.shape[1] if opened else None)


def entry_of(name, images, rows, feed, checks):
    return {
        "name": name,
        "images": images,
        "rows": [
            {k: row[k] for k in ("segments", "text", "question", "greedy", "margins", "answer")}
            for row in rows
        ],
        "feed": feed,
        "checks": checks,
    }


class HalfCache(DynamicCache):
    """A KV cache in float16, as half-precision exports have it."""

    def update(self, key_states, value_states, *arguments, **named):
        return super().update(key_states.half().float(), value_states.half().float(), *arguments, **named)


@torch.no_grad()
def noise_errors(model, text, case):
    """Relative L2 by tolerance name of the same network with a float16 cache and parameters that are off by up to half of
    float16's step, on a case's first row. (Rounding the parameters would say nothing about weights stored in bfloat16,
    which float16 holds exactly.)"""
    images = [open_image(image)[0] for image in case.get("images", [])]
    row = text.row(case["rows"][0]["question"], case["rows"][0].get("images", []))

    def run(cache):
        found = {}
        if images:
            stages = model.encode(model.preprocess(images))
            features = stages.pop("image_features")
            found = {"stage": list(stages.values()), "features": [features]}
        embeds = splice(model, row["segments"], features if images else None)
        count = embeds.shape[1]
        logits, cache = model.decode(
            embeds, torch.ones(1, count, dtype=torch.int64), torch.arange(count)[None], cache
        )
        layers = len(model.language_model.layers)
        kv = [t for i in sorted({0, layers // 2, layers - 1}) for t in model.keys_and_values(cache, i)]
        return found | {"kv": kv, "logits": [logits[:, -1]]}

    exact = run(None)
    source = torch.Generator().manual_seed(1)
    for module in model.modules():
        for parameter in module.parameters():
            noise = torch.rand(parameter.shape, generator=source) * 2 - 1
            parameter.data = parameter.data * (1 + noise * 2.0**-11)
    noisy = run(HalfCache())
    return {
        name: max(float((a - b).norm() / a.norm()) for a, b in zip(exact[name], noisy[name]))
        for name in exact
    }


def compare_with_whole(model, text, row, embeds, pixels, tokens):
    """The parts called one by one must be what the model's own forward does."""
    ids = [i for k in row["ids"] for i in ([k] * tokens if k == text.image_id else [k])]
    if text.image_id is None:
        return
    mask = torch.ones(1, embeds.shape[1], dtype=torch.int64)
    parts, _ = model.decode(embeds, mask, torch.arange(embeds.shape[1])[None], None)
    whole = model.whole(ids, pixels)
    error = float((parts[:, -1] - whole).norm() / whole.norm())
    if error > 1e-5:
        raise SystemExit(f"error: the model's own forward differs from its parts by {error:.2e}")


def record(checkpoint, source, cases, name, output, options, note):
    model = (
        published.Apple(source, options.apple_repo)
        if use_apple(source, options)
        else (published.Transformers(source))
    )
    if options.image_size:
        # The tower is convolutional: it takes what the processor gives.
        model.preprocess = model.preprocess.at_size(options.image_size)
    text = Text(source, model)
    recording = Recording(options.full_limit, options.samples)
    entries, tokens = [], None
    for case in cases:
        detailed = case.pop("detail", False)
        recording.full_limit = options.full_limit if detailed else options.small_limit
        entry, seen = record_case(model, text, case, recording, detailed)
        entries.append(entry)
        tokens = tokens or seen
        for row in entry["rows"]:
            print(
                f"{name} {entry['name']}: {row['question']!r} -> {row['answer']!r} {row['greedy']}",
                file=sys.stderr,
            )
    errors = noise_errors(model, text, next((c for c in cases if c.get("images")), cases[0]))
    tolerances = copy.deepcopy(TOLERANCES)
    for kind, error in errors.items():
        limit = tolerances[kind]["fp16"]
        limit["relative_l2"] = max(limit["relative_l2"], float(f"{NOISE_FACTOR * error:.1e}"))
    reference = {
        "schema": 1,
        "name": name,
        "checkpoint": checkpoint,
        "recorder": {
            "command": note,
            "versions": published.versions(),
            "architecture": model.architecture,
            "dtype": "float32",
            "fp16_noise_error": errors,
        },
        "tolerances": tolerances,
        "tensors": f"{name}.safetensors",
        "image_size": options.image_size,
        "image_tokens": tokens,
        "cases": entries,
    }
    if options.image_size is None:
        del reference["image_size"]
    output.mkdir(parents=True, exist_ok=True)
    save_file(recording.tensors, output / f"{name}.safetensors")
    (output / f"{name}.json").write_text(dumps(reference), encoding="utf-8")
    return output / f"{name}.json"


def use_apple(source, options):
    if not options.apple_repo or not Path(source).is_dir():
        return False
    return published.read_json(Path(source) / "config.json").get("model_type") == "llava_qwen2"


def dumps(value, indent=0):
    """JSON with one line for everything that fits into 120 columns."""
    line = json.dumps(value, ensure_ascii=False)
    if (
        not isinstance(value, (dict, list))
        or len(line) + indent <= 118
        or all(isinstance(v, (int, float)) for v in (value if isinstance(value, list) else [None]))
    ):
        return line
    pad = " " * (indent + 1)
    if isinstance(value, dict):
        body = [f"{pad}{json.dumps(k)}: {dumps(v, indent + 1)}" for k, v in value.items()]
        return "{\n" + ",\n".join(body) + "\n" + " " * indent + "}"
    return "[\n" + ",\n".join(pad + dumps(v, indent + 1) for v in value) + "\n" + " " * indent + "]"


# --- commands -----------------------------------------------------------------------------------------------------


def run_recipe(name, options):
    recipe = published.read_json(HERE / "recipes.json")[name]
    checkpoint = recipe["checkpoint"]
    cases = copy.deepcopy(recipe["cases"])
    options = copy.copy(options)
    for key in ("full_limit", "small_limit", "samples", "image_size"):
        setattr(options, key, recipe.get(key, getattr(options, key)))
    note = f"python conformance/reference/record.py --recipe {name}"
    if options.apple_repo:
        note += " --apple-repo ml-fastvlm"
    if "scenes" in recipe:
        cases += scene_cases(recipe["scenes"])
    if checkpoint["kind"] == "directory":
        # The weights may change after the recording: a reference says which ones it is about.
        weights = (ROOT / checkpoint["path"] / "model.safetensors").read_bytes()
        checkpoint = checkpoint | {"sha256": hashlib.sha256(weights).hexdigest()}
        return record(
            checkpoint, str(ROOT / checkpoint["path"]), cases, name, options.output or GOLDEN, options, note
        )
    with tempfile.TemporaryDirectory(dir=options.scratch) as directory:
        arguments = [
            "--size",
            checkpoint["size"],
            "--layout",
            checkpoint["layout"],
            "--dtype",
            checkpoint["dtype"],
            "--seed",
            str(checkpoint["seed"]),
            "-o",
            directory,
        ]
        if checkpoint["outliers"]:
            arguments.append("--outliers")
        with np.errstate(over="ignore"):
            synth.write(synth.options_of(arguments))
        return record(checkpoint, directory, cases, name, options.output or GOLDEN, options, note)


def scene_cases(scenes):
    """One case for every picture and question of `scenes.json`; the first pictures in detail, the others briefly."""
    directory = ROOT / scenes["directory"]
    asked = {
        scene["image"]: [q["question"] for q in scene["questions"]]
        for scene in published.read_json(directory / "scenes.json")
    }
    pictures = [path.name for path in directory.iterdir() if path.suffix.lower() == ".png" or is_jpeg(path)]
    # Photographs come last: nothing is recorded of them in detail.
    pictures.sort(key=lambda name: (is_jpeg(name), name))
    cases = []
    for k, name in enumerate(pictures):
        for q, question in enumerate(asked.get(name, ["Describe the image."])):
            detail = q == 0 and k < scenes["detailed"]
            cases.append(
                {
                    "name": Path(name).stem if q == 0 else f"{Path(name).stem}_question_{q}",
                    "detail": detail,
                    "brief": not detail,
                    "greedy": scenes["greedy"],
                    "steps": scenes["steps"] if detail else 0,
                    "images": [{"kind": "file", "path": f"{scenes['directory']}/{name}"}],
                    "rows": [{"question": question, "images": [0]}],
                }
            )
    return cases


def lossless(path, beside):
    """An image that all decoders agree about: the file itself, or a PNG copy that lies beside the reference."""
    if not is_jpeg(path):
        return {"kind": "file", "path": os.path.relpath(path)}
    beside.parent.mkdir(parents=True, exist_ok=True)
    ImageOps.exif_transpose(Image.open(path)).convert("RGB").save(beside)
    return {"kind": "file", "path": os.path.relpath(beside)}


def run_model(options):
    name = options.name or Path(options.model).name
    output = options.output or Path(".")
    images = [lossless(path, output / f"{name}-image_{k}.png") for k, path in enumerate(options.image)]
    questions = options.question or ["Describe the image."]
    cases = [
        {
            "name": f"image_{k}_question_{q}",
            "images": [image],
            "greedy": options.tokens,
            "steps": 4,
            "stages": q == 0,
            "rows": [{"question": question, "images": [0]}],
        }
        for k, image in enumerate(images)
        for q, question in enumerate(questions)
    ]
    cases.append(
        {
            "name": "text_only",
            "images": [],
            "greedy": options.tokens,
            "steps": 4,
            "rows": [{"question": "What is the capital of France?"}],
        }
    )
    cases.append(
        {
            "name": "batch",
            "images": images[:1],
            "greedy": options.tokens,
            "steps": 4,
            "stages": False,
            "rows": [{"question": questions[0], "images": [0]}, {"question": "Count to five."}],
        }
    )
    command = shlex.join(["python", "conformance/reference/record.py", *sys.argv[1:]])
    return record(
        {"kind": "external", "id": options.model}, options.model, cases, name, output, options, command
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--recipe", help="a name of recipes.json, or all")
    what.add_argument("--model", help="directory or hub id of a checkpoint")
    parser.add_argument(
        "--image", action="append", default=[], help="image file; may be given more than once"
    )
    parser.add_argument(
        "--question", action="append", help="asked about every image; may be given more than once"
    )
    parser.add_argument(
        "--image-size",
        type=int,
        metavar="N",
        help="side of the square that images become, by default the checkpoint's own",
    )
    parser.add_argument("--tokens", type=int, default=32, help="greedy tokens to record")
    parser.add_argument("--name", help="stem of the files that are written")
    parser.add_argument("-o", "--output", type=Path, help="directory to write to")
    parser.add_argument(
        "--apple-repo", help="clone of apple/ml-fastvlm: record Apple's layout with Apple's own tower"
    )
    parser.add_argument(
        "--full-limit",
        type=int,
        default=70_000,
        help="elements up to which detailed cases record a tensor whole",
    )
    parser.add_argument("--small-limit", type=int, default=1024, help="the same for the other cases")
    parser.add_argument("--samples", type=int, default=1024, help="elements recorded of larger tensors")
    parser.add_argument("--threads", type=int, help="threads of torch, by default its own choice")
    parser.add_argument("--scratch", help="where to put synthetic checkpoints while recording")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.model:
        if not options.image:
            parser.error("--model needs at least one --image")
        print(run_model(options))
        return
    names = published.read_json(HERE / "recipes.json") if options.recipe == "all" else [options.recipe]
    for name in names:
        print(run_recipe(name, options))


if __name__ == "__main__":
    main()
