"""Programs that each run one engine on the shared case and print one JSON line."""

from collections import namedtuple

Peer = namedtuple("Peer", "module precision")

PEERS = {
    "transformers-bf16": Peer("transformers_peer", "bf16"),
    "transformers-fp32": Peer("transformers_peer", "fp32"),
    "onnxruntime-fp32": Peer("onnxruntime_peer", "fp32"),
    "openvino-bf16": Peer("openvino_peer", "bf16"),
    "openvino-int8": Peer("openvino_peer", "int8"),
    "genai-int4": Peer("genai_peer", "int4"),
    "llama-q4_0": Peer("llama_peer", "q4_0"),
}
