#!/usr/bin/env python3
"""Writes matrices in groups of few bits as MLX stores them, and their values.

The file is `models/tests/data/mlx-groups.safetensors`.

    python -m fvlm_conformance.reference.mlx_groups

The formulas are those that `mlx.core.quantize` documents (mode `affine`): of a group of a row with the
largest value a and the least b, the scale is `s = (a - b) / (2^bits - 1)`, the bias is b, a code is
`round((w - b) / s)` and a value is `code * s + b`. Codes are packed into uint32, the first in the lowest
bits; they are taken out again as `mlx::core::dequantize` does it, by a shift to the left and one to the
right. Needs numpy only: MLX itself runs on Apple's machines.

For each case, `BITS-GROUP-TYPE`, the file has `.weight`, `.scales`, `.biases` as a checkpoint has them and
`.expected`.
"""

import argparse
import json
from pathlib import Path

import numpy

from fvlm_conformance.common import ROOT

CASES = [(4, 32, "F32"), (4, 64, "BF16"), (4, 128, "F16"), (8, 32, "BF16"), (8, 64, "F16"), (8, 128, "F32")]
ROWS, WIDTH = 3, 256


def stored(values, dtype):
    """Bytes of a type, and the float32 values that they stand for."""
    if dtype == "F32":
        return values.astype("<f4").tobytes(), values.astype(numpy.float32)
    if dtype == "F16":
        half = values.astype("<f2")
        return half.tobytes(), half.astype(numpy.float32)
    bits = (values.astype("<f4").view("<u4") >> 16).astype("<u2")
    return bits.tobytes(), (bits.astype("<u4") << 16).view("<f4")


def quantized(weights, bits, group, dtype):
    """Codes, and bytes and values of scales and biases."""
    grouped = weights.reshape(ROWS, WIDTH // group, group)
    bias_bytes, biases = stored(grouped.min(-1), dtype)
    scale_bytes, scales = stored((grouped.max(-1) - grouped.min(-1)) / (2**bits - 1), dtype)
    codes = numpy.rint((grouped - biases[..., None]) / scales[..., None])
    codes = codes.clip(0, 2**bits - 1).astype(numpy.uint32).reshape(ROWS, WIDTH)
    return codes, (scale_bytes, scales), (bias_bytes, biases)


def packed(codes, bits):
    per_word = 32 // bits
    parts = codes.reshape(ROWS, WIDTH // per_word, per_word)
    shifts = numpy.arange(per_word, dtype=numpy.uint32) * numpy.uint32(bits)
    return (parts << shifts).sum(-1, dtype=numpy.uint32)


def dequantized(words, scales, biases, bits, group):
    left = [numpy.uint32(32 - (start + bits)) for start in range(0, 32, bits)]
    parts = [(words << shift) >> numpy.uint32(32 - bits) for shift in left]
    codes = numpy.stack(parts, -1).reshape(ROWS, WIDTH // group, group).astype(numpy.float32)
    return (codes * scales[..., None] + biases[..., None]).reshape(ROWS, WIDTH)


def main():
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    output = ROOT / "models" / "tests" / "data" / "mlx-groups.safetensors"
    parser.add_argument("-o", "--output", type=Path, default=output)
    output = parser.parse_args().output
    random = numpy.random.default_rng(7)
    header, data = {}, b""

    def put(name, dtype, shape, contents):
        nonlocal data
        offsets = [len(data), len(data) + len(contents)]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        data += contents

    for bits, group, dtype in CASES:
        weights = random.normal(0, 0.05, (ROWS, WIDTH)).astype(numpy.float32)
        codes, (scale_bytes, scales), (bias_bytes, biases) = quantized(weights, bits, group, dtype)
        words = packed(codes, bits)
        expected = dequantized(words, scales, biases, bits, group)
        assert abs(expected - weights).max() < 0.02
        name = f"{bits}-{group}-{dtype}"
        put(f"{name}.weight", "U32", list(words.shape), words.astype("<u4").tobytes())
        put(f"{name}.scales", dtype, list(scales.shape), scale_bytes)
        put(f"{name}.biases", dtype, list(biases.shape), bias_bytes)
        put(f"{name}.expected", "F32", [ROWS, WIDTH], expected.astype("<f4").tobytes())
    text = json.dumps(header).encode()
    output.write_bytes(len(text).to_bytes(8, "little") + text + data)


if __name__ == "__main__":
    main()
