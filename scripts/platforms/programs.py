"""What is asked of the programs on every platform that can run them here, natively or not."""

import base64
import concurrent.futures
import contextlib
import dataclasses
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable

from .common import ROOT, Failed, expect, own, run, same_files, tree, words

PRECISIONS = ["fp32", "int8", "q4"]
SCENE = "models/demo/scenes/scene_1.png"
# Whatever an export can write of the demo model.
EVERY = [flag for precision in ("fp32", "fp16", "int8", "q4") for flag in ("--precision", precision)]
FORMS = {
    "graphs": [
        *("--target", "portable", "--target", "cpu", "--target", "coreml", *EVERY),
        *("--precision", "q8", "--precision", "q4f16", "--image-size", "128", "--card"),
    ],
    "packages": ["--to", "coreml", *EVERY, "--ios16-encoder"],
    "browser": ["--precision", "q4", "--target", "portable", "--self-contained", "--page"],
}
SMALL = ["--target", "cpu", *(flag for precision in PRECISIONS for flag in ("--precision", precision))]
PATIENCE = 600


@dataclasses.dataclass
class Machine:
    """How programs of a platform are run here."""

    name: str
    folder: pathlib.Path
    prefix: list
    suffix: str = ""
    environment: dict = dataclasses.field(default_factory=dict)
    # How a path of this machine is written there.
    path: Callable = str
    # ONNX Runtime's library for it.
    library: pathlib.Path | None = None

    def command(self, program, *arguments):
        found = program if isinstance(program, pathlib.Path) else self.folder / f"{program}{self.suffix}"
        shown = [self.path(part) if isinstance(part, pathlib.Path) else str(part) for part in arguments]
        return words([*self.prefix, found, *shown])

    def settings(self, **more):
        settings = {**os.environ, **self.environment, **more}
        settings.pop("ORT_DYLIB_PATH", None)
        return settings

    def run(self, program, *arguments, **options):
        options = {"timeout": PATIENCE, "env": self.settings(), "capture_output": True, **options}
        return run(self.command(program, *arguments), **options)

    def start(self, program, *arguments, **options):
        options = {
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            **options,
        }
        return subprocess.Popen(
            self.command(program, *arguments),
            cwd=ROOT,
            env=self.settings(),
            start_new_session=True,
            **options,
        )

    def engine(self, provider):
        """Flags for one engine and no other."""
        flags = ["--provider", provider, "--no-fallback"]
        return [*flags, "--onnxruntime", self.library] if provider == "cpu" else flags

    def ask(self, bundle, image, provider="tract", *more):
        return self.run(
            "fvlm-run", "--model", bundle, "--quiet", *self.engine(provider), *more, image
        ).stdout.strip()


@contextlib.contextmanager
def ended(process):
    """Whatever happens, the process and what it started do not outlive this."""
    try:
        yield process
    finally:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe:
                pipe.close()


def recorded():
    """Pictures and recorded answers by question."""
    asked = {}
    for case in json.loads((ROOT / "conformance/golden/demo.json").read_text())["cases"]:
        image, row = case["images"][0], case["rows"][0]
        # Decoders of JPEG differ: those are recorded for another purpose.
        if row["question"] and image["path"].endswith(".png"):
            asked.setdefault(row["question"], []).append((image["path"], row["answer"]))
    return asked


def description():
    """The recorded answer about `SCENE`."""
    (answer,) = [answer for image, answer in recorded()["Describe the image."] if image == SCENE]
    return answer


def exported(folder, flags):
    """What the exporter of this machine makes of the demo model."""
    run([own("fvlm-export"), "--model", "demo", *flags, "-o", folder], stderr=subprocess.PIPE)
    return folder


def equal_bundles(machine, work, forms=FORMS):
    """The demo model exported there and here, byte for byte; and each reads what the other wrote."""
    count = 0
    for name, flags in forms.items():
        here, there = exported(work / f"{name}-here", flags), work / f"{name}-there"
        machine.run("fvlm-export", "--model", "demo", *flags, "-o", there)
        count += same_files(f"{name}, exported on {machine.name}", there, here)
        machine.run("fvlm-export", "--verify", here)
        run([own("fvlm-export"), "--verify", there], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        shutil.rmtree(here)
        shutil.rmtree(there)
    return f"{count} files of {len(forms)} bundles"


def answers(machine, bundle, provider, precision):
    """Asks all questions; what is wrong, and how many were asked."""
    wrong, total = [], 0
    for question, asked in recorded().items():
        images = [image for image, _ in asked]
        flags = ["--target", "cpu", "--precision", precision, "--json", *machine.engine(provider)]
        done = machine.run("fvlm-run", "--model", bundle, *flags, "--prompt", question, *images)
        given = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        if len(given) != len(asked):
            raise Failed(f"{provider}, {precision}: {len(given)} answers, expected {len(asked)}")
        for answer, (image, expected) in zip(given, asked):
            total += 1
            if answer["text"].strip() != expected:
                wrong.append(f"{image}: {answer['text'].strip()!r}, recorded {expected!r}")
    return wrong, total


def equal_answers(machines, bundle, provider, precisions):
    """The recorded answers, of each machine in each precision."""
    cases = [(machine, precision) for machine in machines for precision in precisions]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(lambda case: answers(case[0], bundle, provider, case[1]), cases))
    wrong = [
        f"{machine.name}, {precision}: {line}"
        for (machine, precision), (lines, _) in zip(cases, found)
        for line in lines
    ]
    total = sum(count for _, count in found)
    if wrong or total == 0:
        raise Failed(f"{provider}: {len(wrong)} of {total} answers differ: {'; '.join(wrong[:10])}")
    return total


