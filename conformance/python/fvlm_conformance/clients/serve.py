"""Asks `fvlm-serve` with other people's clients of OpenAI's and Ollama's interfaces, unmodified, and compares words.

    conformance/clients/serve              from anywhere; needs a release build's tools, Python with pip, and Node.js with npm
    conformance/clients/serve --prepare    only brings what the clients are, from PyPI and npm

A table on stdout: client, version, what it found. Exit code 1 if one found a fault.
"""

import contextlib
import importlib.metadata
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile

from .packages import HERE, ROOT, call, node_packages

# Requests that schemathesis makes up for each operation, beside those at the edges of the document.
EXAMPLES = 10

# How long a client may take, in seconds.
PATIENCE = 600


@contextlib.contextmanager
def server(binaries, bundle):
    """The address of a server of the bundle; it must end as it is told to."""
    command = [binaries / "fvlm-serve", "--model", bundle, "--name", "demo", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield process.stdout.readline().strip()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == -signal.SIGTERM, process.returncode
    finally:
        process.kill()
        process.wait()


def scenes():
    """Pictures and what is said of them."""
    folder = ROOT / "models" / "demo" / "scenes"
    found = []
    for scene in json.loads((folder / "scenes.json").read_text()):
        for question in scene["questions"]:
            if question["question"] == "Describe the image." and scene["image"].startswith("scene_"):
                found.append({"image": str(folder / scene["image"]), "answer": question["answer"]})
    return found


def run(command, work, **environment):
    """What a client says, or what was wrong with it."""
    # No address of a proxy, and no key, of whoever runs this.
    own = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    own |= {"OPENAI_API_KEY": "none", "LLM_USER_PATH": str(work / "llm"), **environment}
    try:
        done = subprocess.run(
            [str(part) for part in command],
            cwd=work,
            env=own,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
    except subprocess.TimeoutExpired:
        return "", f"it took over {PATIENCE} s"
    problem = None
    if done.returncode != 0:
        problem = (
            "\n".join([*done.stdout.splitlines()[-30:], *done.stderr.splitlines()[-10:]]) or "it said nothing"
        )
    return done.stdout, problem


def ask(address, work, node):
    """Each client in turn: name, version, what was wrong."""
    version = importlib.metadata.version
    found = scenes()
    listed = work / "scenes.json"
    listed.write_text(json.dumps(found))
    module = [sys.executable, "-m"]
    _, problem = run([*module, f"{__package__}.openai_client", address, listed], work)
    yield (
        "openai (Python), ChatOpenAI of langchain-openai",
        f"{version('openai')}, {version('langchain-openai')}",
        problem,
    )
    _, problem = run([*module, f"{__package__}.ollama_client", address, listed], work)
    yield "ollama (Python)", version("ollama"), problem
    said, problem = run(["node", node / "openai_node.mjs", address, found[0]["image"]], work)
    yield (
        "openai (Node)",
        json.loads((HERE / "package.json").read_text())["dependencies"]["openai"],
        problem or node_said(said, found[0]["answer"]),
    )
    settings = work / "llm"
    settings.mkdir()
    (settings / "extra-openai-models.yaml").write_text(
        f"- model_id: fvlm\n  model_name: demo\n  api_base: {address}/v1\n  vision: true\n"
    )
    said, problem = run([*module, "llm", "-m", "fvlm", "-a", found[0]["image"], "Describe the image."], work)
    if not problem and said.strip() != found[0]["answer"]:
        problem = f"found {said.strip()!r}"
    yield "llm (command line)", version("llm"), problem
    fuzzer = pathlib.Path(sys.executable).parent / "schemathesis"
    flags = ["--max-examples", EXAMPLES, "--seed", 1, "--phases", "examples,coverage,fuzzing", "--no-color"]
    _, problem = run(
        [fuzzer, "run", f"{address}/openapi.json", "--checks", "not_a_server_error", *flags], work
    )
    yield "schemathesis: no status of 500 and above", version("schemathesis"), problem


def node_said(text, answer):
    """What is wrong with what the client for Node found."""
    said = json.loads(text)
    refused = {"status": 400, "param": "n", "kind": "BadRequestError"}
    good = (
        said["whole"] == said["streamed"] == answer
        and said["same"]
        and isinstance(said["structured"]["sure"], bool)
        and said["refused"] == refused
    )
    return None if good else text


def main():
    if sys.argv[1:] not in ([], ["--prepare"]):
        print(f"error: found {' '.join(sys.argv[1:])}, expected nothing or --prepare", file=sys.stderr)
        return 2
    node = node_packages()
    if sys.argv[1:]:
        return 0
    built = call(
        ROOT / "scripts" / "binaries", "-p", "exporter", "-p", "server", stdout=subprocess.PIPE, text=True
    )
    binaries = pathlib.Path(built.stdout.strip())
    # An import looks beside the script that it stands in.
    (node / "openai_node.mjs").write_bytes((HERE / "openai_node.mjs").read_bytes())
    failed = False
    with tempfile.TemporaryDirectory(prefix="fvlm-serve-") as work:
        work = pathlib.Path(work)
        bundle = work / "bundle"
        call(binaries / "fvlm-export", "--quiet", "--output", bundle)
        print("| client | version | found |\n|---|---|---|")
        with server(binaries, bundle) as address:
            for name, release, problem in ask(address, work, node):
                failed |= problem is not None
                print(f"| {name} | {release} | {'as expected' if problem is None else problem} |", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
