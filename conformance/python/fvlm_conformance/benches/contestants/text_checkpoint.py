"""The decoder of the checkpoint as a plain Qwen2ForCausalLM, which converters of text models read."""

import json
import shutil

from safetensors import safe_open
from safetensors.torch import save_file


def text_checkpoint(case):
    out = case.cache / "qwen2"
    if (out / "config.json").exists():
        return out
    out.mkdir(exist_ok=True)
    tensors = {}
    for file in sorted(case.checkpoint.glob("*.safetensors")):
        with safe_open(file, "pt") as handle:
            for name in handle.keys():
                if name.startswith("model.language_model."):
                    tensors["model." + name.removeprefix("model.language_model.")] = handle.get_tensor(name)
                elif name == "lm_head.weight":
                    tensors[name] = handle.get_tensor(name)
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    for name in ("generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(case.checkpoint / name, out / name)
    text = case.config["text_config"]
    config = text | {
        "architectures": ["Qwen2ForCausalLM"],
        "dtype": case.config["dtype"],
        "tie_word_embeddings": "lm_head.weight" not in tensors,
        "rope_theta": text["rope_parameters"]["rope_theta"],
    }
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return out
