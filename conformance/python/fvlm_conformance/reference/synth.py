#!/usr/bin/env python3
"""Writes synthetic FastVLM checkpoints: an independent twin, on purpose, of `fvlm-conform synth` (conformance/src/synth).

References are recorded where there may be no Rust, of bytes that two programs agree about: a mistake in one of them is seen.

    python -m fvlm_conformance.reference.synth --size demo --layout transformers-train --dtype fp32 --seed 1 -o DIR

Geometry, scales and outliers stand in conformance/src/synth/table.json, which both programs read. Needs numpy only.
`--hashes` writes conformance/src/synth/hashes.json, which the Rust tests check; `--check` checks it here.
"""

import argparse
import hashlib
import json
import math
import re
import sys
import tempfile
from pathlib import Path

import numpy as np

from ..common import ROOT

SYNTH = ROOT / "conformance" / "src" / "synth"
TABLE = json.loads((SYNTH / "table.json").read_text(encoding="utf-8"))
LAYOUTS = ("llava", "transformers", "transformers-train")
DTYPES = {"fp32": ("F32", 4, "float32"), "fp16": ("F16", 2, "float16"), "bf16": ("BF16", 2, "bfloat16")}
BLOCK = 1 << 22
DEFAULT_SHARD_BYTES = 5_000_000_000


# --- the values of a tensor ---------------------------------------------------------------------------------------


def splitmix64(z):
    """The finaliser of splitmix64 over an array of uint64."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def uniform(seed, name, start, count):
    """Elements `start..start+count` of the tensor's noise: multiples of 2^-23 in [-1, 1)."""
    key = int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "little")
    index = np.arange(start + 1, start + count + 1, dtype=np.uint64)
    u = splitmix64(np.uint64(key) + index * np.uint64(0x9E3779B97F4A7C15))
    return (u >> np.uint64(40)).astype(np.float64) / 8388608.0 - 1.0


def rule_of(name):
    for rule in TABLE["scales"]:
        if name.startswith(rule.get("starts", "")) and name.endswith(rule["ends"]):
            return rule
    raise SystemExit(f"error: no rule of table.json gives the scale of `{name}`")


