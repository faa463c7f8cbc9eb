"""What the programs share: the repository's root, the relative L2 distance, made-up inputs of ONNX graphs."""

from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[3]

KINDS = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}


def relative_l2(found, expected, least=0.0):
    """|found - expected| / |expected| over all elements, in float64; `least` is what the divisor is at least.

    Infinite where the lengths differ or the result is not a number: neither may pass.
    """
    found, expected = (np.asarray(value, np.float64).reshape(-1) for value in (found, expected))
    if found.shape != expected.shape:
        return np.inf
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = np.linalg.norm(found - expected) / max(np.linalg.norm(expected), least)
    return float(distance) if np.isfinite(distance) else np.inf


def inputs(session, sizes, noise, first=0):
    """A value for every input of a session, by name: ids and positions count from `first`, masks are open.

    `sizes` gives lengths that are names, 1 where it has none; `noise(name, shape)` makes everything else.
    """
    feed = {}
    for port in session.get_inputs():
        shape = [sizes.get(length, 1) if isinstance(length, str) else length for length in port.shape]
        if port.name in ("input_ids", "position_ids", "positions"):
            value = np.broadcast_to(first + np.arange(shape[-1]), shape)
        elif port.name == "attention_mask":
            value = np.ones(shape)
        else:
            value = noise(port.name, shape)
        feed[port.name] = value.astype(KINDS[port.type])
    return feed
