"""Which published code computes a reference, and how its parts are called.

`Transformers` is FastVlmForConditionalGeneration with timm's tower. `Apple` is the tower of a clone of
apple/ml-fastvlm with transformers' Qwen2 behind it, joined as `llava_arch.py` does. Both offer the same five
methods, so that the recorder does not know which one it records.
"""

import importlib.util
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

# As upstream's conversion script: the original implementation uses plain attention.
os.environ.setdefault("TIMM_FUSED_ATTN", "0")

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open

STAGES = 5


def read_json(path):
    return json.loads(Path(path).read_text(encoding="utf-8"))


def read_tensors(directory):
    """Every tensor of a checkpoint, floats as float32."""
    tensors = {}
    for file in sorted(Path(directory).glob("*.safetensors")):
        with safe_open(file, "pt") as handle:
            for name in handle.keys():
                tensor = handle.get_tensor(name)
                tensors[name] = tensor.float() if tensor.is_floating_point() else tensor
    return tensors


# --- names of Apple's layout in transformers' ---------------------------------------------------------------------

BLOCKS = {"0": 0, "2": 1, "4": 2, "7": 3, "10": 4}
DOWNSAMPLING = {"1": 1, "3": 2, "5": 3, "8": 4}
POSITION = {"6": 3, "9": 4}


def transformers_name(name):
    """The name that a tensor of Apple's layout has in transformers', or None for the tower's unused head."""
    tower = "model.vision_tower.vision_tower.model."
    if not name.startswith(tower):
        name = name.replace("model.mm_projector.0.", "model.multi_modal_projector.linear_1.")
        name = name.replace("model.mm_projector.2.", "model.multi_modal_projector.linear_2.")
        return re.sub(r"^model\.(layers|norm|embed_tokens)\.", r"model.language_model.\1.", name)
    name = name[len(tower) :]
    if name.startswith("head."):
        return None
    name = re.sub(
        r"^network\.(\d+)\.(proj|reparam_conv)\.",
        lambda m: (
            f"stages.{DOWNSAMPLING[m[1]]}.downsample.proj."
            if m[2] == "proj"
            else f"stages.{POSITION[m[1]]}.pos_emb.reparam_conv."
        ),
        name,
    )
    name = re.sub(r"^network\.(\d+)\.", lambda m: f"stages.{BLOCKS[m[1]]}.blocks.", name)
    name = re.sub(r"^patch_embed\.", "stem.", name)
    name = re.sub(r"^conv_exp\.", "final_conv.", name)
    name = re.sub(r"(layer_scale(_[12])?)$", r"\1.gamma", name)
    name = name.replace("lkb_reparam", "reparam_conv").replace(".convffn.", ".mlp.")
    name = name.replace(".se.reduce.", ".se.fc1.").replace(".se.expand.", ".se.fc2.")
    return "model.vision_tower.timm_model." + name


def tied(state):
    """Whether the head is the embedding table: the tensors say so, the flag in published configs is not always right."""
    return "lm_head.weight" not in state


def load_strictly(module, state, head_is_tied):
    """Fills every parameter; the head of a tied model may be absent."""
    missing, unexpected = module.load_state_dict(state, strict=False)
    missing = [name for name in missing if not (head_is_tied and name == "lm_head.weight")]
    if missing or unexpected:
        raise SystemExit(f"error: weights do not fit the model: missing {missing}, unexpected {unexpected}")
    if head_is_tied:
        module.tie_weights()


# --- images -------------------------------------------------------------------------------------------------------


