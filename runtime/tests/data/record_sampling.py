"""Records `sampling.json`: what transformers' logits processors leave of some distributions.

Run with transformers 5.24.0 and torch 2.15.0: `python record_sampling.py` in this directory.
"""

import json
import pathlib

import torch
from transformers.generation.logits_process import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

torch.manual_seed(20261124)
SETTINGS = [
    # temperature, top_k, top_p, repetition_penalty
    (1.0, 0, 1.0, 1.0),
    (0.7, 0, 1.0, 1.0),
    (1.9, 0, 1.0, 1.0),
    (1.0, 5, 1.0, 1.0),
    (1.0, 1, 1.0, 1.0),
    (1.0, 99, 1.0, 1.0),
    (1.0, 0, 0.9, 1.0),
    (1.0, 0, 0.3, 1.0),
    (1.0, 0, 1e-6, 1.0),
    (1.0, 0, 1.0, 1.3),
    (1.0, 0, 1.0, 0.8),
    (0.6, 20, 0.95, 1.1),
    (1.4, 7, 0.8, 1.5),
]
cases = []
for round in range(2):
    for temperature, top_k, top_p, penalty in SETTINGS:
        logits = (torch.randn(1, 24) * 3 * (round + 1)).mul(64).round().div(64)
        if round == 1:
            logits[0, 3] = logits[0, 9]  # a tie
        context = torch.randint(0, 24, (1, 7))
        context[0, 1] = context[0, 0]  # an id that comes twice
        processors = LogitsProcessorList()
        if penalty != 1.0:
            processors.append(RepetitionPenaltyLogitsProcessor(penalty))
        if temperature != 1.0:
            processors.append(TemperatureLogitsWarper(temperature))
        if top_k:
            processors.append(TopKLogitsWarper(top_k))
        if top_p < 1.0:
            processors.append(TopPLogitsWarper(top_p))
        scores = processors(context, logits.clone())
        cases.append(
            {
                "logits": logits[0].tolist(),
                "context": context[0].tolist(),
                "temperature": temperature,
                "top_k": top_k,
                "top_p": top_p,
                "repetition_penalty": penalty,
                "probabilities": scores[0].double().softmax(-1).tolist(),
            }
        )
path = pathlib.Path(__file__).with_name("sampling.json")
lines = ",\n".join(json.dumps(case) for case in cases)
path.write_text('{"transformers": "5.24.0", "cases": [\n' + lines + "\n]}\n")
