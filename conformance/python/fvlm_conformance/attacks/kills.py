"""Kills and signals, in the middle of exports of every form, of downloads into the hub's cache, and of answers.

After each, the target holds the old bundle, the new one, or none, whole by its hashes; in the end nothing lies
beside it. A download goes on from what the killed one left.
"""

import hashlib
import os
import random
import signal
import subprocess
import time

from .hub import Hub
from .world import CHECKPOINT, FORMS, SCENE, World

SIGNALS = [signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP]


def ends_as(number, code):
    """Whether a program that got a signal ended as it should, or was done before. SIGINT ends it as it ends others
    until it has begun to listen."""
    expected = {signal.SIGKILL: (-9,), signal.SIGTERM: (-15,), signal.SIGHUP: (-1,), signal.SIGINT: (130, -2)}
    return code == 0 or code in expected[number]


def strike(world, command, number, delay, environment=None):
    """Starts a program and sends it a signal; whether it came in time, and the exit code."""
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment, start_new_session=True
    )
    time.sleep(delay)
    in_time = process.poll() is None
    if in_time:
        process.send_signal(number)
    said = process.communicate(timeout=120)[1].decode(errors="replace")
    if "panicked" in said or (in_time and not ends_as(number, process.returncode)):
        world.wrong(signal.Signals(number).name, process.returncode, said)
    world.counts[signal.Signals(number).name if in_time else "too late"] += 1
    return in_time, process.returncode


def exports(world, count, seed):
    """Kills exports that replace one form by another."""
    chance = random.Random(seed)
    times = {}
    for form in FORMS:
        start = time.monotonic()
        world.learn([form])
        times[form] = time.monotonic() - start
    present, struck = list(FORMS)[-1], 0
    while struck < count:
        form = chance.choice([form for form in FORMS if form != present])
        # Half of them near the end, where the names are exchanged.
        share = chance.random() * 1.1 if chance.random() < 0.5 else chance.uniform(0.7, 1.1)
        number = chance.choice(SIGNALS)
        before = set(world.leftovers())
        in_time, code = strike(world, world.export(form), number, times[form] * share)
        struck += in_time
        found = world.judge(("export", present, form, number), {present, form})
        world.counts["new" if found == form else "old"] += 1
        left = set(world.leftovers()) - before
        if number != signal.SIGKILL and left and code != -2:
            world.wrong("a signal left", left)
        world.counts["with leftovers"] += bool(world.leftovers())
        present = found or present
    world.learn(["fp32"])


def downloads(world, count, seed):
    """Kills exports of a model of the hub while they download it."""
    chance = random.Random(seed)
    hub = Hub(CHECKPOINT)
    environment = {
        **os.environ,
        "HF_HOME": str(world.folder / "hub"),
        "HF_ENDPOINT": hub.endpoint,
        "HF_TOKEN": "",
    }
    environment.pop("HF_HUB_OFFLINE", None)
    command = [
        str(world.bin / "fvlm-export"),
        "--model",
        "org/name",
        "-o",
        str(world.target),
        "--overwrite",
        "-q",
    ]
    cache = world.folder / "hub" / "hub" / "models--org--name"
    struck = 0
    while struck < count:
        in_time, code = strike(world, command, chance.choice(SIGNALS), chance.random() * 0.6, environment)
        struck += in_time
        for path in (cache / "snapshots").glob("*/*"):
            # What has a name in a snapshot is whole.
            if path.exists() and path.read_bytes() != (CHECKPOINT / path.name).read_bytes():
                world.wrong("the cache has another", path.name)
        if code == 0 or chance.random() < 0.1:
            # From the beginning again.
            subprocess.run(["rm", "-rf", str(cache)], check=True)
    ran = subprocess.run(command, capture_output=True, text=True, env=environment)
    found, problems = world.state()
    if ran.returncode != 0 or problems or found is None:
        world.wrong("the last download", ran.returncode, ran.stderr, problems)
    for blob in (cache / "blobs").iterdir():
        if blob.suffix or hashlib.sha256(blob.read_bytes()).hexdigest() != blob.name:
            world.wrong("a blob", blob.name)
    hub.close()


def answers(world, count, seed):
    """Kills fvlm-run while it opens and answers."""
    chance = random.Random(seed)
    world.learn(["q4"])
    start = time.monotonic()
    code, expected, said = world.answers("-q")
    assert code == 0 and expected, said
    took = time.monotonic() - start
    command = [str(world.bin / "fvlm-run"), "--model", str(world.target), "-q", *[str(SCENE)] * 2]
    struck = 0
    while struck < count:
        in_time, _ = strike(world, command, chance.choice(SIGNALS), took * 1.3 * chance.random())
        struck += in_time
    if world.answers("-q")[:2] != (0, expected):
        world.wrong("the answer after the kills")


def run(programs, count, seed):
    """Three of five parts are exports, one is downloads, one is answers."""
    bad = 0
    for name, part, share in (("exports", exports, 3), ("downloads", downloads, 1), ("answers", answers, 1)):
        world = World(programs)
        start = time.monotonic()
        part(world, count * share // 5, seed)
        left = world.leftovers()
        if left:
            world.wrong("left in the end", left)
        counts = ", ".join(f"{world.counts[key]} {key}" for key in sorted(world.counts))
        print(f"{name}: {counts}; {len(world.bad)} bad; {time.monotonic() - start:.0f} s", flush=True)
        bad += len(world.bad)
        world.close()
    return bad
