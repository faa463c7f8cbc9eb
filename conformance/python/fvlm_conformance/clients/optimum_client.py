"""The same loop with optimum's own class for graphs that are no task of its: ORTModelForCustomTasks.

    python -m fvlm_conformance.clients.optimum_client BUNDLE DTYPE CASES.json

Its classes for generation take no decoder of embeddings (ORTModelForCausalLM wants `input_ids`), nor three graphs of this kind.
"""

from pathlib import Path

import torch
from optimum.onnxruntime import ORTModelForCustomTasks
from transformers import PretrainedConfig

from . import onnxruntime_plain, plain


class Session:
    """As much of an ONNX Runtime session as the loop needs."""

    def __init__(self, path):
        path = Path(path)
        # transformers knows no `llava_qwen2`; the class needs no more than some config.
        self.model = ORTModelForCustomTasks.from_pretrained(
            path.parents[1],
            subfolder="onnx",
            file_name=path.name,
            config=PretrainedConfig(),
            use_io_binding=False,
        )

    def get_inputs(self):
        return self.model.session.get_inputs()

    def get_outputs(self):
        return self.model.session.get_outputs()

    def run(self, names, inputs):
        found = self.model(**{name: torch.from_numpy(value) for name, value in inputs.items()})
        return [found[name].numpy() for name in names or found]


onnxruntime_plain.onnxruntime.InferenceSession = Session
plain.main()
