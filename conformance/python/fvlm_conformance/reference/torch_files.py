#!/usr/bin/env python3
"""Writes small files with torch, and what torch reads of them: `models/tests/data/torch`.

    python -m fvlm_conformance.reference.torch_files

Each file is read by `models::checkpoint::TensorFile` in a test and compared with `expected.json`: names,
types, shapes and bytes as torch has them, or words of the sentence that refuses it. Needs torch and numpy.
The older form names storages by addresses, so that those files differ from run to run; what they hold does
not.
"""

import argparse
import io
import json
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy
import torch

from fvlm_conformance.common import ROOT

# As the reader names them: weights by their name, others as safetensors does.
NAMES = {
    torch.float32: "float32",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.uint16: "U16",
    torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.complex64: "C64",
}


class Net(torch.nn.Module):
    """Two layers that share a weight, a norm with a counter of steps."""

    def __init__(self):
        super().__init__()
        self.one = torch.nn.Linear(3, 3)
        self.two = torch.nn.Linear(3, 3, bias=False)
        self.two.weight = self.one.weight
        self.norm = torch.nn.BatchNorm1d(3)

    def forward(self, x):
        return self.norm(self.two(self.one(x)))


def every_kind():
    """Each type, and each way in which a tensor lies in its storage."""
    count = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4)
    state = OrderedDict()
    for dtype in NAMES:
        state[f"dtype.{NAMES[dtype]}"] = torch.tensor([0, 1, 1, 0, 1]).to(dtype)
    state["whole"] = count
    state["tied"] = count
    state["turned"] = count.permute(2, 0, 1)
    state["part"] = count[1, :, 1:3]
    state["every other"] = count.flatten()[::2]
    kernel = torch.arange(16.0).reshape(1, 4, 2, 2)
    state["channels last"] = kernel.contiguous(memory_format=torch.channels_last)
    state["expanded"] = count[0, 0, 3:4].expand(3, 1)
    state["scalar"] = torch.tensor(-2.5)
    state["empty"] = torch.zeros(0, 7)
    state["parameter"] = torch.nn.Parameter(torch.tensor([1.5, -0.0, float("inf")]))
    named = torch.nn.Parameter(torch.ones(2))
    named.note = "a parameter with a state"
    state["parameter with a state"] = named
    return state


def saved(value, **how):
    file = io.BytesIO()
    torch.save(value, file, **how)
    return file.getvalue()


def packed(archive, method, **how):
    """The archive written again by another tool."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(out, "w", method) as new:
        for name in old.namelist():
            info = zipfile.ZipInfo(name)
            info.compress_type = method
            with new.open(info, "w", **how) as file:
                file.write(old.read(name))
    return out.getvalue()


def replaced(archive, ending, contents):
    """The archive with a file of other contents."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as new:
        for name in old.namelist():
            new.writestr(name, contents if name.endswith(ending) else old.read(name))
    return out.getvalue()


def script():
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(torch.nn.ReLU(), torch.ones(2)), file)
    return file.getvalue()


def training():
    """A state dict among what else a program keeps to go on."""
    net = Net()
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    return net.state_dict(), optimizer.state_dict()


def files():
    """Name, contents, and what must be found: tensors and what is skipped, or words of the refusal."""
    state = every_kind()
    weights, optimizer = training()
    around = {"epoch": 3, "state_dict": weights, "optimizer": optimizer, "args": {"lr": 1e-4, "name": None}}
    archive = saved(state)
    yield "zip.pt", archive, (state, [])
    # torch itself does not read these types from the older form.
    new = ("F8_E4M3", "F8_E5M2", "U16")
    older = [(name, value) for name, value in state.items() if name.removeprefix("dtype.") not in new]
    older = OrderedDict(older)
    yield "legacy.pt", saved(older, _use_new_zipfile_serialization=False), (older, [])
    yield "protocol-4.pt", saved(state, pickle_protocol=4), (state, [])
    yield "protocol-5.pt", saved(state, pickle_protocol=5), (state, [])
    yield "model.pt", saved(weights), (weights, [])
    yield "training.pt", saved(around), (weights, ["args", "epoch", "optimizer"])
    yield (
        "training-legacy.pt",
        saved(around, _use_new_zipfile_serialization=False),
        (
            weights,
            ["args", "epoch", "optimizer"],
        ),
    )
    beside = {"w": torch.ones(2), "size": torch.Size([1, 2]), "dtype": torch.bfloat16}
    beside["on"] = torch.device("cpu")
    yield (
        "beside.pt",
        saved({**beside, "big": 1 << 80, "list": [1.5, True]}),
        (
            {"w": torch.ones(2)},
            ["big", "dtype", "list", "on", "size"],
        ),
    )
    torch.serialization.set_crc32_options(False)
    yield "no-checksums.pt", saved(weights), (weights, [])
    torch.serialization.set_crc32_options(True)
    yield "zip64.pt", packed(saved(weights), zipfile.ZIP_STORED, force_zip64=True), (weights, [])
    yield "deflated.pt", packed(archive, zipfile.ZIP_DEFLATED), "compressed in its archive"
    yield "big-endian.pt", replaced(archive, "byteorder", "big"), "big-endian order, expected little-endian"
    yield "script.pt", script(), "program of TorchScript"
    yield "module.pt", saved(torch.nn.Linear(2, 2)), "`torch.nn.modules.linear.Linear`"
    yield "list.pt", saved([torch.ones(2)]), "holds a list, expected a dict of tensors by name"
    yield "tensor.pt", saved(torch.ones(2)), "holds a tensor, expected a dict of tensors by name"
    yield "negated.pt", saved({"w": torch.ones(2)._neg_view()}), "with metadata, by which values are negated"
    sparse = torch.eye(3).to_sparse()
    yield "sparse.pt", saved({"w": sparse}), "`torch._utils._rebuild_sparse_tensor`"
    meta = torch.ones(2, device="meta")
    yield "meta.pt", saved({"w": meta}), "`torch._utils._rebuild_meta_tensor_no_storage`"
    quantized = torch.quantize_per_tensor(torch.ones(2), 0.5, 0, torch.qint8)
    yield "quantized.pt", saved({"w": quantized}), "`torch._utils._rebuild_qtensor`"
    yield "numpy.pt", saved({"best": numpy.float64(0.5), "w": torch.ones(2)}), "numpy"
    yield "set.pt", saved({"done": {1, 2}, "w": torch.ones(2)}), "set"


def facts(tensor):
    whole = tensor.detach().resolve_neg().resolve_conj().contiguous()
    values = whole.reshape(-1).view(torch.uint8).numpy().tobytes() if whole.numel() else b""
    return {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "bytes": values.hex()}


def main():
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "models" / "tests" / "data" / "torch")
    output = parser.parse_args().output
    torch.manual_seed(7)
    output.mkdir(parents=True, exist_ok=True)
    expected = {}
    for name, contents, found in files():
        (output / name).write_bytes(contents)
        if isinstance(found, str):
            expected[name] = {"refused": found}
            continue
        tensors, skipped = found
        # torch reads it too.
        torch.load(io.BytesIO(contents), weights_only=False)
        read = {key: facts(tensor) for key, tensor in tensors.items()}
        expected[name] = {"tensors": read, "skipped": skipped}
    text = json.dumps(expected, indent=1, ensure_ascii=False)
    (output / "expected.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
