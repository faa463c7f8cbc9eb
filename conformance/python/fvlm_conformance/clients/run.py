"""Opens freshly exported bundles of the demo model with other people's clients, and compares tokens with the recorded ones.

    conformance/clients/run                 from anywhere; needs a release build's tools, Python with pip, and Node.js with npm
    conformance/clients/run --optimum       optimum too, which brings torch: gigabytes, unless PIP_FIND_LINKS has a build for CPUs
    conformance/clients/run --prepare       only brings what the clients are, from PyPI and npm

A table on stdout: client, version, precision, tokens equal to the reference. Exit code 1 if one is not.
"""

import contextlib
import functools
import http.server
import importlib.metadata
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import threading

from . import texts
from .packages import HERE, ROOT, call, node_packages

# Precisions that the WebAssembly engine runs.
BROWSER = ("fp32", "fp16", "int8", "q4")

# Those of standard graphs with rounded weights, target `portable`.
STANDARD = ("int8", "q8", "q4", "q4f16")


def client(name, python=sys.executable):
    """The command that runs a client of this package."""
    return [python, "-m", f"{__package__}.{name}"]


def recorded():
    """Pictures, questions, and the greedy tokens without the stop token."""
    reference = json.loads((ROOT / "conformance" / "golden" / "demo.json").read_text())
    generation = json.loads((ROOT / "models" / "demo" / "checkpoint" / "generation_config.json").read_text())
    stop = generation["eos_token_id"]
    stop = set(stop if isinstance(stop, list) else [stop])
    cases = []
    for case in reference["cases"]:
        image, row = case["images"][0]["path"], case["rows"][0]
        # Decoders of JPEG differ; those images are recorded for another purpose.
        if row["question"] and image.endswith(".png"):
            cases.append(
                {
                    "image": str(ROOT / image),
                    "question": row["question"],
                    "tokens": [token for token in row["greedy"] if token not in stop],
                }
            )
    return cases, stop


