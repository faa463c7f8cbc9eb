"""The graphs of a bundle of the demo model by the `onnx` package and a plain ONNX Runtime, which has none of our kernels.

    python -m fvlm_conformance.clients.onnx_graphs BUNDLE      every target and precision of the demo model

`onnx` checks each graph in strict mode; ONNX Runtime computes those of target cpu by the bodies of their functions, against the
portable ones, and every graph without a single optimisation against what its optimiser makes of it.
"""

import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnxruntime import GraphOptimizationLevel

from ..common import inputs, relative_l2

# Relative L2 from the portable graphs. Bodies compute in float32 on what the weights were rounded to.
BODIES = {"_cpu": 1e-5, "_int8": 0.05, "_q4": 0.3}
# Relative L2 of unoptimised graphs. In float16 an order of sums, or a rounding less, is seen.
UNOPTIMISED = {"fp32": 1e-4, "fp16": 5e-3}


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


def compare_bodies(folder, name):
    rng = np.random.default_rng(1)
    middle = 0.0 if name == "vision_encoder" else 0.5
    portable = session(folder / f"{name}.onnx")
    sizes = {"batch": 2, "new": 5, "past": 0, "total": 5}
    feed = inputs(portable, sizes, lambda _, shape: rng.random(shape, np.float32) - middle)
    expected = portable.run(None, feed)
    for suffix, limit in BODIES.items():
        found = session(folder / f"{name}{suffix}.onnx").run(None, feed)
        for port, (value, wanted) in enumerate(zip(found, expected, strict=True)):
            distance = relative_l2(value, wanted)
            if not distance <= limit:
                sys.exit(
                    f"error: {name}{suffix}.onnx: output {port} is {distance:.1e} from the portable graph, "
                    f"limit {limit:.0e}"
                )
        print(f"onnxruntime runs the bodies of {name}{suffix}.onnx", flush=True)


def compare_unoptimised(path):
    rng = np.random.default_rng(7)
    plain = session(path, GraphOptimizationLevel.ORT_DISABLE_ALL)
    feed = inputs(
        plain, {"batch": 1, "past": 3, "new": 2, "total": 5}, lambda _, shape: rng.random(shape) - 0.5
    )
    expected, found = plain.run(None, feed), session(path).run(None, feed)
    limit = UNOPTIMISED["fp16" if "_fp16" in path.name else "fp32"]
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
        compare_bodies(folder, name)
    for path in graphs:
        compare_unoptimised(path)


if __name__ == "__main__":
    main()
