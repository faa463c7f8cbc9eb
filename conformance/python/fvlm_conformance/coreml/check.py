#!/usr/bin/env python3
"""Reads the Core ML packages of a bundle as coremltools does, and evaluates their programs against recorded references.

    python -m fvlm_conformance.coreml.check BUNDLE REFERENCE.json [--weights BUNDLE] [--cases N] [--neural-engine] [--no-pieces]

Checked are, for every precision in the bundle: that the packages are accepted and parse to typed operations; that functions,
inputs, outputs and states are those of the contract; that weights read back are, bit for bit, those of the ONNX graphs of target
coreml in the bundle given with --weights, and compressed ones what our own reading of the records gives; and what the programs
compute, by the interpreter in evaluate.py. Pixels come from Pillow. Exit code 1 on a mismatch.
"""

import argparse
import hashlib
import json
import struct
import sys
from pathlib import Path

import coremltools
import numpy as np
from coremltools.converters.mil.frontend.milproto.load import load as load_program
from coremltools.libmodelpackage import ModelPackage
from PIL import Image
from safetensors.numpy import load_file

from ..common import ROOT, relative_l2
from ..reference import synth
from . import evaluate

# Of compressed weights, relative L2: eight bits with a scale for each output, four with one for each 32 inputs.
COMPRESSED = {"int8": 0.05, "int4": 0.12}
# Of what compressed packages compute on trained weights, relative L2. The answers are compared word for word.
LOSSY = {"int8": 0.05, "q4": 0.25}
SYSTEMS = {7: "CoreML6", 9: "CoreML8"}


class Tally:
    def __init__(self):
        self.passed = self.failed = 0

    def check(self, good, what):
        self.passed, self.failed = self.passed + bool(good), self.failed + (not good)
        if not good:
            print(f"FAIL {what}", flush=True)

    def near(self, found, expected, limit, what):
        if np.size(found) != np.size(expected):
            self.check(False, f"{what}: {np.size(found)} values, expected {np.size(expected)}")
            return np.inf
        error = relative_l2(found, expected)
        self.check(error <= limit, f"{what}: relative L2 {error:.2e}, allowed {limit:.2e}")
        return error


class Package:
    """A package as coremltools reads it."""

    def __init__(self, path, tally):
        self.path = path
        tally.check(ModelPackage.isValid(str(path)), f"{path.name} is not a valid package")
        self.spec = coremltools.models.MLModel(str(path), skip_model_load=True).get_spec()
        self.weights = path / "Data" / "com.apple.CoreML" / "weights"
        self.program = load_program(self.spec, self.spec.specificationVersion, str(self.weights))
        opsets = {function.opset for function in self.spec.mlProgram.functions.values()}
        tally.check(
            opsets == {SYSTEMS.get(self.spec.specificationVersion)}, f"{path.name} has operator sets {opsets}"
        )
        metadata = self.spec.description.metadata
        for field in ("shortDescription", "author", "license", "versionString"):
            tally.check(getattr(metadata, field), f"{path.name} has no {field}")

    def features(self, function):
        """Inputs, outputs and states of a function, name to (type, shape), as Xcode shows them."""
        description = self.spec.description
        if description.functions:
            description = next(f for f in description.functions if f.name == function)

        def seen(features):
            found = {}
            for feature in features:
                array = feature.type.multiArrayType
                if feature.type.WhichOneof("Type") == "stateType":
                    array = feature.type.stateType.arrayType
                kind = array.ArrayDataType.Name(array.dataType)
                found[feature.name] = (kind, tuple(array.shape))
                if not feature.shortDescription:
                    raise ValueError(f"`{feature.name}` is not described")
            return found

        return seen(description.input), seen(description.output), seen(description.state)