def leftovers(folder):
    return [path.name for path in folder.iterdir() if ".partial-" in path.name]


def replaced(machine, work):
    """A bundle is replaced when asked for, never else, and by a whole one; nothing lies beside it afterwards."""
    folder = work / "replaced"
    target = folder / "bundle"
    half = ["--precision", "fp16"]
    new = exported(work / "replaced-new", half)
    machine.run("fvlm-export", "-o", target)
    old = tree(target)
    refused = machine.run("fvlm-export", *half, "-o", target, code=2)
    expect("the hint of a refusal", "--overwrite" in refused.stderr, True)
    expect("a bundle that was not to be replaced", tree(target), old)
    machine.run("fvlm-export", *half, "--overwrite", "-o", target)
    same_files("a bundle that was replaced", target, new)
    (target / "thesis.txt").write_text("x")
    refused = machine.run("fvlm-export", "--overwrite", "-o", target, code=2)
    expect("foreign files in a refusal", "thesis.txt" in refused.stderr, True)
    expect("a foreign file", (target / "thesis.txt").read_text(), "x")
    expect("directories beside the bundle", leftovers(folder), [])


def wait_for(what, found, process):
    deadline = time.monotonic() + 60
    while not found():
        if process.poll() is not None:
            raise Failed(f"{what}: the process ended with {process.returncode} before")
        if time.monotonic() > deadline:
            raise Failed(f"{what}: not after 60 seconds")
        time.sleep(0.002)


def locked(machine, work):
    """What a living export works in stays; what a killed one left goes with the next."""
    folder = work / "locked"
    folder.mkdir()
    target = folder / "bundle"
    flags = FORMS["graphs"]
    with ended(machine.start("fvlm-export", *flags, "--overwrite", "-o", target)) as first:
        partial = lambda: [path for path in folder.iterdir() if list(path.glob("bundle/onnx/*"))]  # noqa: E731
        wait_for("a directory with a part of a bundle", partial, first)
        os.kill(first.pid, signal.SIGSTOP)
        (begun,) = partial()
        machine.run("fvlm-export", "--overwrite", "-o", target)
        expect("what a living export works in", begun.is_dir(), True)
        os.kill(first.pid, signal.SIGCONT)
        _out, said = first.communicate(timeout=PATIENCE)
        expect(f"the first export ({said[-500:]})", first.returncode, 0)
        same_files("the later bundle", target, exported(work / "locked-here", flags))
        expect("directories beside the bundle", leftovers(folder), [])
    with ended(machine.start("fvlm-export", *flags, "--overwrite", "-o", target)) as first:
        wait_for("a directory with a part of a bundle", partial, first)
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
    expect("what a killed export left", len(leftovers(folder)), 1)
    expect("a bundle of which an export was killed", (target / "bundle.json").exists(), True)
    machine.run("fvlm-export", "--overwrite", "-o", target)
    expect("what a killed export left, after the next", leftovers(folder), [])


def at_once(machine, work):
    """Three exports to one target: one whole bundle, nothing beside it."""
    folder = work / "at_once"
    with contextlib.ExitStack() as stack:
        started = [
            stack.enter_context(ended(machine.start("fvlm-export", "--overwrite", "-o", folder / "bundle")))
            for _ in range(3)
        ]
        for process in started:
            _out, said = process.communicate(timeout=PATIENCE)
            expect(f"an export of three at once ({said[-500:]})", process.returncode, 0)
    same_files("a bundle of three exports", folder / "bundle", exported(work / "at_once-here", []))
    expect("directories beside the bundle", leftovers(folder), [])


