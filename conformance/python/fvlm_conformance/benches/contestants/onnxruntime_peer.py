"""ONNX Runtime's CPU provider on the graphs that torch.onnx makes of transformers' model."""

import numpy as np

from . import common


def session(path, threads):
    import onnxruntime

    chosen = onnxruntime.SessionOptions()
    chosen.intra_op_num_threads = threads
    chosen.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), chosen, providers=["CPUExecutionProvider"])


class OnnxRuntime:
    def __init__(self, case, precision, threads):
        self.case = case
        self.threads = threads

    def prepare(self):
        from .torch_graphs import export_decoder, export_encoder

        export_encoder(self.case)
        export_decoder(self.case)

    def load(self):
        self.encoder = session(self.case.cache / "torch_encoder" / "encoder.onnx", self.threads)
        decoder = self.case.cache / "torch_decoder" / "decoder.onnx"
        self.decoder = session(decoder, self.threads)
        self.table = np.load(decoder.parent / "embedding.npy", mmap_mode="r")
        self.past = [i for i in self.decoder.get_inputs() if i.name != "inputs_embeds"]
        self.ids = np.array(self.case.prompt_ids)

    def preprocess(self, image):
        return common.pixels(image, self.case.edge)

    def encode(self, pixels):
        return self.encoder.run(None, {"pixel_values": pixels})[0][0]

    def prefill(self, features):
        embeds = self.table[self.ids]
        embeds[self.ids == self.case.image_token_id] = features
        self.cache = [np.zeros([1, i.shape[1], 0, i.shape[3]], np.float32) for i in self.past]
        return self.decode(embeds)

    def step(self, token):
        return self.decode(self.table[token][None])

    def decode(self, embeds):
        inputs = {"inputs_embeds": embeds[None]} | {i.name: part for i, part in zip(self.past, self.cache)}
        logits, *self.cache = self.decoder.run(None, inputs)
        return logits[0]


if __name__ == "__main__":
    common.run(OnnxRuntime, __doc__, ["fp32"], ["onnxruntime", "torch"])
