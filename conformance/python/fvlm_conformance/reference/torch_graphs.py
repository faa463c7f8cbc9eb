"""Exports a FastVLM with torch.onnx, in the layout of transformers.js, as other people do: once by tracing, once by torch.export.

    python -m fvlm_conformance.reference.torch_graphs CHECKPOINT OUTPUT [trace|dynamo]      OUTPUT/trace/onnx and OUTPUT/dynamo/onnx

The graphs have no weights: each stored tensor lies in a data file beside its graph, which `clients/adopted.py` fills from a checkpoint of
the same geometry, by the tensor's name. So the graphs stay when the weights change.

`trace` (opset 17) is as the community's exports are: `position_ids`, `num_logits_to_keep`. `dynamo` (opset 20) has names of its own, no
`position_ids`, a batch of 1, logits of every position, and the features of all images in one list.
"""

import sys
from pathlib import Path

import onnx
import torch
from onnx import external_data_helper, numpy_helper

from .published import Transformers

# Longest stored tensor that is no weight: shapes, scales, axes.
MOST_INLINE = 64
NEGATIVE = -1e9


class Encoder(torch.nn.Module):
    def __init__(self, model, listed):
        super().__init__()
        self.m, self.listed = model, listed

    def forward(self, pixel_values):
        maps = self.m.model.vision_tower.timm_model.forward_features(pixel_values)
        features = self.m.model.multi_modal_projector(maps.flatten(2).permute(0, 2, 1))
        return features.flatten(0, 1) if self.listed else features


