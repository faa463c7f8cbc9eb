"""llama.cpp's decoder through llama-cpp-python: GGUF written from the checkpoint, Q4_0 by llama.cpp's quantiser. No encoder."""

import numpy as np

from . import common
from .text_checkpoint import text_checkpoint


def write_f32(case, path):
    """The decoder as GGUF, architecture qwen2. The vocabulary is a stand-in: only ids are fed."""
    import gguf
    from safetensors.numpy import load_file

    text = case.config["text_config"]
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_context_length(text["max_position_embeddings"])
    writer.add_embedding_length(text["hidden_size"])
    writer.add_block_count(text["num_hidden_layers"])
    writer.add_feed_forward_length(text["intermediate_size"])
    writer.add_head_count(text["num_attention_heads"])
    writer.add_head_count_kv(text["num_key_value_heads"])
    writer.add_rope_freq_base(text["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(text["rms_norm_eps"])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([f"t{i}" for i in range(text["vocab_size"])])
    writer.add_token_types([gguf.TokenType.NORMAL] * text["vocab_size"])
    writer.add_token_merges(["t 0"])
    writer.add_eos_token_id(text["eos_token_id"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, text["num_hidden_layers"])
    for name, tensor in load_file(text_checkpoint(case) / "model.safetensors").items():
        found = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise SystemExit(f"error: no GGUF name for tensor {name}")
        writer.add_tensor(found, np.ascontiguousarray(tensor, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def quantised(case, threads):
    path = case.cache / "qwen2-q4_0.gguf"
    if not path.exists():
        import llama_cpp

        full = case.cache / "qwen2-f32.gguf"
        write_f32(case, full)
        chosen = llama_cpp.llama_model_quantize_default_params()
        chosen.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0
        chosen.nthread = threads
        partial = path.with_suffix(".part")
        if llama_cpp.llama_model_quantize(str(full).encode(), str(partial).encode(), chosen) != 0:
            raise SystemExit(f"error: llama.cpp could not quantise {full}")
        partial.rename(path)
        full.unlink()
    return path


class Llama:
    def __init__(self, case, precision, threads):
        self.case = case
        self.threads = threads

    def prepare(self):
        quantised(self.case, self.threads)

    def load(self):
        import llama_cpp

        self.llama = llama_cpp.Llama(
            str(quantised(self.case, self.threads)),
            n_ctx=1024,
            n_batch=512,
            n_ubatch=512,
            n_threads=self.threads,
            n_threads_batch=self.threads,
            use_mmap=True,
            verbose=False,
        )

    def prefill(self, _features):
        self.llama.reset()
        return self.feed(self.case.text_ids())

    def step(self, token):
        return self.feed([token])

    def feed(self, ids):
        import llama_cpp

        self.llama.eval(ids)
        pointer = llama_cpp.llama_get_logits_ith(self.llama.ctx, -1)
        return np.ctypeslib.as_array(pointer, shape=(self.llama.n_vocab(),))


if __name__ == "__main__":
    common.run(Llama, __doc__, ["q4_0"], ["llama-cpp-python"])
