"""`fvlm-run --output` over a folder of pictures, killed every few seconds until it is done, then once undisturbed.

Both files are equal to the byte: each picture has one line, in order. Memory of the undisturbed run stays as it is
behind the first tenth.
"""

import json
import random
import signal
import struct
import subprocess
import time
import zlib

from .world import World

# Between starts and kills, in seconds: some come while the bundle is opened, most while it answers.
SHORTEST, LONGEST = 0.05, 4.0

# What the memory of a run may grow by behind its first tenth: caches that are bounded, and what each line's name takes.
GROWTH = 24 << 20


def png(chance, side=256):
    """A picture that nothing else looks like: a coloured square on another colour, as a PNG."""
    ground, square = (bytes(chance.randrange(256) for _ in range(3)) for _ in range(2))
    left, top, size = chance.randrange(8, 120), chance.randrange(8, 120), chance.randrange(40, 120)
    plain = b"\0" + ground * side
    crossed = b"\0" + ground * left + square * size + ground * (side - left - size)
    rows = plain * top + crossed * size + plain * (side - top - size)

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows, 1)) + chunk(b"IEND", b"")


def pictures(folder, count, seed):
    """A hundred pictures to a folder; every thousandth is broken."""
    chance = random.Random(seed)
    for number in range(count):
        path = folder / f"{number // 100:04}" / f"{number:07}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        data = png(chance)
        path.write_bytes(data[: len(data) // 2] if number % 1000 == 999 else data)


def resident(process):
    """Bytes that are resident, or None once it has ended."""
    try:
        status = open(f"/proc/{process.pid}/status").read()
    except OSError:
        return None
    found = [line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:")]
    return int(found[0]) * 1024 if found else None


def lines(path):
    try:
        return path.read_bytes().count(b"\n")
    except OSError:
        return 0


def listen():
    """What is ignored stays ignored, and a shell's job in the background ignores SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def killed(world, command, output, seed):
    """Starts it and kills it until it ends by itself."""
    chance = random.Random(seed)
    while True:
        process = subprocess.Popen(
            [*command, output],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            cwd=world.folder,
            preexec_fn=listen,
        )
        before = lines(world.folder / output)
        try:
            process.wait(timeout=chance.uniform(SHORTEST, LONGEST))
        except subprocess.TimeoutExpired:
            process.send_signal(chance.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGINT]))
        said = process.communicate()[1]
        world.counts["lines before a kill"] += lines(world.folder / output) - before
        if process.returncode in (0, 1):
            return said
        if process.returncode not in (-signal.SIGKILL, -signal.SIGINT, 130):
            world.wrong(process.returncode, said)
        world.counts["kills"] += 1


def run(programs, count, seed):
    """The number of faults that were found."""
    world = World(programs)
    # Of our kernels an answer has the same bits whatever is computed beside it.
    world.learn(["q4"])
    pictures(world.folder / "pictures", count, seed)
    run = [str(world.bin / "fvlm-run"), "--model", str(world.target), "--quiet", "--max-tokens", "16"]
    command = [*run, "pictures", "--output"]
    start = time.monotonic()
    killed(world, command, "killed.jsonl", seed)
    print(f"killed: {time.monotonic() - start:.0f} s", flush=True)
    start = time.monotonic()
    process = subprocess.Popen([*command, "whole.jsonl"], stderr=subprocess.DEVNULL, cwd=world.folder)
    first, last = None, 0
    while process.poll() is None:
        found = resident(process)
        if found and lines(world.folder / "whole.jsonl") >= count // 10:
            first = first or found
            last = found
        time.sleep(0.05)
    took = time.monotonic() - start
    whole, broken = (world.folder / "whole.jsonl").read_bytes(), count // 1000
    if process.returncode != (1 if broken else 0):
        world.wrong("the undisturbed run", process.returncode)
    if (world.folder / "killed.jsonl").read_bytes() != whole:
        world.wrong("the killed runs have other lines than the undisturbed one")
    found = [json.loads(line) for line in whole.splitlines()]
    names = [f"pictures/{number // 100:04}/{number:07}.png" for number in range(count)]
    if [line["image"] for line in found] != names:
        world.wrong(f"{len(found)} lines, not one for each of {count} pictures in order")
    if sum("error" in line for line in found) != broken:
        world.wrong(f"{broken} pictures are broken, other lines have errors")
    if first and last - first > GROWTH:
        world.wrong(f"memory grew from {first >> 20} to {last >> 20} MiB")
    memory = f"{first >> 20} MiB behind a tenth, {last >> 20} at the end" if first else "too short for memory"
    counts = ", ".join(f"{world.counts[key]} {key}" for key in sorted(world.counts))
    print(
        f"captions: {count} pictures; {counts}; undisturbed {took:.0f} s, {memory}; {len(world.bad)} bad",
        flush=True,
    )
    world.close()
    return len(world.bad)