class Embedding(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.m = model

    def forward(self, input_ids):
        return self.m.model.language_model.embed_tokens(input_ids)


class Decoder(torch.nn.Module):
    """Qwen2 with explicit tensors, as export scripts write it: transformers' own forward makes masks that no tracer likes."""

    def __init__(self, model, traced):
        super().__init__()
        self.m, self.traced = model, traced

    def forward(self, inputs_embeds, attention_mask, *rest):
        language_model, config = self.m.model.language_model, self.m.config.text_config
        heads, groups = config.num_key_value_heads, config.num_attention_heads // config.num_key_value_heads
        (position_ids, keep), past = (rest[:2], rest[2:]) if self.traced else ((None, None), rest)
        batch, new, filled = inputs_embeds.shape[0], inputs_embeds.shape[1], past[0].shape[2]
        row, column = torch.arange(new) + filled, torch.arange(new + filled)
        mask = attention_mask.index_select(1, column)
        if position_ids is None:
            # As transformers does where nobody says: the mask's running sum.
            position_ids = (mask.cumsum(-1) - 1).clamp(min=0).index_select(1, row)
        seen = (column.reshape(1, 1, 1, -1) <= row.reshape(1, 1, -1, 1)) & (mask.reshape(batch, 1, 1, -1) > 0)
        bias = torch.where(seen, 0.0, NEGATIVE).repeat(1, 1, groups, 1)
        cos, sin = language_model.rotary_emb(inputs_embeds, position_ids)
        cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
        hidden, present = inputs_embeds, []
        for index, layer in enumerate(language_model.layers):
            attention = layer.self_attn
            width = attention.head_dim
            x = layer.input_layernorm(hidden)
            query = attention.q_proj(x).reshape(batch, -1, heads * groups, width).transpose(1, 2)
            key = attention.k_proj(x).reshape(batch, -1, heads, width).transpose(1, 2)
            value = attention.v_proj(x).reshape(batch, -1, heads, width).transpose(1, 2)
            key = torch.cat([past[2 * index], turn(key, cos, sin)], 2)
            value = torch.cat([past[2 * index + 1], value], 2)
            present += [key, value]
            query = turn(query, cos, sin).reshape(batch, heads, -1, width)
            scores = query @ key.transpose(2, 3) * width**-0.5 + bias
            mixed = (torch.softmax(scores, -1) @ value).reshape(batch, heads * groups, -1, width)
            mixed = mixed.transpose(1, 2).reshape(batch, -1, heads * groups * width)
            hidden = hidden + attention.o_proj(mixed)
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        hidden = language_model.norm(hidden)
        if keep is not None:
            # 0 is all.
            hidden = hidden[:, -keep:]
        return self.m.lm_head(hidden), *present


def turn(x, cos, sin):
    """Rotary positions."""
    half = x.shape[-1] // 2
    return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin


def without_weights(path, known):
    """Gives every stored tensor that is a weight a place in the graph's data file, by its name in the checkpoint."""
    model = onnx.load(str(path))
    offset = 0
    for tensor in model.graph.initializer:
        name = tensor.name.removeprefix("m.")
        bytes_ = numpy_helper.to_array(tensor).nbytes
        if name not in known:
            if bytes_ > MOST_INLINE:
                raise SystemExit(
                    f"error: {path.name}: `{tensor.name}` has {bytes_} bytes and is no weight of the checkpoint"
                )
            continue
        external_data_helper.set_external_data(tensor, f"{path.name}_data", offset, bytes_)
        tensor.ClearField("raw_data")
        tensor.ClearField("float_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        offset += bytes_
    for node in model.graph.node:
        # Where in somebody's Python it came from.
        node.ClearField("doc_string")
        node.ClearField("metadata_props")
    for value in [*model.graph.value_info, *model.graph.input, *model.graph.output, *model.graph.initializer]:
        value.ClearField("doc_string")
        value.ClearField("metadata_props")
    model.ClearField("metadata_props")
    model.graph.ClearField("metadata_props")
    model.graph.ClearField("value_info")
    path.write_bytes(model.SerializeToString())
    for extra in path.parent.glob(f"{path.name}.data"):
        extra.unlink()
    return offset


def caches(config, filled):
    width = config.hidden_size // config.num_attention_heads
    shape = (1, config.num_key_value_heads, filled, width)
    return [torch.rand(shape) for _ in range(2 * config.num_hidden_layers)]


def names(form, config):
    layers = range(config.num_hidden_layers)
    return [form.format(layer, part) for layer in layers for part in ("key", "value")]


def traced(model, side, folder):
    """torch.onnx's older exporter; names of weights stay where nothing is folded."""

    def write(name, module, inputs, inputs_are, outputs_are, axes):
        torch.onnx.export(
            module.eval(),
            inputs,
            str(folder / f"{name}.onnx"),
            input_names=inputs_are,
            output_names=outputs_are,
            dynamic_axes=axes,
            dynamo=False,
            opset_version=17,
            do_constant_folding=False,
            training=torch.onnx.TrainingMode.PRESERVE,
        )
        without_weights(folder / f"{name}.onnx", set(model.state_dict()))

    config = model.config.text_config
    past, present = names("past_key_values.{}.{}", config), names("present.{}.{}", config)
    sequence = {0: "batch_size", 1: "sequence_length"}
    images = {0: "batch_size"}
    write(
        "vision_encoder",
        Encoder(model, False),
        (torch.rand(2, 3, side, side),),
        ["pixel_values"],
        ["image_features"],
        {"pixel_values": images, "image_features": images},
    )
    write(
        "embed_tokens",
        Embedding(model),
        (torch.ones(2, 5, dtype=torch.int64),),
        ["input_ids"],
        ["inputs_embeds"],
        {"input_ids": sequence, "inputs_embeds": sequence},
    )
    axes = {"inputs_embeds": sequence, "position_ids": sequence, "logits": {0: "batch_size", 1: "kept"}}
    axes["attention_mask"] = {0: "batch_size", 1: "total_sequence_length"}
    axes |= {name: {0: "batch_size", 2: "past_sequence_length"} for name in past}
    axes |= {name: {0: "batch_size", 2: "total_sequence_length"} for name in present}
    write(
        "decoder_model_merged",
        Decoder(model, True),
        (
            torch.rand(1, 5, config.hidden_size),
            torch.ones(1, 8, dtype=torch.int64),
            torch.arange(3, 8).reshape(1, -1),
            torch.tensor(1),
            *caches(config, 3),
        ),
        ["inputs_embeds", "attention_mask", "position_ids", "num_logits_to_keep", *past],
        ["logits", *present],
        axes,
    )


def exported(model, side, folder):
    """torch.onnx over torch.export, without its optimiser: names of weights stay."""

    def write(name, module, inputs, inputs_are, outputs_are, shapes):
        torch.onnx.export(
            module.eval(),
            inputs,
            str(folder / f"{name}.onnx"),
            input_names=inputs_are,
            output_names=outputs_are,
            dynamic_shapes=shapes,
            dynamo=True,
            opset_version=20,
            optimize=False,
            external_data=False,
            verbose=False,
        )
        without_weights(folder / f"{name}.onnx", set(model.state_dict()))

    config = model.config.text_config
    past, present = names("past_{}_{}", config), names("present_{}_{}", config)
    dim = torch.export.Dim
    batch, length = dim("batch", max=64), dim("sequence", max=2048)
    new, filled, total = dim("new", max=1024), dim("filled", max=1024), dim("total", max=2048)
    write(
        "vision_encoder",
        Encoder(model, True),
        (torch.rand(2, 3, side, side),),
        ["pixels"],
        ["features"],
        ({0: batch},),
    )
    write(
        "embed_tokens",
        Embedding(model),
        (torch.ones(2, 5, dtype=torch.int64),),
        ["tokens"],
        ["embeddings"],
        ({0: batch, 1: length},),
    )
    write(
        "decoder_model_merged",
        Decoder(model, False),
        (torch.rand(1, 5, config.hidden_size), torch.ones(1, 8, dtype=torch.int64), *caches(config, 3)),
        ["embeddings", "mask", *past],
        ["scores", *present],
        ({1: new}, {1: total}, tuple({2: filled} for _ in past)),
    )


def main():
    checkpoint, output = sys.argv[1], Path(sys.argv[2])
    published = Transformers(checkpoint)
    side = published.preprocess.config["crop_size"]["height"]
    for way, export in (("trace", traced), ("dynamo", exported)):
        if sys.argv[3:] in ([], [way]):
            folder = output / way / "onnx"
            folder.mkdir(parents=True)
            with torch.no_grad():
                export(published.model, side, folder)


if __name__ == "__main__":
    main()