def odd_paths(machine, work):
    """Paths that are not ASCII, have spaces, and are longer than 260 characters."""
    for name in [
        "B\u00fcndel \u732b \u2602",
        "/".join(["a folder with a long name " + "x" * 60] * 5),
    ]:
        folder = work / "odd" / name
        target = folder / "\u00fc bundle"
        machine.run("fvlm-export", *SMALL, "-o", target)
        machine.run("fvlm-export", *SMALL, "--overwrite", "-o", target)
        machine.run("fvlm-export", "--verify", target)
        image = folder / "sc\u00e8ne.png"
        shutil.copy(ROOT / SCENE, image)
        expect(f"an answer in {folder}", machine.ask(target, image), description())
        lines = folder / "captions \u732b.jsonl"
        machine.run("fvlm-run", "--model", target, "--provider", "tract", "--output", lines, image)
        line = json.loads(lines.read_text())
        expect(
            "a line of an image",
            (re.split(r"[/\\]", line["image"])[-1], line["text"]),
            (image.name, description()),
        )


def frames(machine, bundle):
    return machine.start(
        *("fvlm-run", "--model", bundle, *machine.engine("tract"), "--target", "cpu", "--precision", "fp32"),
        *("--json", "--quiet", "--frames", "-", "--no-drop"),
        stdin=subprocess.PIPE,
    )


def binary(machine, bundle):
    """Bytes of stdin arrive as they are, those of line ends and of Ctrl-Z too; lines of stdout end as on Unix."""
    image = (ROOT / SCENE).read_bytes()
    expect("bytes that a text mode would change", all(odd in image for odd in (b"\r\n", b"\x1a\n")), True)
    flags = ["--model", bundle, "--quiet", *machine.engine("tract")]
    done = machine.run("fvlm-run", *flags, "-", input=image, text=False)
    expect("an answer about stdin", done.stdout, description().encode() + b"\n")
    broken = machine.run("fvlm-run", *flags, "-", input=image.replace(b"\r\n", b"\n"), text=False, code=2)
    expect("an answer about an image without its line ends", broken.stdout, b"")


def in_use(machine, work):
    """A bundle that a program has mapped and answers from is replaced, and the program goes on; nothing stays behind for long."""
    folder = work / "in_use"
    target = folder / "bundle"
    machine.run("fvlm-export", *SMALL, "-o", target)
    old, image = tree(target), (ROOT / SCENE).read_bytes()
    with ended(frames(machine, target)) as reader:

        def answer():
            reader.stdin.write(image)
            reader.stdin.flush()
            line = reader.stdout.readline()
            if not line:
                raise Failed(
                    f"fvlm-run --frames ended: {reader.stderr.read().decode(errors='replace')[-2000:]}"
                )
            expect("an answer about a frame", json.loads(line)["text"].strip(), description())

        answer()
        machine.run("fvlm-export", "--precision", "fp16", "--overwrite", "-o", target)
        expect("a bundle in use, replaced", tree(target) == old, False)
        answer()
        reader.stdin.close()
        expect("the end of fvlm-run --frames", reader.wait(timeout=60), 0)
    machine.run("fvlm-export", "--precision", "fp16", "--overwrite", "-o", target)
    machine.run("fvlm-export", "--verify", target)
    expect("directories beside the bundle", leftovers(folder), [])


def served(machine, bundle):
    """fvlm-serve answers over HTTP."""
    with ended(
        machine.start("fvlm-serve", "--model", bundle, "--provider", "tract", "--port", "0")
    ) as server:
        line = server.stdout.readline().decode().strip()
        if not re.fullmatch(r"http://127\.0\.0\.1:\d+", line):
            raise Failed(f"fvlm-serve: {line!r}, expected an address; {server.stderr.read(2000)!r}")
        image = base64.b64encode((ROOT / SCENE).read_bytes()).decode()
        part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{image}"}}
        content = [part, {"type": "text", "text": "Describe the image."}]
        body = json.dumps({"model": "demo", "messages": [{"role": "user", "content": content}]}).encode()
        request = urllib.request.Request(
            f"{line}/v1/chat/completions", body, {"content-type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as response:
                answer = json.load(response)
        except OSError as error:
            raise Failed(f"fvlm-serve: {error}") from error
        expect("an answer over HTTP", answer["choices"][0]["message"]["content"].strip(), description())


def compared(table, name, machines, bundle, work):
    """Fills two cells: bundles of the last machine, and the recorded answers of all."""
    with table.cell(name, "bundle equal") as row:
        row.append(equal_bundles(machines[-1], work))
    with table.cell(name, "answers equal") as row:
        for provider, engine in [("tract", "tract"), ("cpu", "ONNX Runtime")]:
            count = equal_answers(machines, bundle, provider, PRECISIONS)
            row.append(f"{engine}: {count} of {count}")


def tried(machine, bundle, work):
    """What programs do on every platform, beyond equal bundles and answers."""
    for check in (replaced, locked, at_once, odd_paths, in_use):
        check(machine, work)
    for check in (binary, served):
        check(machine, bundle)
