#!/usr/bin/env python3
"""A FastVLM bundle without our runtime: image and question to words with onnxruntime, numpy, Pillow and tokenizers.

python onnxruntime_plain.py BUNDLE IMAGE QUESTION [SUFFIX]        SUFFIX of the graphs: `` (fp32), _fp16, _int8, _quantized, _q4, _q4f16
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image
from tokenizers import Tokenizer


def clip_pixels(p, image):
    """The shortest edge to its size, the middle cut out, normalised: `[1,3,H,W]`. `p` is preprocessor_config.json."""
    edge, crop = p["size"]["shortest_edge"], p["crop_size"]
    size = [edge if side == min(image.size) else edge * side // min(image.size) for side in image.size]
    image = image.convert("RGB").resize(size, Image.Resampling(p["resample"]))
    left, top = (image.width - crop["width"]) // 2, (image.height - crop["height"]) // 2
    image = image.crop((left, top, left + crop["width"], top + crop["height"]))
    values = (np.asarray(image) * p["rescale_factor"] - p["image_mean"]) / p["image_std"]
    return values.transpose(2, 0, 1)[None]


class FastVlm:
    def __init__(self, bundle, suffix=""):
        bundle = Path(bundle)
        self.config = json.loads((bundle / "config.json").read_text())
        self.processor = json.loads((bundle / "preprocessor_config.json").read_text())
        self.tokenizer = Tokenizer.from_file(str(bundle / "tokenizer.json"))
        names = ("vision_encoder", "embed_tokens", "decoder_model_merged")
        self.encoder, self.embedding, self.decoder = (
            onnxruntime.InferenceSession(bundle / "onnx" / f"{name}{suffix}.onnx") for name in names
        )
        stop = json.loads((bundle / "generation_config.json").read_text())["eos_token_id"]
        self.stop = set(stop) if isinstance(stop, list) else {stop}

    def ask(self, image, question, limit=64):
        """The greedy answer's token ids, without the stop token."""
        image_token = self.config["image_token_index"]
        pixels = clip_pixels(self.processor, image).astype(np.float32)
        (features,) = self.encoder.run(["image_features"], {"pixel_values": pixels})
        word = self.tokenizer.id_to_token(image_token)
        prompt = (
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
            f"<|im_start|>user\n{word}\n{question}<|im_end|>\n<|im_start|>assistant\n"
        )
        ids = []
        for token in self.tokenizer.encode(prompt, add_special_tokens=False).ids:
            ids += [token] * (features.shape[1] if token == image_token else 1)
        ids = np.array([ids])
        (embeds,) = self.embedding.run(None, {"input_ids": ids})
        embeds[ids == image_token] = features[0]
        return self.go_on(embeds, limit)

    def text(self, prompt, limit=64):
        """A prompt without an image, special tokens and all: its ids, and the greedy answer's."""
        ids = self.tokenizer.encode(prompt, add_special_tokens=False).ids
        return ids, self.go_on(self.embedding.run(None, {"input_ids": np.array([ids])})[0], limit)

    def go_on(self, embeds, limit):
        """The ids that follow `[1,positions,hidden]`, without the stop token."""
        cache = {}
        for port in self.decoder.get_inputs():
            if port.name.startswith("past_key_values."):
                kind = np.float16 if "float16" in port.type else np.float32
                cache[port.name] = np.zeros((1, port.shape[1], 0, port.shape[3]), kind)
        answer, past = [], 0
        while len(answer) < limit:
            total = past + embeds.shape[1]
            inputs = {
                "inputs_embeds": embeds,
                "attention_mask": np.ones((1, total), np.int64),
                "position_ids": np.arange(past, total)[None],
                **cache,
            }
            names = [port.name for port in self.decoder.get_outputs()]
            outputs = dict(zip(names, self.decoder.run(names, inputs)))
            token = int(outputs.pop("logits")[0, -1].argmax())
            if token in self.stop:
                break
            answer.append(token)
            cache = {name.replace("present", "past_key_values"): value for name, value in outputs.items()}
            embeds, past = self.embedding.run(None, {"input_ids": np.array([[token]])})[0], total
        return answer


if __name__ == "__main__":
    model = FastVlm(sys.argv[1], *sys.argv[4:])
    print(model.tokenizer.decode(model.ask(Image.open(sys.argv[2]), sys.argv[3])))
