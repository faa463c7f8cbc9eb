"""The graphs of a bundle of the demo model by the `onnx` package and a plain ONNX Runtime, which has none of our kernels.

    python -m fvlm_conformance.clients.onnx_graphs BUNDLE      every target and precision of the demo model

`onnx` checks each graph in strict mode; ONNX Runtime computes those of target cpu by the bodies of their functions, and standard
ones with rounded weights, against the portable ones in float32, and every graph without a single optimisation against what its
optimiser makes of it. Standard graphs of 8 and 4 bits have the operators that other engines know, and no product left in float.
"""

import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnxruntime import GraphOptimizationLevel

from ..common import KINDS, inputs, relative_l2

# Relative L2 from the portable graphs. Bodies compute in float32 on what the weights were rounded to.
BODIES = {"_cpu": 1e-5, "_cpu_int8": 0.05, "_cpu_q4": 0.3}
# The same of standard graphs with rounded weights, whose activations ONNX Runtime makes bytes.
ROUNDED = {"_int8": 0.05, "_quantized": 0.05, "_q4": 0.3, "_q4f16": 0.3}
# What each network of them has, and how many at least.
OPERATORS = {
    "_int8": {
        "decoder": {"DequantizeLinear", "MatMul"},
        "embed": {"Gather"},
        "vision": {"DequantizeLinear", "Conv"},
    },
    "_quantized": {
        "decoder": {"MatMulNBits"},
        "embed": {"Gather", "Sub"},
        "vision": {"DequantizeLinear", "Conv"},
    },
    "_q4": {
        "decoder": {"MatMulNBits"},
        "embed": {"Gather", "Sub"},
        "vision": {"DequantizeLinear", "Conv"},
    },
    "_q4f16": {"decoder": {"MatMulNBits"}, "embed": {"Gather", "Sub"}, "vision": {"Conv"}},
}
# Relative L2 of unoptimised graphs. In float16 an order of sums, or a rounding less, is seen; the optimiser makes products of
# bytes of int8, which round activations.
UNOPTIMISED = {"fp32": 1e-4, "fp16": 5e-3, "rounded": 1e-1}


def session(path, level=GraphOptimizationLevel.ORT_ENABLE_ALL):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    return onnxruntime.InferenceSession(str(path), options)


def check(path):
    onnx.checker.check_model(str(path), full_check=True)
    inferred = f"{path}.inferred"
    onnx.shape_inference.infer_shapes_path(
        str(path), inferred, check_type=True, strict_mode=True, data_prop=True
    )
    Path(inferred).unlink()
    print("onnx.checker accepts", path.name, flush=True)


def compare_with_portable(folder, name, limits, what):
    rng = np.random.default_rng(1)
    middle = 0.0 if name == "vision_encoder" else 0.5
    portable = session(folder / f"{name}.onnx")
    sizes = {"batch": 2, "new": 5, "past": 0, "total": 5}
    feed = inputs(portable, sizes, lambda _, shape: rng.random(shape, np.float32) - middle)
    expected = portable.run(None, feed)
    for suffix, limit in limits.items():
        other = session(folder / f"{name}{suffix}.onnx")
        own = {port.name: feed[port.name].astype(KINDS[port.type]) for port in other.get_inputs()}
        found = other.run(None, own)
        worst = 0.0
        for port, (value, wanted) in enumerate(zip(found, expected, strict=True)):
            distance = relative_l2(value, wanted)
            worst = max(worst, distance)
            if not distance <= limit:
                sys.exit(
                    f"error: {name}{suffix}.onnx: output {port} is {distance:.1e} from the portable graph, "
                    f"limit {limit:.0e}"
                )
        print(f"onnxruntime runs {what} {name}{suffix}.onnx, {worst:.0e} from float32", flush=True)


def check_operators(folder, suffix, wanted):
    """A standard graph with rounded weights has its operators, and no matrix that a product reads is left in float."""
    for path in sorted(folder.glob(f"*{suffix}.onnx")):
        (expected,) = (names for start, names in wanted.items() if path.name.startswith(start))
        if path.stem.endswith(f"_cpu{suffix}"):
            continue
        graph = onnx.load(str(path), load_external_data=False).graph
        found = {node.op_type for node in graph.node}
        if not expected <= found:
            sys.exit(f"error: {path.name}: no {', '.join(sorted(expected - found))}")
        floats = {
            tensor.name: int(np.prod(tensor.dims))
            for tensor in graph.initializer
            if tensor.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
            and len(tensor.dims) == 2
        }
        left = {
            name
            for node in graph.node
            for name in node.input
            if node.op_type in ("MatMul", "Gemm", "Gather")
            and name in floats
            and not name.endswith(".scales")
        }
        if left and not (suffix == "_q4f16" and path.name.startswith("vision")):
            sys.exit(f"error: {path.name}: {', '.join(sorted(left))} in float")
        print(f"{path.name} has {', '.join(sorted(expected))}", flush=True)


def compare_unoptimised(path):
    rng = np.random.default_rng(7)
    plain = session(path, GraphOptimizationLevel.ORT_DISABLE_ALL)
    feed = inputs(
        plain, {"batch": 1, "past": 3, "new": 2, "total": 5}, lambda _, shape: rng.random(shape) - 0.5
    )
    expected, found = plain.run(None, feed), session(path).run(None, feed)
    rounded = any(path.stem.endswith(suffix) for suffix in ROUNDED) and "_cpu" not in path.stem
    limit = UNOPTIMISED["rounded" if rounded else "fp16" if "_fp16" in path.name else "fp32"]
    worst = max(
        relative_l2(value, wanted, least=1e-30) for value, wanted in zip(found, expected, strict=True)
    )
    if not worst <= limit:
        sys.exit(f"error: {path.name}: {worst:.1e} between no optimisation and all, limit {limit:.0e}")
    print(f"onnxruntime: no optimisation and all are {worst:.0e} apart in {path.name}", flush=True)


def main():
    folder = Path(sys.argv[1]) / "onnx"
    graphs = sorted(folder.glob("*.onnx"))
    if not graphs:
        sys.exit(f"error: {folder} has no graphs")
    for path in graphs:
        check(path)
    for name in ("vision_encoder", "embed_tokens", "decoder_model_merged"):
        compare_with_portable(folder, name, BODIES, "the bodies of")
        compare_with_portable(folder, name, ROUNDED, "the standard operators of")
    for suffix, wanted in OPERATORS.items():
        check_operators(folder, suffix, wanted)
    for path in graphs:
        compare_unoptimised(path)


if __name__ == "__main__":
    main()