def select(selector, length, size):
    """Indices along an axis of `length` that an outlier rule means; None for all."""
    if selector == "all":
        return None
    if selector == "first_token":
        return [size["first_special"] + 1]
    if selector == "slow_rope":
        head = size["hidden_size"] // size["num_attention_heads"]
        return sorted(k * head + d for k in range(length // head) for d in (head // 2 - 1, head - 1))
    return [length * part // 16 for part in TABLE["sixteenths"][selector]]


def values(seed, name, shape, size, outliers, start, count):
    """The block as float32."""
    rule = rule_of(name)
    fan_in = math.prod(shape[1:])
    scale = rule["fan_in"] * math.sqrt(3.0 / fan_in) if "fan_in" in rule else rule["scale"]
    out = rule["offset"] + scale * uniform(seed, name, start, count)
    if "centre" in rule:
        taps = shape[-1] * shape[-2]
        first = (taps // 2 - start) % taps
        out[first::taps] = (rule["offset"] + rule["centre"]) + scale * uniform(seed, name, start, count)[
            first::taps
        ]
    if outliers:
        for outlier in TABLE["outliers"]:
            if not name.endswith(outlier["ends"]):
                continue
            rows = select(outlier["rows"], shape[0], size)
            for row in range(shape[0]) if rows is None else rows:
                columns = select(outlier["columns"], fan_in, size)
                for column in range(fan_in) if columns is None else columns:
                    i = row * fan_in + column - start
                    if 0 <= i < count:
                        out[i] = outlier["add"] + outlier["factor"] * out[i]
    return out.astype(np.float32)


def encode(block, dtype):
    """Little-endian bytes in the dtype of the file, rounded to nearest even."""
    if dtype == "fp32":
        return block.astype("<f4").tobytes()
    if dtype == "fp16":
        return block.astype("<f2").tobytes()
    bits = block.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return rounded.astype("<u2").tobytes()


# --- the tensors of a layout --------------------------------------------------------------------------------------


def conv_bn(name, shape):
    yield f"{name}.conv.weight", shape
    yield from batch_norm(f"{name}.bn", shape[0])


def batch_norm(name, channels):
    for part in ("weight", "bias", "running_mean", "running_var"):
        yield f"{name}.{part}", [channels]
    yield f"{name}.num_batches_tracked", []


def mobile_one(name, shape, train, identity, scale, branches=1):
    """A MobileOne block; `shape` is that of its k x k kernel."""
    if not train:
        yield f"{name}.reparam_conv.weight", shape
        yield f"{name}.reparam_conv.bias", [shape[0]]
        return
    if identity:
        yield from batch_norm(f"{name}.identity", shape[0])
    for i in range(branches):
        yield from conv_bn(f"{name}.conv_kxk.{i}", shape)
    if scale:
        yield from conv_bn(f"{name}.conv_scale", shape[:2] + [1, 1])


def feed_forward(name, channels):
    yield from conv_bn(f"{name}.conv", [channels, 1, 7, 7])
    yield f"{name}.fc1.weight", [4 * channels, channels, 1, 1]
    yield f"{name}.fc1.bias", [4 * channels]
    yield f"{name}.fc2.weight", [channels, 4 * channels, 1, 1]
    yield f"{name}.fc2.bias", [channels]


def rep_mixer_block(name, channels, train):
    mixer = f"{name}.token_mixer"
    if train:
        yield from mobile_one(f"{mixer}.norm", [channels, 1, 3, 3], True, True, False, branches=0)
        yield from mobile_one(f"{mixer}.mixer", [channels, 1, 3, 3], True, True, True)
        yield f"{mixer}.layer_scale.gamma", [channels, 1, 1]
    else:
        yield from mobile_one(mixer, [channels, 1, 3, 3], False, False, False)
    yield from feed_forward(f"{name}.mlp", channels)
    yield f"{name}.layer_scale.gamma", [channels, 1, 1]


def attention_block(name, channels):
    yield f"{name}.norm.weight", [channels]
    yield f"{name}.norm.bias", [channels]
    yield f"{name}.token_mixer.qkv.weight", [3 * channels, channels]
    yield f"{name}.token_mixer.proj.weight", [channels, channels]
    yield f"{name}.token_mixer.proj.bias", [channels]
    yield f"{name}.layer_scale_1.gamma", [channels, 1, 1]
    yield from feed_forward(f"{name}.mlp", channels)
    yield f"{name}.layer_scale_2.gamma", [channels, 1, 1]


def vision_tower(size, train):
    dims = size["embed_dims"]
    yield from mobile_one("stem.0", [dims[0], 3, 3, 3], train, False, False)
    yield from mobile_one("stem.1", [dims[0], 1, 3, 3], train, False, False)
    yield from mobile_one("stem.2", [dims[0], dims[0], 1, 1], train, True, False)
    for s, (channels, depth) in enumerate(zip(dims, size["layers"])):
        if s > 0:
            down = f"stages.{s}.downsample.proj"
            if train:
                yield from conv_bn(f"{down}.0.large_conv", [channels, 1, 7, 7])
                yield from conv_bn(f"{down}.0.small_conv", [channels, 1, 3, 3])
            else:
                yield from mobile_one(f"{down}.0", [channels, 1, 7, 7], False, False, False)
            yield from mobile_one(f"{down}.1", [channels, channels, 1, 1], train, True, False)
        if s >= 3:
            pos = "pos_enc" if train else "reparam_conv"
            yield f"stages.{s}.pos_emb.{pos}.weight", [channels, 1, 7, 7]
            yield f"stages.{s}.pos_emb.{pos}.bias", [channels]
        for b in range(depth):
            block = f"stages.{s}.blocks.{b}"
            yield from attention_block(block, channels) if s >= 3 else rep_mixer_block(block, channels, train)
    final = 2 * dims[-1]
    yield from mobile_one("final_conv", [final, 1, 3, 3], train, False, True)
    yield "final_conv.se.fc1.weight", [final // 16, final, 1, 1]
    yield "final_conv.se.fc1.bias", [final // 16]
    yield "final_conv.se.fc2.weight", [final, final // 16, 1, 1]
    yield "final_conv.se.fc2.bias", [final]


def decoder(size):
    hidden, inner = size["hidden_size"], size["intermediate_size"]
    head = hidden // size["num_attention_heads"]
    kv = size["num_key_value_heads"] * head
    yield "language_model.embed_tokens.weight", [size["vocab_size"], hidden]
    for i in range(size["num_hidden_layers"]):
        layer = f"language_model.layers.{i}"
        yield f"{layer}.input_layernorm.weight", [hidden]
        for part, rows in (("q", hidden), ("k", kv), ("v", kv)):
            yield f"{layer}.self_attn.{part}_proj.weight", [rows, hidden]
            yield f"{layer}.self_attn.{part}_proj.bias", [rows]
        yield f"{layer}.self_attn.o_proj.weight", [hidden, hidden]
        yield f"{layer}.post_attention_layernorm.weight", [hidden]
        yield f"{layer}.mlp.gate_proj.weight", [inner, hidden]
        yield f"{layer}.mlp.up_proj.weight", [inner, hidden]
        yield f"{layer}.mlp.down_proj.weight", [hidden, inner]
    yield "language_model.norm.weight", [hidden]
    if not size["tied"]:
        yield "lm_head.weight", [size["vocab_size"], hidden]


def tensors(size, layout):
    """(canonical name, shape) of every tensor in the order of the file."""
    for name, shape in vision_tower(size, layout == "transformers-train"):
        yield f"vision_tower.{name}", shape
    if layout == "llava":
        yield "vision_tower.head.proj", [2 * size["embed_dims"][-1], 768]
    hidden, features = size["hidden_size"], 2 * size["embed_dims"][-1]
    for part, columns in ((1, features), (2, hidden)):
        yield f"multi_modal_projector.linear_{part}.weight", [hidden, columns]
        yield f"multi_modal_projector.linear_{part}.bias", [hidden]
    yield from decoder(size)


# --- names in a file ----------------------------------------------------------------------------------------------

NETWORK = (0, 2, 4, 7, 10)
DOWNSAMPLING = (None, 1, 3, 5, 8)
POSITION = (None, None, None, 6, 9)


def llava_tower(name):
    name = re.sub(r"^stages\.(\d)\.blocks", lambda m: f"network.{NETWORK[int(m[1])]}", name)
    name = re.sub(r"^stages\.(\d)\.downsample", lambda m: f"network.{DOWNSAMPLING[int(m[1])]}", name)
    name = re.sub(r"^stages\.(\d)\.pos_emb", lambda m: f"network.{POSITION[int(m[1])]}", name)
    name = re.sub(r"\.proj\.0\.reparam_conv", ".proj.0.lkb_reparam", name)
    name = re.sub(r"^stem\.", "patch_embed.", name)
    name = re.sub(r"^final_conv\.", "conv_exp.", name)
    name = (
        name.replace(".se.fc1.", ".se.reduce.")
        .replace(".se.fc2.", ".se.expand.")
        .replace(".mlp.", ".convffn.")
    )
    return re.sub(r"\.gamma$", "", name)


def file_name(name, layout):
    """The canonical name as the layout spells it."""
    tower, projector, decoder_ = "vision_tower.", "multi_modal_projector.", "language_model."
    if layout != "llava":
        if name.startswith(tower):
            return "model.vision_tower.timm_model." + name[len(tower) :]
        return name if name.startswith("lm_head") else "model." + name
    if name.startswith(tower):
        return "model.vision_tower.vision_tower.model." + llava_tower(name[len(tower) :])
    if name.startswith(projector):
        return name.replace("multi_modal_projector.linear_1", "model.mm_projector.0").replace(
            "multi_modal_projector.linear_2", "model.mm_projector.2"
        )
    return "model." + name[len(decoder_) :] if name.startswith(decoder_) else name


# --- files --------------------------------------------------------------------------------------------------------


def stored(name, dtype):
    """(dtype in the header, bytes per element)."""
    return ("I64", 8) if name.endswith("num_batches_tracked") else DTYPES[dtype][:2]


def shards(entries, limit, dtype):
    """Splits the tensors, in order, into files of at most `limit` bytes of data."""
    parts, used = [[]], 0
    for name, shape in entries:
        length = math.prod(shape) * stored(name, dtype)[1]
        if parts[-1] and used + length > limit:
            parts.append([])
            used = 0
        parts[-1].append((name, shape))
        used += length
    return parts


def write_shard(path, entries, options):
    # 8-byte elements first: every tensor is then aligned to its element.
    entries = [e for e in entries if stored(e[0], "fp32")[0] == "I64"] + [
        e for e in entries if stored(e[0], "fp32")[0] != "I64"
    ]
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in entries:
        tag, width = stored(name, options.dtype)
        end = offset + math.prod(shape) * width
        header[file_name(name, options.layout)] = {
            "dtype": tag,
            "shape": shape,
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for name, shape in entries:
            if name.endswith("num_batches_tracked"):
                out.write((1000).to_bytes(8, "little"))
                continue
            count = math.prod(shape)
            for start in range(0, count, BLOCK):
                block = values(
                    options.seed,
                    name,
                    shape,
                    options.geometry,
                    options.outliers,
                    start,
                    min(BLOCK, count - start),
                )
                out.write(encode(block, options.dtype))


def write_json(path, value):
    text = json.dumps(value, indent=2, ensure_ascii=False)
    text = re.sub(r"(\d)e-0(\d)", r"\1e-\2", text)
    path.write_text(text + "\n", encoding="utf-8")


def decoder_config(size):
    return {
        "attention_dropout": 0.0,
        "bos_token_id": size["first_special"],
        "eos_token_id": size["first_special"] + 2,
        "hidden_act": "silu",
        "hidden_size": size["hidden_size"],
        "initializer_range": 0.02,
        "intermediate_size": size["intermediate_size"],
        "max_position_embeddings": size["max_position_embeddings"],
        "max_window_layers": size["num_hidden_layers"],
    }


def heads_config(size):
    return {
        "num_attention_heads": size["num_attention_heads"],
        "num_hidden_layers": size["num_hidden_layers"],
        "num_key_value_heads": size["num_key_value_heads"],
        "rms_norm_eps": 1e-6,
    }


def llava_config(size, options):
    config = {"architectures": ["LlavaQwen2ForCausalLM"]} | decoder_config(size)
    config |= (
        {
            "freeze_mm_mlp_adapter": False,
            "image_aspect_ratio": "pad",
            "image_grid_pinpoints": None,
            "mm_hidden_size": 2 * size["embed_dims"][-1],
            "mm_patch_merge_type": "flat",
            "mm_projector_lr": None,
            "mm_projector_type": "mlp2x_gelu",
            "mm_use_im_patch_token": False,
            "mm_use_im_start_end": False,
            "mm_vision_select_feature": "patch",
            "mm_vision_select_layer": -2,
            "mm_vision_tower": f"mobileclip_l_{size['image_size']}",
            "model_type": "llava_qwen2",
        }
        | heads_config(size)
        | {
            "rope_theta": 1000000.0,
            "sliding_window": 32768,
            "tie_word_embeddings": size["tied"],
            "tokenizer_model_max_length": 8192,
            "tokenizer_padding_side": "right",
            "torch_dtype": DTYPES[options.dtype][2],
            "transformers_version": "4.39.3",
            "tune_mm_mlp_adapter": False,
            "unfreeze_mm_vision_tower": True,
            "use_cache": True,
            "use_mm_proj": True,
            "use_sliding_window": False,
            "vocab_size": size["vocab_size"],
        }
    )
    if options.size == "demo":
        # Apple's dialect names the tower; a tower of another size has no published spelling. These fields are those
        # that the MLX conversions write.
        config["vision_config"] = {
            "embed_dims": size["embed_dims"],
            "layers": size["layers"],
            "mlp_ratios": [4] * 5,
            "token_mixers": ["repmixer"] * 3 + ["attention"] * 2,
            "pos_embs_shapes": [None] * 3 + [[7, 7]] * 2,
        }
    return config


def transformers_config(size, options):
    model_args = {"inference_mode": options.layout == "transformers"}
    if options.size == "demo":
        model_args = {"embed_dims": size["embed_dims"], "layers": size["layers"]} | model_args
    side = size["image_size"] // 64
    return {
        "architectures": ["FastVlmForConditionalGeneration"],
        "dtype": DTYPES[options.dtype][2],
        "image_seq_length": side * side,
        "image_token_index": size["first_special"] + 3,
        "model_type": "fast_vlm",
        "multimodal_projector_bias": True,
        "projector_hidden_act": "gelu",
        "text_config": decoder_config(size)
        | {"model_type": "qwen2"}
        | heads_config(size)
        | {
            "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"},
            "sliding_window": None,
            "tie_word_embeddings": size["tied"],
            "use_cache": True,
            "use_sliding_window": False,
            "vocab_size": size["vocab_size"],
        },
        "tie_word_embeddings": size["tied"],
        "transformers_version": "5.24.0",
        "vision_config": {
            "architecture": "fastvit_mci3",
            "do_pooling": True,
            "global_pool": "avg",
            "hidden_size": 2 * size["embed_dims"][-1],
            "initializer_range": 0.02,
            "model_args": model_args,
            "model_type": "timm_wrapper",
            "num_classes": 0,
        },
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
    }


def image_config(size):
    edge = size["image_size"]
    return {
        "crop_size": {"height": edge, "width": edge},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.0, 0.0, 0.0],
        "image_processor_type": "CLIPImageProcessor",
        "image_std": [1.0, 1.0, 1.0],
        "resample": 3,
        "rescale_factor": 0.00392156862745098,
        "size": {"shortest_edge": edge},
    }


def byte_vocabulary():
    """GPT-2's table: every byte as one printable character, the byte's value as its id."""
    printable = set(range(33, 127)) | set(range(161, 173)) | set(range(174, 256))
    spare = iter(range(256, 512))
    return {chr(b if b in printable else next(spare)): b for b in range(256)}


def stand_in_tokenizer(size):
    """A byte-level tokenizer without merges: every text is legal, no file is needed."""
    tokenizer = json.loads((SYNTH / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer["model"]["vocab"] = byte_vocabulary()
    return tokenizer


def tokenizer_of(size, options):
    """Checks a given tokenizer, or makes the stand-in; special tokens get the ids that the config declares."""
    if options.tokenizer:
        tokenizer = json.loads(Path(options.tokenizer).read_text(encoding="utf-8"))
    else:
        tokenizer = stand_in_tokenizer(size)
    names = TABLE["special_tokens"][: 3 if options.layout == "llava" else 4]
    special = {name: size["first_special"] + i for i, name in enumerate(names)}
    known = TABLE["special_tokens"]
    kept = [t for t in tokenizer["added_tokens"] if t["content"] not in known]
    for token in kept:
        if token["id"] >= size["first_special"]:
            raise SystemExit(
                f"error: added token `{token['content']}` of {options.tokenizer} has id {token['id']}, "
                f"expected ids below {size['first_special']}"
            )
    if any(i >= size["first_special"] for t, i in tokenizer["model"]["vocab"].items() if t not in known):
        raise SystemExit(
            f"error: the vocabulary of {options.tokenizer} is too large for this size: "
            f"expected ids below {size['first_special']}"
        )
    tokenizer["added_tokens"] = kept + [
        {
            "id": i,
            "content": name,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for name, i in special.items()
    ]
    vocab = {t: i for t, i in tokenizer["model"]["vocab"].items() if t not in known}
    # The library gives added tokens the ids after the vocabulary's last one, unless the vocabulary knows them.
    if len(vocab) != size["first_special"]:
        vocab |= special
    tokenizer["model"]["vocab"] = vocab
    return tokenizer


def write_text_files(out, size, options):
    llava = options.layout == "llava"
    write_json(
        out / "config.json", llava_config(size, options) if llava else transformers_config(size, options)
    )
    first = size["first_special"]
    write_json(
        out / "generation_config.json",
        {
            "bos_token_id": first,
            "do_sample": False,
            "eos_token_id": [first + 2, first],
            "pad_token_id": first,
            "transformers_version": "4.39.3" if llava else "5.24.0",
        },
    )
    write_json(out / "tokenizer.json", tokenizer_of(size, options))
    tokenizer_config = {
        "add_prefix_space": False,
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 8192 if llava else size["max_position_embeddings"],
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    if llava:
        tokenizer_config["chat_template"] = TABLE["templates"]["llava"]
    else:
        tokenizer_config |= {"image_token": "<image>", "processor_class": "LlavaProcessor"}
        (out / "chat_template.jinja").write_text(TABLE["templates"]["transformers"], encoding="utf-8")
        write_json(out / "preprocessor_config.json", image_config(size))
        write_json(
            out / "processor_config.json",
            {
                "image_processor": image_config(size),
                "image_token": "<image>",
                "num_additional_image_tokens": 0,
                "patch_size": 64,
                "processor_class": "LlavaProcessor",
                "vision_feature_select_strategy": "full",
            },
        )
    write_json(out / "tokenizer_config.json", tokenizer_config)


def write(options):
    size = options.geometry = TABLE["sizes"][options.size]
    out = Path(options.output)
    out.mkdir(parents=True, exist_ok=True)
    entries = list(tensors(size, options.layout))
    parts = shards(entries, options.shard_bytes, options.dtype)
    if len(parts) == 1:
        write_shard(out / "model.safetensors", parts[0], options)
    else:
        weight_map, total = {}, 0
        for i, part in enumerate(parts):
            file = f"model-{i + 1:05}-of-{len(parts):05}.safetensors"
            write_shard(out / file, part, options)
            for name, shape in part:
                weight_map[file_name(name, options.layout)] = file
                total += math.prod(shape) * stored(name, options.dtype)[1]
        write_json(
            out / "model.safetensors.index.json",
            {"metadata": {"total_size": total}, "weight_map": weight_map},
        )
    write_text_files(out, size, options)


def scene(width, height, seed):
    """The input image of `synth::image::scene`: a gradient, seven discs and noise, in integers only. [height, width, 3]"""

    def draw(k):
        return int(splitmix64(np.array([(seed * 1000003 + k) & (2**64 - 1)], dtype=np.uint64))[0])

    y, x = np.mgrid[0:height, 0:width].astype(np.int64)
    out = np.stack(
        [
            x * 255 // max(width - 1, 1),
            y * 255 // max(height - 1, 1),
            (x + y) * 255 // max(width + height - 2, 1),
        ],
        axis=-1,
    )
    edge = min(width, height)
    for disc in range(7):
        bits = draw(disc)
        cx, cy = bits % width, (bits >> 16) % height
        radius = edge // 16 + (bits >> 32) % max(edge // 5, 1)
        inside = (x - cx) ** 2 + (y - cy) ** 2 <= radius * radius
        out[inside] = [(bits >> 40) & 255, (bits >> 48) & 255, (bits >> 56) & 255]
    index = np.arange(width * height * 3, dtype=np.uint64) + np.uint64(seed << 32 & (2**64 - 1))
    noise = (splitmix64(index) >> np.uint64(60)).astype(np.int64).reshape(height, width, 3)
    return np.clip(out + noise - 8, 0, 255).astype(np.uint8)


# --- what both programs must agree on ---------------------------------------------------------------------------

HASHED_TENSORS = (
    ("demo", "vision_tower.stem.0.reparam_conv.weight", [16, 3, 3, 3], False),
    ("demo", "vision_tower.stages.2.blocks.1.token_mixer.reparam_conv.weight", [64, 1, 3, 3], False),
    ("demo", "vision_tower.stages.2.blocks.1.mlp.conv.bn.running_var", [64], False),
    ("0.5b", "vision_tower.stages.4.pos_emb.reparam_conv.weight", [1536, 1, 7, 7], False),
    ("0.5b", "language_model.layers.23.mlp.down_proj.weight", [896, 4864], False),
    ("0.5b", "language_model.layers.1.mlp.down_proj.weight", [896, 4864], True),
    ("0.5b", "language_model.layers.2.self_attn.k_proj.bias", [128], True),
    ("7b", "language_model.layers.0.self_attn.k_proj.bias", [512], True),
    ("7b", "language_model.norm.weight", [3584], True),
)
HASHED_FILES = (
    ("llava", "fp32", 1, False, DEFAULT_SHARD_BYTES),
    ("transformers", "bf16", 2, True, DEFAULT_SHARD_BYTES),
    ("transformers-train", "fp16", 3, False, 2_000_000),
    ("llava", "bf16", 18446744073709551615, True, 1_000_000),
)
HASHED_SCENES = ((320, 240, 1), (33, 200, 2), (1, 1, 3))


def hashes():
    def digest(data):
        return hashlib.sha256(data).hexdigest()

    found = {"tensors": [], "files": [], "scenes": []}
    for size, name, shape, outliers in HASHED_TENSORS:
        block = values(1, name, shape, TABLE["sizes"][size], outliers, 0, math.prod(shape))
        found["tensors"].append(
            {
                "size": size,
                "seed": 1,
                "name": name,
                "shape": shape,
                "outliers": outliers,
                "sha256": digest(encode(block, "fp32")),
            }
        )
    for layout, dtype, seed, outliers, shard_bytes in HASHED_FILES:
        with tempfile.TemporaryDirectory() as directory:
            write(
                argparse.Namespace(
                    size="demo",
                    layout=layout,
                    dtype=dtype,
                    seed=seed,
                    outliers=outliers,
                    shard_bytes=shard_bytes,
                    tokenizer=None,
                    output=directory,
                )
            )
            files = {path.name: digest(path.read_bytes()) for path in sorted(Path(directory).iterdir())}
        found["files"].append(
            {
                "layout": layout,
                "dtype": dtype,
                "seed": seed,
                "outliers": outliers,
                "shard_bytes": shard_bytes,
                "sha256": files,
            }
        )
    for width, height, seed in HASHED_SCENES:
        found["scenes"].append(
            {
                "width": width,
                "height": height,
                "seed": seed,
                "sha256": digest(scene(width, height, seed).tobytes()),
            }
        )
    return found


def main():
    path = SYNTH / "hashes.json"
    if sys.argv[1:] == ["--hashes"]:
        write_json(path, hashes())
    elif sys.argv[1:] == ["--check"]:
        if hashes() != json.loads(path.read_text(encoding="utf-8")):
            raise SystemExit(f"error: {path} is not what this program makes")
    else:
        write(options_of())


def options_of(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=list(TABLE["sizes"]), required=True)
    parser.add_argument("--layout", choices=LAYOUTS, required=True)
    parser.add_argument("--dtype", choices=list(DTYPES), default="fp32")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--outliers", action="store_true", help="plant massive activations")
    parser.add_argument("--shard-bytes", type=int, default=DEFAULT_SHARD_BYTES)
    parser.add_argument("--tokenizer", help="tokenizer.json to use instead of the stand-in")
    parser.add_argument("-o", "--output", required=True)
    return parser.parse_args(argv)


if __name__ == "__main__":
    with np.errstate(over="ignore"):
        main()