def check_contract(contract, packages, encoder, decoder, tally):
    image, prompt, kv = contract["image"], contract["prompt"], contract["kv"]
    pixels = {"pixel_values": ("FLOAT32", (1, 3, image["height"], image["width"]))}
    features = {"image_features": ("FLOAT32", (1, image["tokens"], prompt["hidden_size"]))}
    for package in encoder:
        tally.check(
            list(package.program.functions) == ["main"],
            f"{package.path.name} has functions {list(package.program.functions)}",
        )
        tally.check(
            package.features("main") == (pixels, features, {}),
            f"{package.path.name} takes {package.features('main')}",
        )
    lengths = {"step": 1} | {f"prefill_{n}": n for n in packages["prefill"]}
    tally.check(
        set(decoder.program.functions) == set(lengths),
        f"decoder has functions {sorted(decoder.program.functions)}",
    )
    tally.check(
        decoder.spec.description.defaultFunctionName == "step", "the decoder's default function is not `step`"
    )
    cache = ("FLOAT16", (kv["layers"], kv["kv_heads"], packages["context"], kv["head_dim"]))
    for name, new in lengths.items():
        inputs = {"inputs_embeds": ("FLOAT32", (1, new, prompt["hidden_size"])), "position": ("INT32", (1,))}
        if new > 1:
            inputs["last"] = ("INT32", (1,))
        outputs = {"logits": ("FLOAT32", (1, 1, prompt["vocab_size"]))}
        expected = (inputs, outputs, {"key_cache": cache, "value_cache": cache})
        tally.check(decoder.features(name) == expected, f"decoder, {name} takes {decoder.features(name)}")
    kinds = {op.op_type for function in decoder.program.functions.values() for op in function.operations}
    kinds |= {op.op_type for op in encoder[0].program.functions["main"].operations}
    for kind in ("scaled_dot_product_attention", "slice_update", "coreml_update_state", "read_state"):
        tally.check(kind in kinds, f"no function has a {kind}")


def check_neural_engine(package, tally):
    """Linear layers are convolutions, and nothing is in float32 but what comes in and goes out."""
    for name, function in package.program.functions.items():
        border = set(function.inputs.values()) | set(function.outputs)
        for op in function.operations:
            tally.check(
                op.op_type not in ("linear", "matmul") or "ios16" in package.path.name,
                f"`{op.name}` is a {op.op_type}",
            )
            for var in op.outputs:
                wide = getattr(var.dtype, "__name__", "") == "fp32"
                tally.check(
                    not wide or var in border, f"{package.path.name}, {name}, `{var.name}` is in float32"
                )


def record(file, offset):
    """A record of a weight file as we understand the layout: its element type and its bytes."""
    with open(file, "rb") as blob:
        blob.seek(offset)
        sentinel, kind, size, data = struct.unpack("<IIQQ", blob.read(24))
        if sentinel != 0xDEADBEEF or data != offset + 64:
            raise ValueError(f"{file}: no record at {offset}")
        blob.seek(data)
        return kind, blob.read(size)


