"""transformers' FastVlmForConditionalGeneration with timm's tower, eager PyTorch."""

import numpy as np
import torch
from PIL import Image

from . import common


class Transformers:
    def __init__(self, case, precision, threads):
        self.case = case
        self.dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
        torch.set_num_threads(threads)

    def prepare(self):
        """The fp32 reference that all contestants are compared with."""
        path = self.case.cache / "reference.npz"
        if self.dtype == torch.float32 and not path.exists():
            self.load()
            image = Image.open(self.case.image).convert("RGB")
            features = self.encode(self.preprocess(image))
            logits = self.prefill(features)
            text = self.prefill_ids(self.case.text_ids())
            np.savez(path, features=features.numpy(), logits=logits, text_logits=text)

    def load(self):
        import transformers
        from transformers import FastVlmForConditionalGeneration

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        # The fast processor is the one that AutoProcessor takes.
        self.processor = transformers.AutoImageProcessor.from_pretrained(self.case.checkpoint)
        self.model = FastVlmForConditionalGeneration.from_pretrained(
            self.case.checkpoint, dtype=self.dtype
        ).eval()
        self.model.model.vision_tower.to(memory_format=torch.channels_last)
        self.ids = torch.tensor([self.case.prompt_ids])
        self.image_positions = self.ids == self.case.image_token_id

    def preprocess(self, image):
        pixels = self.processor(image, return_tensors="pt")["pixel_values"].to(self.dtype)
        return pixels.contiguous(memory_format=torch.channels_last)

    @torch.inference_mode()
    def encode(self, pixels):
        return self.model.model.get_image_features(pixels, return_dict=True).pooler_output[0]

    @torch.inference_mode()
    def prefill(self, features):
        from transformers import DynamicCache

        embeds = self.model.get_input_embeddings()(self.ids)
        embeds[self.image_positions] = features.to(embeds.dtype)
        self.cache = DynamicCache()
        return self.decode(embeds)

    @torch.inference_mode()
    def prefill_ids(self, ids):
        from transformers import DynamicCache

        self.cache = DynamicCache()
        return self.decode(self.model.get_input_embeddings()(torch.tensor([ids])))

    @torch.inference_mode()
    def step(self, token):
        return self.decode(self.model.get_input_embeddings()(torch.tensor([[token]])))

    def decode(self, embeds):
        out = self.model.model.language_model(
            inputs_embeds=embeds, use_cache=True, **{cache_argument(): self.cache}
        )
        return self.model.lm_head(out.last_hidden_state[:, -1])[0].float().numpy()


def cache_argument():
    """transformers 5.23 renamed it."""
    from transformers import __version__ as version

    return "cache" if tuple(map(int, version.split(".")[:2])) >= (5, 23) else "past_key_values"


if __name__ == "__main__":
    common.run(Transformers, __doc__, ["bf16", "fp32"], ["transformers", "timm", "torch"])
