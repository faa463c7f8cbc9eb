"""Core AI, Apple's runtime that executes on Linux too, on graphs of target coreml.

python -m fvlm_conformance.coreml.core_ai fix GRAPH.onnx OUTPUT.onnx    a graph as its converter takes it
python -m fvlm_conformance.coreml.core_ai compare BUNDLE                what coreai/*.aimodel compute, with ONNX Runtime
"""

import asyncio
import sys
from pathlib import Path

import numpy as np

from ..common import inputs, relative_l2

# Relative L2, all outputs of a graph: float32 arithmetic in another order, and float16's.
LIMITS = {"fp32": 1e-4, "fp16": 1e-2}


def fix(source, target):
    """The converter takes no reshapes of a batch whose length is open; graphs of target coreml have none."""
    import onnx
    from onnxruntime.tools.onnx_model_utils import make_dim_param_fixed

    model = onnx.load(source)
    make_dim_param_fixed(model.graph, "batch", 1)
    onnx.save(onnx.shape_inference.infer_shapes(model), target)


async def run(path, feed):
    from coreai.authoring.asset import AIModelAsset
    from coreai.runtime import NDArray

    async with AIModelAsset.load(path).executable() as model:
        out = await model.load_function("main")({name: NDArray(value) for name, value in feed.items()})
        return {name: np.asarray(out[name].numpy()) for name in out}


def noise(rng):
    def values(name, shape):
        if name == "attention_bias":
            # Half of the slots hidden; every row sees itself.
            rows, columns = shape[-2:]
            value = np.where(rng.random(shape) < 0.5, 0.0, -65504.0)
            value[0, 0, np.arange(rows), columns - rows + np.arange(rows)] = 0.0
            return value
        return rng.random(shape) if name == "pixel_values" else rng.standard_normal(shape)

    return values


def compare(folder):
    import onnxruntime

    assets = sorted(folder.glob("coreai/*.aimodel"))
    if not assets:
        sys.exit(f"error: {folder} has no coreai/*.aimodel: scripts/export_coreai makes them")
    failed = False
    for path in assets:
        session = onnxruntime.InferenceSession(str(folder / "onnx" / f"{path.stem}.onnx"))
        feed = inputs(session, {}, noise(np.random.default_rng(1)), first=5)
        names = [port.name for port in session.get_outputs()]
        found = asyncio.run(run(path, feed))
        worst = 0.0
        for name, wanted in zip(names, session.run(None, feed), strict=True):
            if found[name].size != wanted.size:
                sys.exit(
                    f"error: {path.stem}: `{name}` has {found[name].size} values, expected {wanted.size}"
                )
            worst = max(worst, relative_l2(found[name], wanted))
        limit = LIMITS["fp16" if path.stem.endswith("_fp16") else "fp32"]
        failed |= not worst <= limit
        print(
            f"Core AI computes {path.stem}: {len(names)} outputs within {worst:.1e} of ONNX Runtime's, allowed {limit:g}",
            flush=True,
        )
    return 1 if failed else 0


def main():
    match sys.argv[1:]:
        case ["fix", source, target]:
            return fix(source, target)
        case ["compare", folder]:
            return compare(Path(folder))
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
