"""Adopts graphs of other exporters with `fvlm-export --from-onnx`, and compares the answers of `fvlm-run` with Python's onnxruntime.

    conformance/clients/adopt             from anywhere; needs a release build's tools and Python with pip

The graphs are those of torch.onnx in `conformance/clients/graphs` (`reference/torch_graphs.py` made them), with the weights of the demo
model, and what onnxruntime's own tools and Optimum's way of merging make of them: float16, dynamic 8 bits, MatMulNBits, a branch for the
cache. Both sides run the same graphs, and float32 must give the recorded answers too. A table on stdout; exit code 1 if one is not equal.
"""

import itertools
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
from onnxruntime.transformers.float16 import convert_float_to_float16
from PIL import Image
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from .onnxruntime_plain import clip_pixels
from .packages import HERE, ROOT, call
from .run import recorded

CHECKPOINT = ROOT / "models" / "demo" / "checkpoint"
NETWORKS = ("vision_encoder", "embed_tokens", "decoder_model_merged")
# Of files, by precision.
SUFFIXES = {"fp32": "", "fp16": "_fp16", "q8": "_quantized", "q4": "_q4", "q4f16": "_q4f16"}
KINDS = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(bool)": np.bool_,
}
# Pictures and questions that each form is asked.
CASES = 4


class Foreign:
    """A directory's graphs in one precision, fed by the forms of their inputs: no name is assumed that is not Optimum's."""

    def __init__(self, directory, suffix):
        self.config = json.loads((directory / "config.json").read_text())
        self.processor = json.loads((directory / "preprocessor_config.json").read_text())
        self.tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        stop = json.loads((directory / "generation_config.json").read_text())["eos_token_id"]
        self.stop = set(stop if isinstance(stop, list) else [stop])
        self.encoder, self.embedding, self.decoder = (
            onnxruntime.InferenceSession(str(directory / "onnx" / f"{name}{suffix}.onnx"))
            for name in NETWORKS
        )

    def one(self, session, value):
        """The output of the last rank and type that an image or ids have, rows by rows."""
        (port,) = session.get_inputs()
        outputs = session.run(None, {port.name: value.astype(KINDS[port.type])})
        return outputs[0].astype(np.float32).reshape(-1, outputs[0].shape[-1])

    def ask(self, image, question, limit):
        token = self.config["image_token_index"]
        features = self.one(self.encoder, clip_pixels(self.processor, image))
        prompt = (
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
            f"<|im_start|>user\n{self.tokenizer.id_to_token(token)}\n{question}<|im_end|>\n<|im_start|>assistant\n"
        )
        ids = []
        for id in self.tokenizer.encode(prompt, add_special_tokens=False).ids:
            ids += [id] * (len(features) if id == token else 1)
        ids = np.array([ids])
        embeds = self.one(self.embedding, ids)
        embeds[ids[0] == token] = features
        ports = self.decoder.get_inputs()
        caches = [port for port in ports if len(port.shape) == 4]
        outputs = self.decoder.get_outputs()
        present = [index for index, port in enumerate(outputs) if len(port.shape) == 4]
        (scores,) = (index for index, port in enumerate(outputs) if len(port.shape) == 3)
        cache = [np.zeros((1, port.shape[1], 0, port.shape[3]), KINDS[port.type]) for port in caches]
        answer, past = [], 0
        while len(answer) < limit:
            total = past + len(embeds)
            feed = {port.name: value for port, value in zip(caches, cache)}
            for port in ports:
                if port.name == "num_logits_to_keep":
                    # All of them: what is compared is the last.
                    feed[port.name] = np.array(0)
                elif port.name == "use_cache_branch":
                    feed[port.name] = np.array([past > 0])
                elif "position" in port.name:
                    feed[port.name] = np.arange(past, total)[None]
                elif "mask" in port.name:
                    feed[port.name] = np.ones((1, total), np.int64)
                elif len(port.shape) == 3:
                    feed[port.name] = embeds[None].astype(KINDS[port.type])
            found = self.decoder.run(None, feed)
            chosen = int(found[scores][0, -1].argmax())
            if chosen in self.stop:
                break
            answer.append(chosen)
            cache, past = [found[index] for index in present], total
            embeds = self.one(self.embedding, np.array([[chosen]]))
        return answer


# --- graphs of other exporters ------------------------------------------------------------------------------------


def weights():
    """The demo model's tensors by their names in transformers, in float32."""
    tensors = {
        name: value.astype(np.float32) for name, value in load_file(CHECKPOINT / "model.safetensors").items()
    }
    tensors.setdefault("lm_head.weight", tensors["model.language_model.embed_tokens.weight"])
    return tensors


