"""onnxruntime-genai on a bundle of ours as it is, by its genai_config.json: the text decoder in standard operators."""

from . import common
from .genai_peer import Genai


class Bundle(Genai):
    def __init__(self, case, precision, threads):
        super().__init__(case, precision, threads)
        self.directory = case.work / "bundles" / f"portable-{precision}"

    def prepare(self):
        """Exported by `ours.Ours`."""


if __name__ == "__main__":
    precisions = ["q4", "q8", "int8", "q4f16", "fp16", "fp32"]
    common.run(Bundle, __doc__, precisions, ["onnxruntime-genai", "onnxruntime"])
