"""Writes the tiny bundle of the command tests: python make_bundle.py (needs the packages numpy and onnx 1.23).

Not a FastVLM: three small graphs that keep the contract and whose answers can be told in advance. The answer is the
letter of the image's strongest colour (R, G or B), a full stop, and the end; without an image it is `?.`.
"""

import hashlib
import json
from pathlib import Path

import numpy
import onnx
from onnx import TensorProto, helper, numpy_helper

ROOT = Path(__file__).parent / "bundle"
START, END, IMAGE, RED, GREEN, BLUE, STOP, QUESTION = range(8)
HIDDEN = 8
F32, I64 = TensorProto.FLOAT, TensorProto.INT64


def constant(name, values):
    return numpy_helper.from_array(numpy.asarray(values), name)


def write(name, nodes, inputs, outputs, constants):
    def info(tensors):
        return [helper.make_tensor_value_info(*tensor) for tensor in tensors]

    graph = helper.make_graph(nodes, name, info(inputs), info(outputs), constants)
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name=""
    )
    onnx.checker.check_model(model, full_check=True)
    (ROOT / "onnx" / f"{name}.onnx").write_bytes(model.SerializeToString(deterministic=True))

    def contract(tensors):
        dtypes = {F32: "float32", I64: "int64"}
        return [{"name": name, "dtype": dtypes[dtype], "dims": dims} for name, dtype, dims in tensors]

    return {"path": f"onnx/{name}.onnx", "data": [], "inputs": contract(inputs), "outputs": contract(outputs)}


def vision_encoder(name, side, tokens):
    """Features that are all alike: in the columns of R, G and B, ten times the mean of that channel."""
    columns = numpy.zeros((3, HIDDEN), numpy.float32)
    columns[range(3), [RED, GREEN, BLUE]] = 10
    node = helper.make_node
    nodes = [
        node("ReduceMean", ["pixel_values"], ["means"], axes=[2, 3], keepdims=0),
        node("MatMul", ["means", "columns"], ["feature"]),
        node("Unsqueeze", ["feature", "axis"], ["row"]),
        node("Concat", ["row"] * tokens, ["image_features"], axis=1),
    ]
    return write(
        name,
        nodes,
        [("pixel_values", F32, ["batch", 3, side, side])],
        [("image_features", F32, ["batch", tokens, HIDDEN])],
        [constant("columns", columns), constant("axis", numpy.array([1]))],
    )


def embed_tokens():
    """One-hot."""
    return write(
        "embed_tokens",
        [helper.make_node("Gather", ["table", "input_ids"], ["inputs_embeds"])],
        [("input_ids", I64, ["batch", "new"])],
        [("inputs_embeds", F32, ["batch", "new", HIDDEN])],
        [constant("table", numpy.eye(HIDDEN, dtype=numpy.float32))],
    )


def decoder():
    """After `<|im_start|>` the strongest of all that was seen, after that a fixed successor."""
    seen = numpy.zeros((HIDDEN, HIDDEN), numpy.float32)
    for token in (RED, GREEN, BLUE):
        seen[token, token] = 1
    seen[QUESTION, QUESTION] = 0.01
    follows = numpy.zeros((HIDDEN, HIDDEN), numpy.float32)
    for token in (RED, GREEN, BLUE, QUESTION):
        follows[token, STOP] = 100
    follows[STOP, END] = 100
    node = helper.make_node
    nodes = [
        node("Unsqueeze", ["inputs_embeds", "axis_1"], ["entry"]),
        node("Concat", ["past_key_values.0.key", "entry"], ["present.0.key"], axis=2),
        node("Concat", ["past_key_values.0.value", "entry"], ["present.0.value"], axis=2),
        node("Cast", ["attention_mask"], ["mask"], to=F32),
        node("Unsqueeze", ["mask", "axes_1_3"], ["mask_4d"]),
        node("Mul", ["present.0.value", "mask_4d"], ["visible"]),
        node("ReduceSum", ["visible", "axes_1_2"], ["sum"], keepdims=0),
        node("MatMul", ["sum", "seen"], ["strongest"]),
        node("Gather", ["inputs_embeds", "last"], ["last_embed"], axis=1),
        node("Slice", ["last_embed", "zero", "one", "one"], ["is_start"]),
        node("Mul", ["strongest", "is_start"], ["first"]),
        node("MatMul", ["last_embed", "follows"], ["successor"]),
        node("Add", ["first", "successor"], ["sum_2d"]),
        node("Cast", ["position_ids"], ["positions"], to=F32),
        node("ReduceSum", ["positions", "one"], ["position_sum"], keepdims=1),
        node("Mul", ["position_sum", "nothing"], ["no_position"]),
        node("Add", ["sum_2d", "no_position"], ["logits_2d"]),
        node("Unsqueeze", ["logits_2d", "axis_1"], ["logits"]),
    ]
    past = ["batch", 1, "past", HIDDEN]
    present = ["batch", 1, "total", HIDDEN]
    return write(
        "decoder_model_merged",
        nodes,
        [
            ("inputs_embeds", F32, ["batch", "new", HIDDEN]),
            ("attention_mask", I64, ["batch", "total"]),
            ("position_ids", I64, ["batch", "new"]),
            ("past_key_values.0.key", F32, past),
            ("past_key_values.0.value", F32, past),
        ],
        [
            ("logits", F32, ["batch", 1, HIDDEN]),
            ("present.0.key", F32, present),
            ("present.0.value", F32, present),
        ],
        [
            constant("axis_1", numpy.array([1])),
            constant("axes_1_2", numpy.array([1, 2])),
            constant("axes_1_3", numpy.array([1, 3])),
            constant("zero", numpy.array([0])),
            constant("one", numpy.array([1])),
            constant("last", numpy.array(-1)),
            constant("seen", seen),
            constant("follows", follows),
            constant("nothing", numpy.array([0], numpy.float32)),
        ],
    )


