"""A system that fails from below: a preloaded library makes calls fail, limits take descriptors, memory and cores.

Each run must end with the right answer or bundle, or with exit code 2 and an error, and leave the old bundle. An
allocation that fails may end the process, as Rust's allocations do, with a message and without harm.
"""

import collections
import os
import pathlib
import random
import shutil
import subprocess
import tempfile

from .world import FORMS, SCENE, World

# Which calls go well first, and which of the others fail.
KINDS = {
    "short": [(0, 1), (0, 3)],
    "eintr": [(0, 2), (0, 3)],
    "enospc": [(after, 1) for after in (0, 1, 5, 20, 60, 120)],
    "eio": [(after, 1) for after in (0, 2, 10, 40, 100)],
    "readio": [(after, 1) for after in (0, 5, 20, 60, 150, 400)],
    "clock": [(0, 2), (7, 5)],
    "malloc": [(after, 1) for after in (0, 3, 10, 40, 150, 600)],
    "thread": [(0, 1), (1, 1), (2, 1), (3, 1), (0, 2)],
}
LIMITS = {
    "16 descriptors": "ulimit -n 16",
    "512 MB of address space": "ulimit -v 524288",
    "one core": 'command -v taskset >/dev/null && exec taskset -c 0 "$@"',
    "a stack of 256 kB": "ulimit -s 256",
}


def build(folder):
    """The preloaded library."""
    library = folder / "libfaults.so"
    source = pathlib.Path(__file__).with_name("faults.c")
    compiler = os.environ.get("CC", "cc")
    command = [compiler, "-O1", "-fno-builtin", "-Wall", "-shared", "-fPIC", source, "-o", library, "-ldl"]
    subprocess.run([str(part) for part in command], check=True)
    return library


class Trial:
    """Counts how commands end that something is done to."""

    def __init__(self, world, expected):
        self.world, self.expected = world, expected
        self.counts = collections.defaultdict(collections.Counter)

    def run(self, kind, name, command, environment=None):
        try:
            ran = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=180)
        except subprocess.TimeoutExpired:
            return self.end(kind, name, "hung", command)
        said = ran.stderr
        if ran.returncode == 0:
            right = name != "run" or ran.stdout == self.expected
            return self.end(kind, name, "right" if right else "WRONG", ran.stdout)
        if "panicked" in said:
            return self.end(kind, name, "PANIC", said)
        if ran.returncode == 2 and "error" in said:
            return self.end(kind, name, "error", said)
        if (
            kind in ("malloc", "512 MB of address space")
            and ran.returncode in (-6, 134)
            and "allocation" in said
        ):
            return self.end(kind, name, "no memory, said and ended", said)
        return self.end(kind, name, f"ENDED {ran.returncode}", said)

    def end(self, kind, name, how, what):
        self.counts[kind][f"{name}: {how}"] += 1
        if how.split()[0].isupper() or how == "hung":
            self.world.wrong(kind, name, how, what)


def cut(world, trial):
    """Cuts the weights of a bundle between two questions of a chat: the answer is the one of a whole bundle, or the
    program ends with an error that names a file."""
    questions = ["What is it?\n", "Is it red?\n"]
    for form in ("q4", "fp32"):
        world.learn([form])
        for provider in ("cpu", "tract"):
            bundle = world.folder.with_name(world.folder.name + "-cut")
            command = [world.bin / "fvlm-run", "--model", bundle, "--provider", provider, "-q", "-i", SCENE]
            command = [str(part) for part in command]
            shutil.copytree(world.target, bundle)
            whole = subprocess.run(
                command, input="".join(questions), capture_output=True, text=True, timeout=180
            )
            pipe = subprocess.PIPE
            process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
            process.stdin.write(questions[0])
            process.stdin.flush()
            first = process.stdout.readline()
            for data in (bundle / "onnx").glob("*_data"):
                os.truncate(data, 10)
            rest, said = process.communicate(questions[1], timeout=180)
            if process.returncode == 0:
                how = "right" if first + rest == whole.stdout else "WRONG"
            else:
                named = process.returncode == 2 and "_data` was shortened" in said
                how = "error" if named else f"ENDED {process.returncode}"
            trial.end("cut weights", f"run {provider} {form}", how, said)
            shutil.rmtree(bundle)


def run(programs, count, seed):
    chance = random.Random(seed)
    world = World(programs)
    world.learn(FORMS)
    beside = pathlib.Path(tempfile.mkdtemp(prefix="fvlm-attack-"))
    library, model = build(beside), beside / "model"
    world.learn(["q4"])
    shutil.copytree(world.target, model)
    code, expected, said = world.answers("-q", model=model)
    assert code == 0 and expected, said
    trial = Trial(world, expected)
    answer = [str(part) for part in [programs / "fvlm-run", "--model", model, "-q", SCENE]]
    present = "q4"
    kinds = [(kind, after, every) for kind, places in KINDS.items() for after, every in places]
    for number in range(max(count, len(kinds))):
        kind, after, every = kinds[number % len(kinds)]
        if number >= len(kinds) and every == 1 and kind not in ("short", "thread"):
            after = chance.randrange(2000) if kind in ("malloc", "readio") else chance.randrange(300)
        environment = {
            **os.environ,
            "LD_PRELOAD": str(library),
            "FVLM_FAULT": kind,
            "FVLM_FAULT_AFTER": str(after),
            "FVLM_FAULT_EVERY": str(every),
        }
        trial.run(kind, "run", answer, environment)
        form = chance.choice([form for form in FORMS if form != present])
        trial.run(kind, "export", world.export(form), environment)
        present = world.judge((kind, after, every, form), {present, form}) or present
        if kind != "malloc" and world.leftovers():
            # An end in the middle leaves it to the next one.
            world.wrong(kind, after, every, form, "left", world.leftovers())
    for kind, limit in LIMITS.items():
        for provider in ("cpu", "tract"):
            shell = ["bash", "-c", f'{limit}; exec "$@"', "limited"]
            trial.run(kind, "run", [*shell, *answer, "--provider", provider])
        for form in ("q4", "fp32"):
            trial.run(kind, "export", [*shell, *world.export(form)])
        world.judge((kind,), {"q4", "fp32"})
    shutil.rmtree(beside)
    cut(world, trial)
    world.learn(["fp32"])
    for kind, counts in trial.counts.items():
        print(f"{kind}: " + ", ".join(f"{counts[key]} {key}" for key in sorted(counts)), flush=True)
    print(
        f"faults: {sum(sum(counts.values()) for counts in trial.counts.values())} runs; {len(world.bad)} bad"
    )
    bad = len(world.bad)
    world.close()
    return bad
