"""The graphs that torch.onnx makes of transformers' model: encoder with projector, decoder with its cache."""

import numpy as np
import torch

from .transformers_peer import Transformers, cache_argument


class Encoder(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixel_values):
        return self.model.model.get_image_features(pixel_values, return_dict=True).pooler_output


class Decoder(torch.nn.Module):
    """Embeddings in, logits of the last position and the cache out."""

    def __init__(self, model):
        super().__init__()
        self.decoder, self.head = model.model.language_model, model.lm_head

    def forward(self, inputs_embeds, *past):
        from transformers import DynamicCache

        cache = DynamicCache()
        for layer in range(len(past) // 2):
            cache.update(past[2 * layer], past[2 * layer + 1], layer)
        length, new = past[0].shape[2], inputs_embeds.shape[1]
        rows = torch.arange(new)[:, None] + length
        mask = torch.where(torch.arange(length + new)[None] <= rows, 0.0, torch.finfo(torch.float32).min)[
            None, None
        ]
        out = self.decoder(
            inputs_embeds=inputs_embeds,
            attention_mask=mask,
            position_ids=rows.T,
            use_cache=True,
            **{cache_argument(): cache},
        )
        parts = [part for layer in cache.layers for part in (layer.keys, layer.values)]
        return (self.head(out.last_hidden_state[:, -1]), *parts)


def export_encoder(case):
    """torch.onnx's graph of tower and projector, exported once."""
    path = case.cache / "torch_encoder" / "encoder.onnx"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        source = Transformers(case, "fp32", 2)
        source.load()
        with torch.inference_mode():
            torch.onnx.export(
                Encoder(source.model).eval(),
                (torch.zeros(1, 3, case.edge, case.edge),),
                str(path),
                dynamo=True,
                input_names=["pixel_values"],
                output_names=["image_features"],
                external_data=True,
                verbose=False,
            )
    return path


def export_decoder(case):
    """torch.onnx's graph of the decoder with its cache as inputs and outputs, exported once."""
    path = case.cache / "torch_decoder" / "decoder.onnx"
    text = case.config["text_config"]
    layers, heads = text["num_hidden_layers"], text["num_key_value_heads"]
    head = text["hidden_size"] // text["num_attention_heads"]
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        source = Transformers(case, "fp32", 2)
        source.load()
        past = [torch.zeros(1, heads, 5, head) for _ in range(2 * layers)]
        names = [f"past.{i}.{part}" for i in range(layers) for part in ("key", "value")]
        new, length = torch.export.Dim("new", min=1, max=32768), torch.export.Dim("past", min=0, max=32768)
        with torch.inference_mode():
            torch.onnx.export(
                Decoder(source.model).eval(),
                (torch.zeros(1, 7, text["hidden_size"]), *past),
                str(path),
                dynamo=True,
                input_names=["inputs_embeds"] + names,
                output_names=["logits"] + [name.replace("past", "present") for name in names],
                dynamic_shapes=({1: new}, tuple({2: length} for _ in past)),
                external_data=True,
                verbose=False,
            )
            table = source.model.get_input_embeddings().weight.detach().numpy()
            np.save(path.parent / "embedding.npy", table)
    return path