class Preprocessing:
    """CLIP's processor on Pillow, with LLaVA's padding to a square where the layout asks for it."""

    def __init__(self, config, pad):
        self.config = config
        self.processor = clip_processor(config)
        self.pad = pad

    def at_size(self, side):
        """The same for images of another size: the resize keeps its relation to the crop."""
        crop = self.config["crop_size"]
        crop = crop["height"] if isinstance(crop, dict) else crop
        edge = (self.config["size"]["shortest_edge"] * side + crop // 2) // crop
        return Preprocessing(
            self.config | {"size": {"shortest_edge": edge}, "crop_size": {"height": side, "width": side}},
            self.pad,
        )

    def __call__(self, images):
        squares = [
            self.square(image.convert("RGB")) if self.pad else image.convert("RGB") for image in images
        ]
        return self.processor(squares, return_tensors="pt")["pixel_values"].float()

    def square(self, image):
        side = max(image.size)
        out = Image.new("RGB", (side, side), tuple(int(m * 255) for m in self.processor.image_mean))
        out.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        return out


def clip_processor(config):
    # The Pillow backend is the one that the published checkpoints were made with.
    try:
        from transformers import CLIPImageProcessorPil as processor
    except ImportError:
        from transformers import CLIPImageProcessor as processor
    keys = (
        "size",
        "crop_size",
        "do_resize",
        "do_center_crop",
        "do_rescale",
        "do_normalize",
        "image_mean",
        "image_std",
        "resample",
        "rescale_factor",
        "do_convert_rgb",
    )
    return processor(**{k: config[k] for k in keys if k in config})


# --- the two implementations --------------------------------------------------------------------------------------


class Decoding:
    """What both share: transformers' Qwen2 with its head, an explicit mask and explicit positions."""

    def embed(self, ids):
        return self.language_model.embed_tokens(torch.tensor(ids, dtype=torch.int64))

    @torch.no_grad()
    def decode(self, embeds, mask, positions, cache):
        """Logits of every position given, and the cache after them."""
        from transformers import DynamicCache

        cache = cache if cache is not None else DynamicCache()
        out = self.language_model(
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=positions,
            use_cache=True,
            **{self.cache_argument: cache},
        )
        return self.head(out.last_hidden_state), cache

    @property
    def cache_argument(self):
        from transformers import __version__ as version

        return "cache" if tuple(map(int, version.split(".")[:2])) >= (5, 23) else "past_key_values"

    @staticmethod
    def keys_and_values(cache, layer):
        return cache.layers[layer].keys, cache.layers[layer].values

    @torch.no_grad()
    def encode(self, pixels):
        """Outputs of stem, stages, final convolution and projector, by value name."""
        found, hooks = {}, []
        for name, module in self.taps().items():
            hooks.append(
                module.register_forward_hook(
                    lambda _m, _i, out, name=name: found.__setitem__(
                        f"vision_tower.{name}", out.detach().clone()
                    )
                )
            )
        try:
            found["image_features"] = self.features(pixels)
        finally:
            for hook in hooks:
                hook.remove()
        return found


class Transformers(Decoding):
    """FastVlmForConditionalGeneration; Apple's layout is renamed first."""

    def __init__(self, source):
        from transformers import FastVlmConfig, FastVlmForConditionalGeneration

        config = read_json(Path(source) / "config.json") if Path(source).is_dir() else {}
        llava = config.get("model_type", "").startswith("llava")
        if llava:
            state = {transformers_name(n): t for n, t in read_tensors(source).items()}
            state.pop(None, None)
            config["tie_word_embeddings"] = tied(state)
            self.model = FastVlmForConditionalGeneration(FastVlmConfig(**converted_config(config)))
            load_strictly(self.model, state, tied(state))
            edge = int(config["mm_vision_tower"].split("_")[-1])
            image_config = {
                "size": {"shortest_edge": edge},
                "crop_size": {"height": edge, "width": edge},
                "image_mean": [0.0] * 3,
                "image_std": [1.0] * 3,
            }
        else:
            self.model, info = FastVlmForConditionalGeneration.from_pretrained(
                source, dtype=torch.float32, output_loading_info=True
            )
            bad = {k: sorted(v) for k, v in info.items() if v and k != "error_msgs"}
            if bad:
                raise SystemExit(f"error: weights do not fit the model: {bad}")
            image_config = image_processor_config(source)
        self.model.eval()
        self.llava = llava
        self.architecture = "transformers FastVlmForConditionalGeneration, timm tower"
        if llava:
            self.architecture += ", tensors of Apple's layout renamed"
        self.language_model = self.model.model.language_model
        self.head = self.model.lm_head
        self.preprocess = Preprocessing(image_config, llava and config.get("image_aspect_ratio") == "pad")

    def modules(self):
        return [self.model]

    def taps(self):
        tower = self.model.model.vision_tower.timm_model
        taps = {"stem": tower.stem, "final_conv": tower.final_conv}
        return taps | {f"stages.{s}": stage for s, stage in enumerate(tower.stages)}

    def features(self, pixels):
        return self.model.model.get_image_features(pixels, return_dict=True).pooler_output

    @torch.no_grad()
    def whole(self, ids, pixels):
        """Logits of the last position by the model's own forward, for one row."""
        out = self.model(input_ids=torch.tensor([ids]), pixel_values=pixels, logits_to_keep=1)
        return out.logits[:, -1]


class Apple(Decoding):
    """The tower of apple/ml-fastvlm (`mci.py`), its projector, and transformers' Qwen2ForCausalLM."""

    def __init__(self, source, repository):
        from transformers import Qwen2Config, Qwen2ForCausalLM

        config = read_json(Path(source) / "config.json")
        if config.get("model_type") != "llava_qwen2":
            raise SystemExit(
                f"error: --apple-repo needs Apple's layout, found model_type {config.get('model_type')}"
            )
        state = read_tensors(source)
        config["tie_word_embeddings"] = tied(state)
        mci = import_file(Path(repository) / "llava/model/multimodal_encoder/mobileclip/mci.py")
        self.tower = apple_tower(mci, config.get("vision_config"))
        prefix = "model.vision_tower.vision_tower.model."
        load_strictly(
            self.tower, {n[len(prefix) :]: state.pop(n) for n in list(state) if n.startswith(prefix)}, False
        )
        self.projector = torch.nn.Sequential(
            torch.nn.Linear(config["mm_hidden_size"], config["hidden_size"]),
            torch.nn.GELU(),
            torch.nn.Linear(config["hidden_size"], config["hidden_size"]),
        )
        prefix = "model.mm_projector."
        load_strictly(
            self.projector,
            {n[len(prefix) :]: state.pop(n) for n in list(state) if n.startswith(prefix)},
            False,
        )
        model = Qwen2ForCausalLM(Qwen2Config(**decoder_fields(config)))
        load_strictly(model, state, tied(state))
        for module in (self.tower, self.projector, model):
            module.eval()
        self.llava = True
        self.architecture = f"apple/ml-fastvlm mci.py {commit_of(repository)}, transformers Qwen2ForCausalLM"
        self.language_model, self.head = model.model, model.lm_head
        self.decoder = model
        edge = int(config["mm_vision_tower"].split("_")[-1])
        self.preprocess = Preprocessing(
            {
                "size": {"shortest_edge": edge},
                "crop_size": {"height": edge, "width": edge},
                "image_mean": [0.0] * 3,
                "image_std": [1.0] * 3,
            },
            config.get("image_aspect_ratio") == "pad",
        )

    def modules(self):
        return [self.tower, self.projector, self.decoder]

    def taps(self):
        last_blocks = {f"stages.{s}": self.tower.network[i] for s, i in enumerate((0, 2, 4, 7, 10))}
        return {"stem": self.tower.patch_embed, "final_conv": self.tower.conv_exp} | last_blocks

    def features(self, pixels):
        out = self.tower(pixels, return_image_embeddings=True)["image_embeddings"]
        return self.projector(out.flatten(2).transpose(1, 2))

    whole = None


def import_file(path):
    spec = importlib.util.spec_from_file_location("apple_mci", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def apple_tower(mci, custom):
    if not custom:
        tower = mci.fastvithd(num_classes=768)
    else:
        # The body of `fastvithd()` with other sizes.
        positions = [
            mci.partial(mci.RepCPE, spatial_shape=tuple(p)) if p else None for p in custom["pos_embs_shapes"]
        ]
        tower = mci.FastViT(
            custom["layers"],
            token_mixers=tuple(custom["token_mixers"]),
            embed_dims=custom["embed_dims"],
            pos_embs=positions,
            mlp_ratios=custom["mlp_ratios"],
            downsamples=[True] * STAGES,
            norm_layer=mci.LayerNormChannel,
            stem_scale_branch=False,
            inference_mode=True,
            num_classes=768,
        )
    features = tower.head.in_features
    tower.head = mci.GlobalPool2D(in_dim=features, out_dim=768)
    return tower


def commit_of(repository):
    found = subprocess.run(
        ["git", "-C", str(repository), "rev-parse", "HEAD"], capture_output=True, text=True
    )
    stamp = Path(repository) / "COMMIT"
    return (
        found.stdout.strip()
        if found.returncode == 0
        else (stamp.read_text().strip() if stamp.exists() else "at an unknown commit")
    )


def decoder_fields(config):
    keys = (
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "intermediate_size",
        "vocab_size",
        "rms_norm_eps",
        "max_position_embeddings",
        "tie_word_embeddings",
        "hidden_act",
        "attention_dropout",
        "use_sliding_window",
        "bos_token_id",
        "eos_token_id",
    )
    fields = {k: config[k] for k in keys if k in config}
    return fields | {"rope_parameters": {"rope_theta": config["rope_theta"], "rope_type": "default"}}


def converted_config(config):
    """Apple's config in transformers' dialect."""
    args = {"inference_mode": True}
    custom = config.get("vision_config") or {}
    args |= {k: custom[k] for k in ("embed_dims", "layers") if k in custom}
    return {
        "vision_config": {
            "model_type": "timm_wrapper",
            "architecture": "fastvit_mci3",
            "do_pooling": True,
            "global_pool": "avg",
            "hidden_size": config["mm_hidden_size"],
            "model_args": args,
            "num_classes": 0,
        },
        "text_config": decoder_fields(config) | {"model_type": "qwen2"},
        "tie_word_embeddings": config["tie_word_embeddings"],
        "image_token_index": config.get("image_token_index", 151646),
    }


def image_processor_config(source):
    """The image processor's fields: part of the processor's, or a file of their own, as transformers looks for them."""
    for name, key in (("processor_config.json", "image_processor"), ("preprocessor_config.json", None)):
        found = find_file(source, name)
        if found is not None:
            config = read_json(found)
            fields = config if key is None else config.get(key)
            if fields is not None:
                return fields
    raise SystemExit(f"error: {source} has neither preprocessor_config.json nor processor_config.json")


def find_file(source, name):
    """A file of a directory or of a hub's repository; None where there is none."""
    if Path(source).is_dir():
        path = Path(source) / name
        return path if path.exists() else None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return hf_hub_download(source, name)
    except EntryNotFoundError:
        return None


def versions():
    import PIL
    import timm
    import tokenizers
    import transformers

    return {
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "timm": timm.__version__,
        "tokenizers": tokenizers.__version__,
        "pillow": PIL.__version__,
        "numpy": np.__version__,
    }


def rms(tensor):
    return math.sqrt(float(tensor.double().pow(2).mean()))