def agree(command, cases, stop, environment):
    """How many cases have the recorded tokens, or what the client said instead."""
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, env={**os.environ, **environment}
    )
    answers = [json.loads(line)["tokens"] for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode != 0 or len(answers) != len(cases):
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["it said nothing"]
        return 0, next((line for line in lines if "Error" in line), lines[-1])
    answers = [[token for token in answer if token not in stop] for answer in answers]
    equal = sum(answer == case["tokens"] for answer, case in zip(answers, cases))
    return equal, None


def locked(crate):
    """The version of a crate that the workspace is built with."""
    return re.search(f'name = "{crate}"\nversion = "(.*)"', (ROOT / "Cargo.lock").read_text()).group(1)


def text_in_genai(binaries, work):
    """Whether onnxruntime-genai cuts and continues a recorded text as the published code does."""
    reference = json.loads(
        (ROOT / "conformance" / "golden" / "synth-demo-transformers-train-1.json").read_text()
    )
    made = reference["checkpoint"]
    checkpoint, bundle, asked = work / "checkpoint-text", work / "bundle-text", work / "text.json"
    call(
        binaries / "fvlm-conform",
        "synth",
        "--size",
        made["size"],
        "--layout",
        made["layout"],
        "--seed",
        made["seed"],
        "--output",
        checkpoint,
        stderr=subprocess.DEVNULL,
    )
    call(binaries / "fvlm-export", "--quiet", "--model", checkpoint, "--output", bundle)
    rows = [row for case in reference["cases"] if not case["images"] for row in case["rows"]]
    asked.write_text(json.dumps([{"text": row["text"], "limit": len(row["greedy"])} for row in rows]))
    done = subprocess.run([*client("genai_client"), bundle, asked], capture_output=True, text=True)
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    expected = [
        {
            "prompt": [token for segment in row["segments"] for token in segment["ids"]],
            "tokens": row["greedy"],
        }
        for row in rows
    ]
    problem = None if done.returncode == 0 else done.stderr.strip().splitlines()[-1]
    return sum(a == b for a, b in zip(found, expected)), len(expected), problem


class Hub(http.server.SimpleHTTPRequestHandler):
    """Serves one bundle as the repository of every name, as the hub does."""

    def translate_path(self, path):
        name = path.partition("/resolve/main/")[2].partition("?")[0]
        return os.path.join(self.directory, name or "nothing")

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def hub(bundle):
    """The address of a hub that has the bundle."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Hub, directory=bundle))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()


def card_in_transformers_js(bundle, image, node, work):
    """What the program in a bundle's model card prints, the bundle being on a hub."""
    program = (bundle / "README.md").read_text().split("```js\n")[1].split("```")[0]
    (node / "card.mjs").write_text(program)
    shutil.copy(HERE / "hub.mjs", node)
    shutil.copy(image, work / "image.png")
    with hub(bundle) as address:
        done = subprocess.run(
            ["node", "--import", str(node / "hub.mjs"), str(node / "card.mjs")],
            cwd=work,
            capture_output=True,
            text=True,
            env={**os.environ, "HUB": address, "CACHE": str(work / "cache")},
        )
    complaints = [line for line in done.stderr.splitlines() if "Error" in line]
    return done.stdout.strip() or next(iter(complaints), "nothing")


def main():
    if sys.argv[1:] not in ([], ["--optimum"], ["--prepare"]):
        print(
            f"error: found {' '.join(sys.argv[1:])}, expected nothing, --optimum or --prepare",
            file=sys.stderr,
        )
        return 2
    node = node_packages()
    if "--prepare" in sys.argv:
        return 0
    built = call(
        ROOT / "scripts" / "binaries",
        "-p",
        "exporter",
        "-p",
        "fvlm-runtime",
        "-p",
        "conformance",
        stdout=subprocess.PIPE,
        text=True,
    )
    binaries = pathlib.Path(built.stdout.strip())
    js = json.loads((HERE / "package.json").read_text())["dependencies"]["@huggingface/transformers"]
    version = importlib.metadata.version
    cases, stop = recorded()
    failed = False
    with tempfile.TemporaryDirectory(prefix="fvlm-clients-") as work:
        work = pathlib.Path(work)
        asked = work / "cases.json"
        asked.write_text(json.dumps(cases))
        # An import looks beside the script that it stands in.
        script = node / "transformers_js.mjs"
        shutil.copy(HERE / "transformers_js.mjs", script)
        bundle = work / "bundle"
        call(
            binaries / "fvlm-export",
            "--quiet",
            "--card",
            "--output",
            bundle,
            *(flag for precision in ("fp32", "fp16", "int8", "q4") for flag in ("--precision", precision)),
        )
        clients = [
            ("transformers.js", js, ["node", script], ("fp32", "fp16", "int8", "q4")),
            ("Python onnxruntime", version("onnxruntime"), client("plain"), ("fp32", "fp16", "int8", "q4")),
            ("OpenVINO", version("openvino"), client("openvino_client"), ("fp32", "fp16")),
        ]
        if "--optimum" in sys.argv:
            made = call(ROOT / "scripts" / "python_env", "optimum", stdout=subprocess.PIPE, text=True)
            python = made.stdout.strip()
            asking = "import importlib.metadata; print(importlib.metadata.version('optimum-onnx'))"
            said = call(python, "-c", asking, stdout=subprocess.PIPE, text=True).stdout.strip()
            clients.append(("optimum-onnx", said, client("optimum_client", python), ("fp32", "fp16")))
        print("| client | version | precision | tokens equal |\n|---|---|---|---|")
        for name, release, command, precisions in clients:
            for precision in precisions:
                equal, problem = agree([*command, bundle, precision, asked], cases, stop, {})
                failed |= equal != len(cases)
                print(
                    f"| {name} | {release} | {precision} | {problem or f'{equal} of {len(cases)}'} |",
                    flush=True,
                )
        # Standard graphs of 8 and 4 bits, beside those of target cpu of the same precisions, which have the other names.
        standard = work / "bundle-standard"
        call(
            binaries / "fvlm-export",
            "--quiet",
            "--target",
            "portable",
            "--target",
            "cpu",
            "--output",
            standard,
            *(flag for precision in STANDARD for flag in ("--precision", precision)),
        )
        for name, release, command, _ in clients[:2]:
            for precision in STANDARD:
                equal, problem = agree([*command, standard, precision, asked], cases, stop, {})
                failed |= equal != len(cases)
                print(
                    f"| {name} | {release} | standard {precision} | {problem or f'{equal} of {len(cases)}'} |",
                    flush=True,
                )
        # A browser gives each graph its own data file and no other. One compiler of WebAssembly: the better one takes half a minute.
        alone = work / "bundle-alone"
        call(
            binaries / "fvlm-export",
            "--quiet",
            "--self-contained",
            "--output",
            alone,
            *(flag for precision in BROWSER for flag in ("--precision", precision)),
        )
        for precision in BROWSER:
            with hub(alone) as address:
                equal, problem = agree(
                    ["node", "--liftoff-only", script, alone, precision, asked], cases, stop, {"HUB": address}
                )
            failed |= equal != len(cases)
            print(
                f"| transformers.js, as in a browser | {js} | {precision} | "
                f"{problem or f'{equal} of {len(cases)}'} |",
                flush=True,
            )
        alone_standard = work / "bundle-alone-standard"
        call(
            binaries / "fvlm-export",
            "--quiet",
            "--self-contained",
            "--target",
            "portable",
            "--output",
            alone_standard,
            *(flag for precision in STANDARD for flag in ("--precision", precision)),
        )
        for precision in STANDARD:
            with hub(alone_standard) as address:
                equal, problem = agree(
                    ["node", "--liftoff-only", script, alone_standard, precision, asked],
                    cases,
                    stop,
                    {"HUB": address},
                )
            failed |= equal != len(cases)
            print(
                f"| transformers.js, as in a browser | {js} | standard {precision} | "
                f"{problem or f'{equal} of {len(cases)}'} |",
                flush=True,
            )
        # Layouts of checkpoints: equal weights in Apple's and in transformers' names. The reference is fvlm-run, which is compared with
        # the published code elsewhere. The picture is square: Apple's layout would have another padded, which this client does not do.
        said = {}
        for layout in ("llava", "transformers"):
            checkpoint, other = work / f"checkpoint-{layout}", work / f"bundle-{layout}"
            call(
                binaries / "fvlm-conform",
                "synth",
                "--size",
                "demo",
                "--layout",
                layout,
                "--seed",
                "5",
                "--output",
                checkpoint,
                stderr=subprocess.DEVNULL,
            )
            call(binaries / "fvlm-export", "--quiet", "--model", checkpoint, "--output", other)
            case = dict(cases[0])
            answer = call(
                binaries / "fvlm-run",
                "--model",
                other,
                "--provider",
                "cpu",
                "--no-fallback",
                "--json",
                "--max-tokens",
                "16",
                "--prompt",
                case["question"],
                case["image"],
                capture_output=True,
                text=True,
                cwd=ROOT,
            )
            said[layout] = case["tokens"] = json.loads(answer.stdout)["tokens"]
            few = work / f"{layout}.json"
            few.write_text(json.dumps([case | {"limit": 16}]))
            equal, problem = agree(["node", script, other, "fp32", few], [case], stop, {})
            good = equal == 1 and said[layout] == said["llava"]
            failed |= not good
            print(
                f"| transformers.js, {layout} layout | {js} | fp32 | {problem or f'{int(good)} of 1'} |",
                flush=True,
            )
        equal, count, problem = text_in_genai(binaries, work)
        failed |= equal != count
        print(
            f"| onnxruntime-genai, text alone | {version('onnxruntime-genai')} | fp32 | {problem or f'{equal} of {count}'} |",
            flush=True,
        )
        for precision, equal, count, problem in texts.compare(binaries, work, client, stop):
            failed |= equal != count
            print(
                f"| onnxruntime-genai, text alone, as plain onnxruntime and fvlm-run answer | {version('onnxruntime-genai')} "
                f"| standard {precision} | {problem or f'{equal} of {count}'} |",
                flush=True,
            )
        # rten is an engine of the conformance suites, linked into their program.
        done = subprocess.run(
            [binaries / "fvlm-conform", "run", "--provider", "rten", "--suite", "end_to_end"],
            capture_output=True,
            text=True,
        )
        verdict = done.stdout.strip().splitlines()[-1]
        failed |= done.returncode != 0
        print(f"| rten, answers of all recordings | {locked('rten')} | fp32 | {verdict} |", flush=True)
        # The model card is a program too: as a reader would run it, with everything from a hub.
        image = ROOT / "models" / "demo" / "scenes" / "scene_1.png"
        answer = call(
            binaries / "fvlm-run",
            "--model",
            bundle,
            "--provider",
            "cpu",
            image,
            capture_output=True,
            text=True,
            cwd=ROOT,
        )
        found, expected = card_in_transformers_js(bundle, image, node, work), answer.stdout.strip()
        failed |= found != expected
        print(
            f"| transformers.js, the model card's program, from a hub | {js} | fp32 | "
            f"{'1 of 1' if found == expected else f'{found!r}, expected {expected!r}'} |",
            flush=True,
        )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
