"""Records what peft and LLaVA's builder make of a small model: the files of models/tests/data/adapters.

python -m fvlm_conformance.reference.adapters [CASE ...]

Needs PyTorch, transformers, timm and peft. A base is FastVLM in the geometry below; its values are a formula of
tensors' names, so that only names and shapes are kept. A case is what peft's `save_pretrained` or LLaVA's training
script leaves behind, `merged.safetensors`: the tensors of the base that `merge_and_unload` changed, and
`answers.safetensors`: the features of an image and the logits of a prompt about it, by transformers with these.
"""

import json
import shutil
import sys
from argparse import Namespace

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from torch import nn
from transformers import FastVlmConfig, FastVlmForConditionalGeneration, Qwen2Config, Qwen2ForCausalLM

from ..common import ROOT
from . import synth
from .published import transformers_name

OUT = ROOT / "models" / "tests" / "data" / "adapters"
SIZE = synth.TABLE["sizes"]["demo"] | {
    "image_size": 64,
    "embed_dims": [32] * 5,
    "layers": [1] * 5,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 20,
    "first_special": 16,
    "max_position_embeddings": 64,
    "tied": False,
}
# A prompt: 19 is the image.
PROMPT = [1, 19, 5, 9, 3, 14, 2]
# Batch normalisations keep what they measured in buffers.
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def values(name, shape):
    """The base's tensor of that name: of 7 bits, so that every float type holds them, and of a size at which a signal
    neither dies nor explodes."""
    seed = 7
    for byte in name.encode():
        seed = seed * 31 % 1009 + byte
    count = torch.Size(shape).numel()
    noise = ((torch.arange(count) * 17 + seed) % 61 - 30).reshape(shape).float()
    if len(shape) > 1:
        inputs, scale = torch.Size(shape[1:]).numel(), 1 / 8
        while scale * scale * 64 * inputs > 1:
            scale /= 2
        return noise * scale
    offset = 0 if name.endswith((".bias", ".running_mean")) else 0.75
    return offset + noise / 128


def picture(side):
    """An image as the tower takes it, row by row."""
    count = 3 * side * side
    return (torch.arange(count) * 7 % 61 / 64).reshape(1, 3, side, side)


# --- the models ---------------------------------------------------------------------------------------------------


def options(layout):
    return Namespace(size="demo", layout=layout, dtype="fp32")


def names(layout):
    """Name and shape of every tensor of a base."""
    return {synth.file_name(name, layout): shape for name, shape in synth.tensors(SIZE, layout)}


def fill(model, tensors):
    """Gives a model the base's values; every tensor has one."""
    state = {name: values(name, shape) for name, shape in tensors.items() if "num_batches" not in name}
    missing, unexpected = model.load_state_dict(state, strict=False)
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if missing or unexpected:
        raise SystemExit(
            f"error: the base does not fit the model: missing {missing}, unexpected {unexpected}"
        )
    return model.eval()


def transformers_model(layout="transformers"):
    config = FastVlmConfig(**synth.transformers_config(SIZE, options(layout)))
    return fill(FastVlmForConditionalGeneration(config), names(layout))


class Tree(nn.Module):
    """Modules with nothing but parameters and buffers, by their names."""

    def put(self, name, shape):
        head, _, rest = name.partition(".")
        if rest:
            if not hasattr(self, head):
                self.add_module(head, Tree())
            getattr(self, head).put(rest, shape)
        elif head in STATISTICS:
            self.register_buffer(head, torch.zeros(shape))
        else:
            self.register_parameter(head, nn.Parameter(torch.zeros(shape)))


class Llava(Qwen2ForCausalLM):
    """What LlavaQwen2ForCausalLM calls its parts; its own class needs transformers 4.39. Nothing is run here."""

    def __init__(self, tensors):
        config = synth.llava_config(SIZE, options("llava"))
        fields = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        fields += ("num_key_value_heads", "vocab_size", "tie_word_embeddings")
        super().__init__(Qwen2Config(**{name: config[name] for name in fields}))
        hidden, features = SIZE["hidden_size"], 2 * SIZE["embed_dims"][-1]
        self.model.mm_projector = nn.Sequential(
            nn.Linear(features, hidden), nn.GELU(), nn.Linear(hidden, hidden)
        )
        self.model.vision_tower = Tree()
        prefix = "model.vision_tower."
        for name, shape in tensors.items():
            if name.startswith(prefix):
                self.model.vision_tower.put(name[len(prefix) :], shape)


def llava_model():
    tensors = names("llava")
    return fill(Llava(tensors), tensors)


