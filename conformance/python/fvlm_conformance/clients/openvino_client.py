"""The same loop with OpenVINO in ONNX Runtime's place: it reads the graphs as they are.

python -m fvlm_conformance.clients.openvino_client BUNDLE DTYPE CASES.json
"""

from pathlib import Path

import openvino

from . import onnxruntime_plain, plain


class Session:
    """As much of an ONNX Runtime session as the loop needs."""

    core = openvino.Core()

    def __init__(self, path):
        # Float32 graphs in float32: OpenVINO would take bfloat16 where the processor has it.
        self.model = self.core.compile_model(Path(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def get_inputs(self):
        return [Port(port) for port in self.model.inputs]

    def get_outputs(self):
        return [Port(port) for port in self.model.outputs]

    def run(self, names, inputs):
        found = self.model(inputs)
        return [found[name] for name in names or [port.name for port in self.get_outputs()]]


class Port:
    def __init__(self, port):
        self.name, self.type = (
            port.any_name,
            "float16" if port.element_type == openvino.Type.f16 else "float32",
        )
        self.shape = [None if length.is_dynamic else length.get_length() for length in port.partial_shape]


onnxruntime_plain.onnxruntime.InferenceSession = Session
plain.main()