def tokenizer():
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    special = {START: "<|im_start|>", END: "<|im_end|>", IMAGE: "<image>"}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    vocabulary = {"R": RED, "G": GREEN, "B": BLUE, ".": STOP, "?": QUESTION}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": id, "content": text, **flags} for id, text in special.items()],
        "normalizer": None,
        "pre_tokenizer": level,
        "post_processor": None,
        "decoder": level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {**{text: id for id, text in special.items()}, **vocabulary},
            "merges": [],
        },
    }


def main():
    (ROOT / "onnx").mkdir(parents=True, exist_ok=True)
    variant = {
        "target": "portable",
        "precision": "fp32",
        "opset": 17,
        "kv_dtype": "float32",
        "vision_encoder": vision_encoder("vision_encoder", 4, 2),
        "further_encoders": [
            {
                "height": 8,
                "width": 8,
                "shortest_edge": 8,
                "tokens": 5,
                "graph": vision_encoder("vision_encoder_8", 8, 5),
            }
        ],
        "embed_tokens": embed_tokens(),
        "decoder": decoder(),
    }
    (ROOT / "tokenizer.json").write_text(json.dumps(tokenizer(), indent=1) + "\n")
    (ROOT / "chat_template.jinja").write_text(
        "{% for message in messages %}<|im_start|>{{ message['content'] }}<|im_end|>{% endfor %}<|im_start|>"
    )
    files = []
    for path in sorted(path for path in ROOT.rglob("*") if path.is_file() and path.name != "bundle.json"):
        contents = path.read_bytes()
        name = path.relative_to(ROOT).as_posix()
        files.append({"path": name, "bytes": len(contents), "sha256": hashlib.sha256(contents).hexdigest()})
    bundle = {
        "schema": 1,
        "tool": "make_bundle.py",
        "model": {
            "name": "tiny",
            "layout": "llava",
            "stored": "float32",
            "parameters": {"vision": 24, "projector": 0, "embed": 64, "decoder": 128},
        },
        "source": [],
        "kv": {"layers": 1, "kv_heads": 1, "head_dim": HIDDEN, "max_context": 64},
        "image": {
            "height": 4,
            "width": 4,
            "aspect": {"kind": "crop"},
            "shortest_edge": 4,
            "resample": "bicubic",
            "rescale": 1 / 255,
            "mean": [0.0, 0.0, 0.0],
            "std": [1.0, 1.0, 1.0],
            "tokens": 2,
        },
        "prompt": {
            "tokenizer": "tokenizer.json",
            "chat_template": "chat_template.jinja",
            "content": "text",
            "image_token": "<image>",
            "image_token_id": IMAGE,
            "stop_ids": [END],
            "special_tokens": {},
            "vocab_size": HIDDEN,
            "hidden_size": HIDDEN,
        },
        "variants": [variant],
        "files": files,
    }
    (ROOT / "bundle.json").write_text(json.dumps(bundle, indent=2) + "\n")


if __name__ == "__main__":
    main()