# --- what is trained ----------------------------------------------------------------------------------------------


def train(model, seed):
    """Noise in place of training."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.125)


def lora(**fields):
    # Without training B is 0, which would say nothing.
    return LoraConfig(**({"init_lora_weights": False, "base_model_name_or_path": "base"} | fields))


def save(model, directory, **how):
    model.save_pretrained(directory, **how)
    (directory / "README.md").unlink(missing_ok=True)


def changed(before, after):
    """The base's tensors that are others now."""
    if set(after) != set(before):
        raise SystemExit(f"error: merging changed names: {sorted(set(after) ^ set(before))}")
    return {
        name: tensor.float().contiguous().clone()
        for name, tensor in after.items()
        if not torch.equal(tensor, before[name])
    }


@torch.no_grad()
def answers(layout, state):
    """What transformers computes with these tensors."""
    model = transformers_model()
    renamed = {transformers_name(name) if layout == "llava" else name: state[name] for name in state}
    renamed.pop(None, None)
    missing, unexpected = model.load_state_dict(renamed, strict=False)
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if missing or unexpected:
        raise SystemExit(f"error: the merged model: missing {missing}, unexpected {unexpected}")
    pixels, ids = picture(SIZE["image_size"]), torch.tensor([PROMPT])
    features = model.model.get_image_features(pixels, return_dict=True).pooler_output
    logits = model(input_ids=ids, pixel_values=pixels).logits
    return {
        "image_features": torch.as_tensor(features).reshape(1, -1, SIZE["hidden_size"]).contiguous(),
        "input_ids": ids[0],
        "logits": logits[0].contiguous(),
    }