def dequantised(package, operation):
    """A compressed weight of the specification, by our own reading: float16 arithmetic in float32, rounded once."""

    def part(parameter):
        value = operation.inputs[parameter].arguments[0].value
        shape = [d.constant.size for d in value.type.tensorType.dimensions]
        kind, data = record(package.weights / "weight.bin", value.blobFileValue.offset)
        raw = np.frombuffer(data, np.uint8)
        if kind == 8:
            raw = np.stack([raw & 15, raw >> 4], axis=-1).reshape(-1)
            return ((raw ^ 8).astype(np.int8) - 8).reshape(shape), "int4"
        return (raw.view({1: np.float16, 4: np.int8}[kind]).reshape(shape), {1: "fp16", 4: "int8"}[kind])

    (data, kind), (scale, _) = part("data"), part("scale")
    for axis in range(data.ndim):
        scale = np.repeat(scale, data.shape[axis] // scale.shape[axis], axis=axis)
    return (data.astype(np.float32) * scale.astype(np.float32)).astype(np.float16), kind


def initializers(bundle):
    """Every stored weight of the ONNX graphs of target coreml by precision and name, as Core ML spells names."""
    import onnx
    from onnx import numpy_helper

    contract = json.loads((bundle / "bundle.json").read_text())
    found = {}
    for variant in contract["variants"]:
        named = found.setdefault(variant["precision"], {})
        for role in ("vision_encoder", "embed_tokens", "decoder"):
            path = bundle / variant[role]["path"]
            for tensor in onnx.load(path).graph.initializer:
                named["".join(c if c.isalnum() else "_" for c in tensor.name)] = numpy_helper.to_array(
                    tensor, str(path.parent)
                )
    return found


def check_weights(package, precision, stored, tally):
    """Plain weights equal the ONNX form's, compressed ones what we read, near the uncompressed. Returns how many of each."""
    wanted = stored["fp32" if precision == "fp32" else "fp16"]
    plain, compressed = set(), {}
    for name, function in package.spec.mlProgram.functions.items():
        read = {op.name: op for op in package.program.functions[name].operations}
        for operation in function.block_specializations[function.opset].operations:
            output = operation.outputs[0].name if operation.outputs else ""
            label = f"{package.path.name}, {name}, `{output}`"
            if operation.type == "const" and operation.attributes["val"].HasField("blobFileValue"):
                if output in wanted:
                    found = read[output].outputs[0].val
                    # For the Neural Engine a few vectors are halves that are float32 elsewhere.
                    equal = found.tobytes() == wanted[output].astype(found.dtype).tobytes()
                    tally.check(equal, f"{label} is not the weight of the ONNX form")
                    plain.add(output)
                else:
                    tally.check(output.startswith("constant_"), f"{label} is no weight of the ONNX form")
            elif operation.type == "constexpr_blockwise_shift_scale" and output not in compressed:
                ours, kind = dequantised(package, operation)
                theirs = read[output].materialized_val_inference()
                tally.check(ours.tobytes() == theirs.tobytes(), f"{label} reads differently")
                compressed[output] = kind
                tally.near(ours, wanted[output], COMPRESSED[kind], label)
    kinds = set(compressed.values())
    expected = {"int8": {"int8"}, "q4": {"int8", "int4"} if "decoder" in package.path.name else {"int8"}}.get(
        precision, set()
    )
    tally.check(
        kinds == expected,
        f"{package.path.name} of precision {precision} has weights in {kinds}, expected {expected}",
    )
    return len(plain), len(compressed)


class Model:
    """What the packages of one precision compute, with the embedding looked up as the contract says."""

    def __init__(self, bundle, contract, packages, encoder, decoder):
        self.contract, self.packages = contract, packages
        self.encoder = encoder.program.functions["main"]
        self.functions = {1: decoder.program.functions["step"]}
        self.functions |= {n: decoder.program.functions[f"prefill_{n}"] for n in packages["prefill"]}
        rows, prompt = packages["embedding"], contract["prompt"]
        shape = (prompt["vocab_size"], prompt["hidden_size"])
        kind = {"float16": np.float16, "float32": np.float32}[rows["dtype"]]
        scaled = "scales" in rows
        file = bundle / rows["path"]
        self.table = np.memmap(file, np.int8 if scaled else kind, "r", rows["offset"], shape)
        self.scales = np.memmap(file, kind, "r", rows["scales"], shape[:1]) if scaled else None

    def pixels(self, image):
        spec = self.contract["image"]
        if spec["aspect"]["kind"] == "pad":
            side = max(image.size)
            colour = tuple(int(255 * mean) for mean in spec["mean"])
            square = Image.new("RGB", (side, side), colour)
            square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
            image = square
        short, edge = min(image.size), spec["shortest_edge"]
        size = tuple(edge if length == short else edge * length // short for length in image.size)
        image = image.resize(size, Image.Resampling.BICUBIC)
        left, top = (image.width - spec["width"]) // 2, (image.height - spec["height"]) // 2
        image = image.crop((left, top, left + spec["width"], top + spec["height"]))
        values = np.asarray(image, np.float64) * spec["rescale"]
        values = (values - spec["mean"]) / spec["std"]
        return values.transpose(2, 0, 1)[None].astype(np.float32)

    def encode(self, pixels):
        return evaluate.run(self.encoder, {"pixel_values": pixels})["image_features"]

    def embed(self, ids):
        rows = self.table[list(ids)].astype(np.float32)
        return rows if self.scales is None else rows * self.scales[list(ids)].astype(np.float32)[:, None]

    def sequence(self, longest=None):
        return Sequence(self, longest)


class Sequence:
    """A conversation: states, and how many slots are filled."""

    def __init__(self, model, longest=None):
        self.model, self.filled = model, 0
        self.state = evaluate.State(model.functions[1])
        self.lengths = [n for n in sorted(model.functions) if longest is None or n <= longest]

    def feed(self, embeds):
        """Logits of the last position, `[vocab]`."""
        room = self.model.packages["context"] - self.filled
        while len(embeds):
            fits = [n for n in self.lengths if n <= room]
            new = next((n for n in fits if n >= len(embeds)), fits[-1])
            part, embeds = embeds[:new], embeds[new:]
            # What is padded is written and never looked at: rubbish shows if it is.
            rubbish = np.full((new - len(part), part.shape[1]), 7.0, np.float32)
            inputs = {"inputs_embeds": np.concatenate([part, rubbish])[None], "position": [self.filled]}
            if new > 1:
                inputs["last"] = [len(part) - 1]
            logits = evaluate.run(self.model.functions[new], inputs, self.state)["logits"]
            self.filled, room = self.filled + len(part), room - len(part)
        return logits[0, 0]

    def cache(self, layer, part):
        return self.state.values[f"{part}_cache"][layer : layer + 1, :, : self.filled]


def open_image(image):
    if image["kind"] == "file":
        path = ROOT / image["path"]
        if hashlib.sha256(path.read_bytes()).hexdigest() != image["sha256"]:
            raise ValueError(f"{path} is not the image of the reference")
        return Image.open(path).convert("RGB")
    return Image.fromarray(synth.scene(image["width"], image["height"], image["seed"]).astype(np.uint8))


def check_case(model, precision, reference, tensors, case, worst, tally):
    tolerances = reference["tolerances"]
    exact = precision in ("fp32", "fp16")
    label = f"{precision}, {case['name']}"

    def compare(value, found):
        for check in case["checks"]:
            if check["value"] != value or check.get("padding"):
                continue
            flat = np.asarray(found, np.float32).reshape(-1)
            expected = tensors[check["tensor"]].reshape(-1)
            actual = flat[tensors[check["indices"]]] if check["indices"] else flat
            limit = tolerances[check["tolerance"]]["fp32" if precision == "fp32" else "fp16"]
            if "max_abs" in limit:
                error = np.abs(actual - expected).max()
                tally.check(
                    error <= limit["max_abs"],
                    f"{label}, {value}: {error:.2e}, allowed {limit['max_abs']:.2e}",
                )
                continue
            # States are float16 whatever the precision: what is computed from them has its tolerance.
            limit = limit if value == "image_features" else tolerances[check["tolerance"]]["fp16"]
            allowed = limit["relative_l2"] if exact else LOSSY[precision]
            error = tally.near(actual, expected, allowed, f"{label}, {value}")
            kind = value.split(".")[-1]
            worst[kind] = max(worst.get(kind, 0.0), error)

    features = []
    for image in case["images"]:
        pixels = model.pixels(open_image(image))
        if len(case["images"]) == 1:
            compare("pixel_values", pixels)
        features.append(model.encode(pixels)[0])
    if len(features) == 1:
        compare("image_features", features[0])
    if any(check["tolerance"] == "jpeg_pixels" for check in case["checks"]):
        return
    alone = len(case["rows"]) == 1
    logits = {}
    for index, row in enumerate(case["rows"]):
        embeds = np.concatenate(
            [features[s["image"]] if "image" in s else model.embed(s["ids"]) for s in row["segments"]]
        )
        sequence = model.sequence()
        logits.setdefault("prefill.logits", []).append(sequence.feed(embeds))
        if alone:
            for layer in range(model.contract["kv"]["layers"]):
                for part in ("key", "value"):
                    compare(f"prefill.present.{layer}.{part}", sequence.cache(layer, part))
        for step, ids in enumerate(case["feed"]):
            logits.setdefault(f"steps.{step}.logits", []).append(sequence.feed(model.embed([ids[index]])))
            if alone:
                for layer in range(model.contract["kv"]["layers"]):
                    for part in ("key", "value"):
                        compare(f"steps.{step}.present.{layer}.{part}", sequence.cache(layer, part))
        check_greedy(model, precision, row, embeds, label, tally)
    for value, rows in logits.items():
        compare(value, np.stack(rows))


def check_greedy(model, precision, row, embeds, label, tally):
    """The recorded continuation, as far as its choices are clear in half precision."""
    sequence, ids = model.sequence(), []
    clear = len(row["greedy"])
    if precision != "fp32":
        scale = 0.05 if precision == "fp16" else 1.0
        clear = next((i for i, margin in enumerate(row["margins"]) if margin < scale), clear)
    for _ in range(clear):
        logits = sequence.feed(embeds)
        ids.append(int(logits.argmax()))
        embeds = model.embed(ids[-1:])
    tally.check(ids == row["greedy"][:clear], f"{label}: greedy ids {ids}, expected {row['greedy'][:clear]}")


def check_pieces(model, precision, case, tally):
    """A prompt in pieces that are padded is the prompt at once, and the cache can be filled to its last slot."""
    rng = np.random.default_rng(1)
    row = case["rows"][0]
    embeds = np.concatenate(
        [
            model.embed(s["ids"])
            if "ids" in s
            else model.encode(model.pixels(open_image(case["images"][s["image"]])))[0]
            for s in row["segments"]
        ]
    )
    whole = model.sequence().feed(embeds)
    pieces = model.sequence(min(model.packages["prefill"]))
    for piece in np.array_split(embeds, 3):
        logits = pieces.feed(piece)
    limit = 1e-3 if precision == "fp32" else 2e-2
    tally.near(logits, whole, limit, f"{precision}: a prompt in three pieces")
    context = model.packages["context"]
    long = model.sequence()
    filler = rng.permutation(np.resize(np.arange(len(embeds)), context - 3))
    long.feed(embeds[filler])
    for _ in range(3):
        logits = long.feed(embeds[:1])
    tally.check(long.filled == context and np.isfinite(logits).all(), f"{precision}: the last slot")
    # The last logits by single steps from a third of the way: other functions, the same answer.
    other = model.sequence(min(model.packages["prefill"]))
    other.feed(embeds[filler])
    for _ in range(3):
        again = other.feed(embeds[:1])
    tally.near(again, logits, limit, f"{precision}: the last slot by other functions")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("reference", type=Path)
    parser.add_argument(
        "--weights", type=Path, help="a bundle with ONNX graphs of target coreml, fp32 and fp16"
    )
    parser.add_argument("--cases", type=int, help="only the first N")
    parser.add_argument(
        "--neural-engine", action="store_true", help="the encoders are laid out for the Neural Engine"
    )
    parser.add_argument(
        "--no-pieces", action="store_true", help="no prompts in pieces and full caches: they are long"
    )
    options = parser.parse_args()
    contract = json.loads((options.bundle / "bundle.json").read_text())
    reference = json.loads(options.reference.read_text())
    tensors = load_file(options.reference.parent / reference["tensors"])
    stored = initializers(options.weights) if options.weights else None
    tally = Tally()
    for packages in contract["packages"]:
        precision = packages["precision"]
        paths = [packages[key] for key in ("vision_encoder", "vision_encoder_ios16") if key in packages]
        encoder = [Package(options.bundle / path, tally) for path in paths]
        decoder = Package(options.bundle / packages["decoder"], tally)
        check_contract(contract, packages, encoder, decoder, tally)
        for package in encoder if options.neural_engine else []:
            check_neural_engine(package, tally)
        said = f"{precision}: {len(encoder) + 1} packages read"
        if stored:
            counts = [
                check_weights(encoder[0], precision, stored, tally),
                check_weights(decoder, precision, stored, tally),
            ]
            plain, compressed = (sum(c) for c in zip(*counts))
            said += f", {plain} weights equal bit for bit, {compressed} compressed"
        print(said, flush=True)
        cases = reference["cases"][: options.cases]
        for package in encoder:
            model, worst = Model(options.bundle, contract, packages, package, decoder), {}
            # The older encoder with the same decoder, on one image.
            for case in cases if package is encoder[0] else cases[:1]:
                check_case(model, precision, reference, tensors, case, worst, tally)
            shown = ", ".join(f"{kind} {error:.1e}" for kind, error in sorted(worst.items()))
            print(
                f"{precision}: {package.path.name} and decoder evaluated, relative L2 at most {shown}",
                flush=True,
            )
        if not options.no_pieces:
            check_pieces(
                Model(options.bundle, contract, packages, encoder[0], decoder), precision, cases[0], tally
            )
    for file in contract["files"]:
        found = hashlib.sha256((options.bundle / file["path"]).read_bytes()).hexdigest()
        tally.check(found == file["sha256"], f"`{file['path']}` was changed by reading it")
    print(f"{tally.passed} passed, {tally.failed} failed")
    return 1 if tally.failed else 0


if __name__ == "__main__":
    sys.exit(main())
