"""The text decoder of a bundle in onnxruntime-genai, by the bundle's genai_config.json.

    python -m fvlm_conformance.clients.genai_client BUNDLE CASES.json

CASES: [{text, limit}, ..]; one line of JSON with the prompt's tokens and the answer's, of each.
"""

import json
import sys

import onnxruntime_genai

bundle, cases = sys.argv[1:]
model = onnxruntime_genai.Model(bundle)
tokenizer = onnxruntime_genai.Tokenizer(model)
for case in json.load(open(cases)):
    prompt = tokenizer.encode(case["text"])
    parameters = onnxruntime_genai.GeneratorParams(model)
    parameters.set_search_options(do_sample=False, max_length=len(prompt) + case["limit"])
    generator = onnxruntime_genai.Generator(model, parameters)
    generator.append_tokens(prompt)
    while not generator.is_done():
        generator.generate_next_token()
    answer = generator.get_sequence(0)[len(prompt) :]
    print(
        json.dumps({"prompt": [int(token) for token in prompt], "tokens": [int(token) for token in answer]}),
        flush=True,
    )
