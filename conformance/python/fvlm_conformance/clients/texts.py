"""Questions without a picture on a bundle of the demo model: onnxruntime-genai beside the same graphs in Python's onnxruntime and
in `fvlm-run`.

Nothing is recorded: a rounded graph answers as it does in the engine that its authors know, whatever fp32 says.
"""

import json
import subprocess

from .packages import ROOT, call

# Forms that onnxruntime-genai is asked: precision, and whether the bundle has one of target `cpu` beside it, of another name.
FORMS = (("fp32", True), ("fp16", False), ("int8", True), ("q8", False), ("q4", True), ("q4f16", False))

QUESTIONS = (
    "Describe the image.",
    "What is this?",
    "What color is the background?",
    "How many things do you see?",
    "What objects are there?",
    "What does it say?",
    "What are these?",
    "Hello.",
    "Which animals do you know?",
    "A cat sat on a red mat. Where did it sit, and what did it do there all day long?",
)
LIMIT = 24


def prompt(question):
    """What the demo model's template makes of a question in parts."""
    return (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        f"<|im_start|>user\n\n{question}<|im_end|>\n<|im_start|>assistant\n"
    )


def lines(command):
    """What a client says, a line of JSON for each question, or why it does not."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=ROOT)
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        raise ValueError(said[-1] if said else f"exit code {done.returncode}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def ours(binaries, bundle, precision):
    """What `fvlm-run` answers on the standard graphs, by ONNX Runtime."""
    command = [binaries / "fvlm-run", "--model", bundle, "--provider", "cpu", "--no-fallback", "--json"]
    form = ["--target", "portable", "--precision", precision, "--max-tokens", LIMIT]
    answers = (lines([*command, *form, "--prompt", question]) for question in QUESTIONS)
    return [answer["tokens"] for (answer,) in answers]


def compare(binaries, work, client, stop):
    """For each form: precision, how many answers are equal, of how many, and what went wrong instead. `client` makes commands."""
    asked = work / "texts.json"
    asked.write_text(json.dumps([{"text": prompt(question), "limit": LIMIT} for question in QUESTIONS]))
    for precision, beside in FORMS:
        bundle = work / f"bundle-text-{precision}"
        targets = ("portable", "cpu") if beside else ("portable",)
        call(
            binaries / "fvlm-export",
            *("--quiet", "--output", bundle, "--precision", precision),
            *(flag for target in targets for flag in ("--target", target)),
        )
        try:
            expected = lines([*client("plain"), bundle, precision, asked])
            found = lines([*client("genai_client"), bundle, asked])
            answers = list(zip(found, expected, ours(binaries, bundle, precision), strict=True))
        except ValueError as problem:
            yield precision, 0, len(QUESTIONS), str(problem)
            continue
        equal = sum(same(*answer, stop) for answer in answers)
        yield precision, equal, len(QUESTIONS), None


def same(found, expected, run, stop):
    """Whether all three have the same tokens, and onnxruntime-genai the same prompt; nobody agrees by saying nothing."""
    answer = [token for token in found["tokens"] if token not in stop]
    return found["prompt"] == expected["prompt"] and answer == expected["tokens"] == run and len(answer) > 0
