"""onnxruntime-genai's decoder from its own model builder: int4 blocks of 32, accuracy level 4. No encoder."""

import json
import subprocess
import sys

import numpy as np

from . import common
from .text_checkpoint import text_checkpoint


def build(case):
    out = case.cache / "genai_int4"
    if not (out / "genai_config.json").exists():
        command = [
            sys.executable,
            "-m",
            "onnxruntime_genai.models.builder",
            "-i",
            str(text_checkpoint(case)),
            "-o",
            str(out),
            "-p",
            "int4",
            "-e",
            "cpu",
            "-c",
            str(case.cache / "genai_temporary"),
            "--extra_options",
            "int4_accuracy_level=4",
            "int4_block_size=32",
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise SystemExit(f"error: the model builder ended with {done.returncode}: {done.stderr[-2000:]}")
    return out


class Genai:
    def __init__(self, case, precision, threads):
        self.case = case
        self.threads = threads
        self.generator = None
        # Of what is run; built where there is none.
        self.directory = None

    def prepare(self):
        build(self.case)

    def load(self):
        import onnxruntime_genai

        self.genai = onnxruntime_genai
        config = onnxruntime_genai.Config(str(self.directory or build(self.case)))
        session = {"intra_op_num_threads": self.threads}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
        self.model = onnxruntime_genai.Model(config)

    def start(self):
        parameters = self.genai.GeneratorParams(self.model)
        parameters.set_search_options(max_length=2048, do_sample=False)
        self.generator = self.genai.Generator(self.model, parameters)

    def prefill(self, _features):
        self.generator = None
        self.start()
        return self.feed(np.array(self.case.text_ids(), np.int32))

    def step(self, token):
        return self.feed(np.array([token], np.int32))

    def feed(self, ids):
        self.generator.append_tokens(ids)
        return self.generator.get_logits()[0, -1]


if __name__ == "__main__":
    common.run(Genai, __doc__, ["int4"], ["onnxruntime-genai", "onnxruntime"])