def torch_graphs(way, directory, tensors):
    """A directory in the layout of transformers.js, of recorded graphs with weights in their data files."""
    (directory / "onnx").mkdir(parents=True)
    for file in CHECKPOINT.iterdir():
        if file.suffix in (".json", ".jinja"):
            shutil.copy(file, directory)
    for path in sorted((HERE / "graphs" / way / "onnx").glob("*.onnx")):
        target = directory / "onnx" / path.name
        shutil.copy(path, target)
        graph = onnx.load(str(path), load_external_data=False).graph
        with open(f"{target}_data", "wb") as data:
            for tensor in graph.initializer:
                if tensor.data_location != TensorProto.EXTERNAL:
                    continue
                place = {entry.key: entry.value for entry in tensor.external_data}
                value = tensors[tensor.name.removeprefix("m.")].astype(
                    helper.tensor_dtype_to_np_dtype(tensor.data_type)
                )
                if list(value.shape) != list(tensor.dims) or data.tell() != int(place["offset"]):
                    sys.exit(
                        f"error: {path.name}: `{tensor.name}` is {list(value.shape)}, expected {list(tensor.dims)}"
                    )
                data.write(value.tobytes())
    return directory


def save(model, path, beside=False):
    onnx.save(
        model, str(path), save_as_external_data=beside, location=f"{path.name}_data", size_threshold=1024
    )


def half(model):
    """Float16 as the community's exports have it: weights and cache, the other inputs and outputs stay."""
    graph = model.graph
    kept = [
        port.name
        for port in [*graph.input, *graph.output]
        if "key" not in port.name and "value" not in port.name
    ]
    return convert_float_to_float16(model, keep_io_types=kept, disable_shape_infer=True)


def nibbles(model):
    quantizer = MatMulNBitsQuantizer(model, block_size=32, is_symmetric=True, accuracy_level=4)
    quantizer.process()
    return quantizer.model.model


def precisions(folder):
    """Beside the graphs of float32 those of other precisions, by the tools that their authors use."""
    for name in NETWORKS:
        path = str(folder / f"{name}.onnx")
        save(half(onnx.load(path)), folder / f"{name}_fp16.onnx", beside=True)
        save(half(onnx.load(path)), folder / f"{name}_q4f16.onnx")
        save(onnx.load(path), folder / f"{name}_q4.onnx", beside=name == "embed_tokens")
        save(onnx.load(path), folder / f"{name}_quantized.onnx")
    decoder = folder / "decoder_model_merged"
    # Weights of products lie transposed, as the older exporter has them without folding.
    folded = folder / "folded.onnx"
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(folded)
    onnxruntime.InferenceSession(f"{decoder}.onnx", options)
    save(nibbles(onnx.load(str(folded))), folder / "decoder_model_merged_q4.onnx", beside=True)
    save(half(nibbles(onnx.load(str(folded)))), folder / "decoder_model_merged_q4f16.onnx")
    quantize_dynamic(
        str(folded), str(folder / "decoder_model_merged_quantized.onnx"), weight_type=QuantType.QInt8
    )
    folded.unlink()


def merged(folder):
    """The decoder as Optimum merges two: a branch without a cache, and one with, which takes one new position."""
    path = folder / "decoder_model_merged.onnx"
    model = onnx.load(str(path))
    graph = model.graph
    caches = [port.name for port in graph.input if len(port.type.tensor_type.shape.dim) == 4]
    outputs = [port.name for port in graph.output]

    def branch(prefix, replaced):
        made = {name for node in graph.node for name in node.output}
        rename = lambda name: replaced.get(name, f"{prefix}{name}" if name in made else name)  # noqa: E731
        nodes = []
        for node in graph.node:
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            copy.name = prefix + node.name
            copy.input[:] = map(rename, node.input)
            copy.output[:] = map(rename, node.output)
            nodes.append(copy)
        ports = [
            helper.make_tensor_value_info(prefix + port.name, port.type.tensor_type.elem_type, None)
            for port in graph.output
        ]
        return helper.make_graph(nodes, f"{prefix}branch", [], ports)

    (first, *_) = (port for port in graph.input if port.name in caches)
    dims = first.type.tensor_type.shape.dim
    shape = [1, dims[1].dim_value, 0, dims[3].dim_value]
    graph.initializer.append(helper.make_tensor("no_past", TensorProto.FLOAT, shape, []))
    then, other = branch("with_past/", {}), branch("without/", {name: "no_past" for name in caches})
    node = helper.make_node("If", ["use_cache"], outputs, "branches", then_branch=then, else_branch=other)
    squeeze = helper.make_node("Reshape", ["use_cache_branch", "one"], ["use_cache"], "one_flag")
    graph.initializer.append(helper.make_tensor("one", TensorProto.INT64, [0], []))
    del graph.node[:]
    graph.node.extend([squeeze, node])
    graph.input.append(helper.make_tensor_value_info("use_cache_branch", TensorProto.BOOL, [1]))
    for data in folder.glob("decoder_model_merged.onnx_data"):
        data.unlink()
    save(model, path)