def snapshot(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def adapted(case, layout, make, seed, config, **how):
    """One adapter of peft, trained, saved, opened again and merged."""
    directory = case / "adapter"
    model = get_peft_model(make(), config)
    train(model, seed)
    save(model, directory, **how)
    base = make()
    before = snapshot(base)
    merged = PeftModel.from_pretrained(base, directory).merge_and_unload()
    return layout, [(directory.name, 1.0)], before, merged


def two_weighted(case, config, weights, second):
    """Two adapters by their weights: peft's `add_weighted_adapter`, `cat`, which is the exact sum."""
    for index, one in enumerate((config, second)):
        model = get_peft_model(transformers_model(), one)
        train(model, 40 + index)
        save(model, case / f"adapter{index}")
    base = transformers_model()
    before = snapshot(base)
    model = PeftModel.from_pretrained(base, case / "adapter0", adapter_name="a")
    model.load_adapter(case / "adapter1", adapter_name="b")
    model.add_weighted_adapter(["a", "b"], list(weights), "sum", combination_type="cat")
    merged = model.merge_and_unload(adapter_names=["sum"])
    used = [(f"adapter{index}", weight) for index, weight in enumerate(weights)]
    return "transformers", used, before, merged


def llava_lora(case, bias, **how):
    """LLaVA's training script: LoRA in the decoder, the projector and the tower trained beside it; then the steps of
    `builder.py`."""
    directory = case / "adapter"
    base = llava_model()
    linear = {
        name.split(".")[-1]
        for name, module in base.model.layers.named_modules()
        if isinstance(module, nn.Linear)
    }
    config = lora(r=4, lora_alpha=16, target_modules=sorted(linear), bias=bias, task_type="CAUSAL_LM")
    model = get_peft_model(base, config)
    for name, parameter in model.named_parameters():
        if "mm_projector" in name or ".patch_embed." in name or ".convffn.conv." in name:
            parameter.requires_grad_(True)
    train(model, 50)
    save(model, directory, **how)
    trained = {
        name: parameter.detach().clone()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and "lora_" not in name
    }
    torch.save(trained, directory / "non_lora_trainables.bin")
    synth.write_json(directory / "config.json", synth.llava_config(SIZE, options("llava")))

    base = llava_model()
    before = snapshot(base)
    trained = torch.load(directory / "non_lora_trainables.bin", map_location="cpu")
    # A bias of a layer that has LoRA lies one module deeper: peft loads it.
    plain = {name.removeprefix("base_model.model."): tensor for name, tensor in trained.items()}
    plain = {name: tensor for name, tensor in plain.items() if ".base_layer." not in name}
    unexpected = base.load_state_dict(plain, strict=False).unexpected_keys
    if unexpected:
        raise SystemExit(f"error: {unexpected} fit nothing")
    merged = PeftModel.from_pretrained(base, directory).merge_and_unload()
    return "llava", [(directory.name, 1.0)], before, merged


def projector_alone(case):
    """LLaVA's first stage: only the projector was trained, and only it is saved."""
    directory = case / "adapter"
    directory.mkdir()
    base = llava_model()
    before = snapshot(base)
    base.requires_grad_(False)
    base.model.mm_projector.requires_grad_(True)
    train(base, 60)
    projector = {name: tensor.detach() for name, tensor in base.named_parameters() if "mm_projector" in name}
    torch.save(projector, directory / "mm_projector.bin")
    return "llava", [(directory.name, 1.0)], before, base


# --- the cases ----------------------------------------------------------------------------------------------------

DECODER = ["q_proj", "v_proj", "up_proj", "down_proj"]
# The decoder, the projector and pointwise convolutions of the tower.
EVERYWHERE = [*DECODER, "linear_1", "linear_2", "fc1", "fc2", "embed_tokens", "lm_head"]

CASES = {
    "lora": lambda case: adapted(
        case, "transformers", transformers_model, 1, lora(r=4, lora_alpha=8, target_modules=EVERYWHERE)
    ),
    "lora-bin": lambda case: adapted(
        case,
        "transformers",
        transformers_model,
        2,
        lora(r=4, lora_alpha=8, target_modules=DECODER),
        safe_serialization=False,
    ),
    "rslora": lambda case: adapted(
        case,
        "transformers",
        transformers_model,
        3,
        lora(r=9, lora_alpha=6, use_rslora=True, target_modules=DECODER),
    ),
    "patterns": lambda case: adapted(
        case,
        "transformers",
        transformers_model,
        4,
        lora(
            r=2,
            lora_alpha=4,
            target_modules=DECODER,
            rank_pattern={r"layers\.[1-9]\.self_attn\.q_proj": 5, "q_proj": 3, "down_proj": 7},
            alpha_pattern={"(?!q)[a-z]+_proj": 3, "^model.language_model.layers.0.self_attn.q_proj": 10},
        ),
    ),
    "dora": lambda case: adapted(
        case,
        "transformers",
        transformers_model,
        5,
        lora(r=4, lora_alpha=8, use_dora=True, target_modules=[*DECODER, "linear_1", "fc1", "embed_tokens"]),
    ),
    "modules-to-save": lambda case: adapted(
        case,
        "transformers",
        transformers_model,
        6,
        lora(
            r=2,
            lora_alpha=4,
            bias="lora_only",
            target_modules=DECODER,
            modules_to_save=["multi_modal_projector", "lm_head"],
        ),
    ),
    "lora-bias": lambda case: adapted(
        case,
        "transformers",
        transformers_model,
        7,
        lora(r=2, lora_alpha=4, lora_bias=True, target_modules=["q_proj", "linear_1"]),
    ),
    "weighted": lambda case: two_weighted(
        case,
        lora(r=2, lora_alpha=8, target_modules=DECODER),
        (0.75, -0.5),
        lora(r=4, lora_alpha=4, target_modules=DECODER, use_rslora=True),
    ),
    "llava-lora": lambda case: llava_lora(case, "none"),
    "llava-bias": lambda case: llava_lora(case, "lora_only", safe_serialization=False),
    "llava-projector": projector_alone,
}


def record(name):
    case = OUT / name
    shutil.rmtree(case, ignore_errors=True)
    case.mkdir(parents=True)
    layout, adapters, before, model = CASES[name](case)
    merged = changed(before, model.state_dict())
    plain, found = answers(layout, before), answers(layout, before | merged)
    # Of what moves nothing, nothing would be seen.
    moved = [
        torch.dist(found[part], plain[part]) / plain[part].norm() for part in ("image_features", "logits")
    ]
    if moved[1] < 0.1:
        raise SystemExit(f"error: {name} moves the logits by {moved[1]:.4f} alone")
    save_file(merged, case / "merged.safetensors")
    save_file(found, case / "answers.safetensors")
    synth.write_json(case / "case.json", {"base": layout, "adapters": [list(one) for one in adapters]})
    print(f"{name}: {len(merged)} tensors; features move by {moved[0]:.3f}, logits by {moved[1]:.3f}")


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    for layout, config in (("transformers", synth.transformers_config), ("llava", synth.llava_config)):
        base = {"config": config(SIZE, options(layout)), "tensors": names(layout)}
        text = json.dumps(base, separators=(",", ":"))
        (OUT / f"{layout}.json").write_text(text + "\n", encoding="utf-8")
    for name in sys.argv[1:] or CASES:
        if name not in CASES:
            raise SystemExit(f"error: there is no case `{name}`, expected one of {', '.join(CASES)}")
        record(name)


if __name__ == "__main__":
    main()
