"""OpenVINO's CPU plugin: torch.onnx's graph of the encoder, our portable graph of the decoder made stateful.

fp32, bf16: INFERENCE_PRECISION_HINT. int8: encoder by NNCF's post-training quantisation on crops of the image, decoder with
8-bit weights and activations quantised at run time.
"""

import numpy as np
import openvino
from openvino import opset13 as ops

from . import common

GROUP = 32
CROPS = 4


def only_last_position(model):
    """Cuts the head's input to the last position, as every runtime does that generates."""
    result = next(r for r in model.get_results() if "logits" in r.input_value(0).get_names())
    head = result.input_value(0).get_node()
    while head.get_type_name() != "MatMul":
        head = head.input_value(0).get_node()
    hidden, table = head.input_value(0), head.input_value(1)
    rows = len(hidden.get_partial_shape()) - 2
    last = ops.slice(
        hidden, np.array([-1]), np.array([np.iinfo(np.int64).max]), np.array([1]), np.array([rows])
    )
    logits = ops.matmul(
        last, table, head.get_attributes()["transpose_a"], head.get_attributes()["transpose_b"]
    )
    logits = ops.reshape(logits, np.array([1, 1, -1]), special_zero=False)
    result.input_value(0).set_names(set())
    logits.output(0).set_names({"logits"})
    result.input(0).replace_source_output(logits.output(0))
    model.validate_nodes_and_infer_types()


def make_stateful(model):
    """The cache becomes state of the request: no copies in and out."""
    from openvino._offline_transformations import apply_make_stateful_transformation

    pairs = {}
    for value in model.inputs:
        name = value.get_any_name()
        if name.startswith("past_key_values."):
            pairs[name] = name.replace("past_key_values", "present")
    apply_make_stateful_transformation(model, pairs)


def prepare_decoder(core, case, precision):
    path = case.cache / f"openvino_decoder_{'int8' if precision == 'int8' else 'fp32'}.xml"
    if not path.exists():
        source = case.bundle / "onnx" / "decoder_model_merged.onnx"
        model = core.read_model(source)
        shapes = {v.get_any_name(): v.get_partial_shape() for v in model.inputs}
        for shape in shapes.values():
            shape[0] = 1
        model.reshape(shapes)
        only_last_position(model)
        make_stateful(model)
        if precision == "int8":
            import nncf

            model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)
        openvino.save_model(model, path, compress_to_fp16=False)
    return path


def prepare_encoder(core, case, precision):
    path = case.cache / f"openvino_encoder_{'int8' if precision == 'int8' else 'fp32'}.xml"
    if not path.exists():
        from .torch_graphs import export_encoder

        model = core.read_model(export_encoder(case))
        if precision == "int8":
            import nncf

            data = nncf.Dataset(list(crops(case)))
            model = nncf.quantize(model, data, subset_size=CROPS, model_type=nncf.ModelType.TRANSFORMER)
        openvino.save_model(model, path, compress_to_fp16=False)
    return path


def crops(case):
    """The image and parts of it, as the encoder's input."""
    from PIL import Image

    image = Image.open(case.image).convert("RGB")
    for k in range(CROPS):
        edge = min(image.size) // (k + 1)
        yield common.pixels(image.crop((k * 7, k * 5, k * 7 + edge, k * 5 + edge)), case.edge)


class OpenVino:
    def __init__(self, case, precision, threads):
        self.case = case
        self.precision = precision
        self.threads = threads

    def prepare(self):
        core = openvino.Core()
        prepare_encoder(core, self.case, self.precision)
        prepare_decoder(core, self.case, self.precision)

    def load(self):
        core = openvino.Core()
        # Compiled models are kept: what the second start of a program finds.
        core.set_property({"CACHE_DIR": str(self.case.cache / "openvino")})
        hint = {"fp32": "f32", "bf16": "bf16", "int8": "bf16"}[self.precision]
        chosen = {
            "INFERENCE_NUM_THREADS": self.threads,
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_PRECISION_HINT": hint,
        }
        self.encoder = core.compile_model(prepare_encoder(core, self.case, self.precision), "CPU", chosen)
        if self.precision == "int8":
            chosen |= {"DYNAMIC_QUANTIZATION_GROUP_SIZE": GROUP, "INFERENCE_PRECISION_HINT": "f32"}
        self.decoder = core.compile_model(
            prepare_decoder(core, self.case, self.precision), "CPU", chosen
        ).create_infer_request()
        text = self.case.config["text_config"]
        self.table = np.memmap(self.case.bundle / "onnx" / "embed_tokens.onnx_data", np.float32, "r").reshape(
            -1, text["hidden_size"]
        )
        self.ids = np.array(self.case.prompt_ids)

    def preprocess(self, image):
        return common.pixels(image, self.case.edge)

    def encode(self, pixels):
        return self.encoder(pixels)[0][0]

    def prefill(self, features):
        embeds = self.table[self.ids]
        embeds[self.ids == self.case.image_token_id] = features
        self.decoder.reset_state()
        self.past = 0
        return self.decode(embeds)

    def step(self, token):
        return self.decode(self.table[token][None])

    def decode(self, embeds):
        total = self.past + len(embeds)
        self.decoder.infer(
            {
                "inputs_embeds": np.ascontiguousarray(embeds)[None],
                "attention_mask": np.ones([1, total], np.int64),
                "position_ids": np.arange(self.past, total)[None],
            }
        )
        self.past = total
        return self.decoder.get_tensor("logits").data[0, -1]


if __name__ == "__main__":
    common.run(OpenVino, __doc__, ["bf16", "fp32", "int8"], ["openvino"])