# --- both sides ---------------------------------------------------------------------------------------------------


def adopt(binaries, directory, bundle):
    call(binaries / "fvlm-export", "--from-onnx", directory, "--quiet", "--output", bundle)
    contract = json.loads((bundle / "bundle.json").read_text())
    return [variant["precision"] for variant in contract["variants"]]


def run(binaries, bundle, precision, case):
    done = subprocess.run(
        [
            str(part)
            for part in (
                *(binaries / "fvlm-run", "--model", bundle, "--provider", "cpu", "--no-fallback", "--json"),
                *(
                    "--precision",
                    precision,
                    "--max-tokens",
                    "64",
                    "--prompt",
                    case["question"],
                    case["image"],
                ),
            )
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    if done.returncode != 0:
        return done.stderr.strip().splitlines()[0] if done.stderr.strip() else f"exit code {done.returncode}"
    return json.loads(done.stdout)["tokens"]


def compare(binaries, name, directory, bundle, cases, stop, wanted=("fp32",)):
    """Rows of the table; whether the wanted precisions are adopted and all answers are equal."""
    adopted = adopt(binaries, directory, bundle)
    good = sorted(adopted) == sorted(wanted)
    if not good:
        print(f"| {name} | {', '.join(adopted)} | expected {', '.join(wanted)} |", flush=True)
    for precision in adopted:
        theirs = Foreign(directory, SUFFIXES[precision])
        equal, problem = 0, None
        for case in cases:
            expected = theirs.ask(Image.open(case["image"]), case["question"], 64)
            found = run(binaries, bundle, precision, case)
            if isinstance(found, str):
                problem = found
                continue
            same = [token for token in found if token not in stop] == expected
            equal += same and (precision != "fp32" or expected == case["tokens"])
        good &= equal == len(cases)
        print(f"| {name} | {precision} | {problem or f'{equal} of {len(cases)}'} |", flush=True)
    return good


def refused(binaries, bundle):
    """An engine that does not run other people's graphs says so, in a line."""
    done = subprocess.run(
        [binaries / "fvlm-run", "--model", bundle, "--provider", "tract", "--no-fallback", "--prompt", "x"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    lines = [line for line in done.stderr.splitlines() if "graphs of another program" in line]
    return done.returncode == 2 and len(lines) == 1


def main():
    built = call(
        ROOT / "scripts" / "binaries",
        "-p",
        "exporter",
        "-p",
        "fvlm-runtime",
        stdout=subprocess.PIPE,
        text=True,
    )
    binaries = pathlib.Path(built.stdout.strip())
    cases, stop = recorded()
    cases = list(itertools.islice(cases, CASES))
    tensors = weights()
    good = True
    print("| graphs | precision | tokens as Python's onnxruntime has them |\n|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="fvlm-adopt-") as work:
        work = pathlib.Path(work)
        traced = torch_graphs("trace", work / "trace", tensors)
        precisions(traced / "onnx")
        good &= compare(
            binaries, "torch.onnx, traced", traced, work / "bundle-trace", cases, stop, tuple(SUFFIXES)
        )
        branched = torch_graphs("trace", work / "branched", tensors)
        merged(branched / "onnx")
        good &= compare(
            binaries, "torch.onnx, merged as Optimum does", branched, work / "bundle-branched", cases, stop
        )
        exported = torch_graphs("dynamo", work / "dynamo", tensors)
        good &= compare(binaries, "torch.onnx, torch.export", exported, work / "bundle-dynamo", cases, stop)
        own = work / "own"
        shutil.copytree(traced, own, ignore=shutil.ignore_patterns("onnx"))
        call(
            binaries / "fvlm-export",
            "--quiet",
            "--output",
            work / "made",
            "--precision",
            "fp32",
            "--precision",
            "fp16",
        )
        shutil.move(work / "made" / "onnx", own / "onnx")
        good &= compare(binaries, "ours, adopted", own, work / "bundle-own", cases, stop, ("fp32", "fp16"))
        alone = refused(binaries, work / "bundle-dynamo")
        good &= alone
        print(f"| asked of tract | fp32 | {'refused in a line' if alone else 'not refused'} |")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
