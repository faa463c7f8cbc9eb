"""Full disks, folders that cannot be written, and several writers to one target."""

import os
import random
import resource
import signal
import subprocess
import tempfile
import time

from .world import FORMS, World


def full(programs, count, seed):
    """Exports onto a disk that is full after some bytes: the old bundle stays, nothing lies beside it."""
    chance = random.Random(seed)
    world = World(programs)
    sizes = {}
    for form in FORMS:
        world.learn([form])
        files = [os.path.join(folder, name) for folder, _, names in os.walk(world.target) for name in names]
        sizes[form] = max(os.path.getsize(path) for path in files)
    present = list(FORMS)[-1]
    for _ in range(count):
        form = chance.choice([form for form in FORMS if form != present])
        most = int(chance.random() * sizes[form])

        def limit(most=most):
            # A limit of a file's size stands in for a full disk: EFBIG instead of ENOSPC, at any byte.
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

        ran = subprocess.run(world.export(form), capture_output=True, text=True, preexec_fn=limit)
        if ran.returncode != 2 or "error: cannot" not in ran.stderr:
            world.wrong("a limit of", most, form, ran.returncode, ran.stderr)
        world.counts["refused"] += ran.returncode == 2
        world.judge(("full", form), {present})
        if world.leftovers():
            world.wrong("left", world.leftovers())
    return end("full disk (limit of a file's size)", world)


def mounted(programs, count, seed):
    """The same on a real file system of a few megabytes, and read-only; needs root."""
    world = World(programs)
    if os.geteuid() != 0:
        print("small file systems: skipped, mounting needs root")
        return end("small file systems", world)
    chance = random.Random(seed)
    outside = world.folder
    for number in range(count):
        place = tempfile.mkdtemp(prefix="fvlm-attack-")
        kibibytes = chance.randrange(64, 40_000)
        options = f"size={kibibytes}k"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], check=True)
        try:
            world.folder = type(outside)(place)
            world.target = world.folder / "bundle"
            form = chance.choice(list(FORMS))
            readonly = number % 8 == 7
            if readonly:
                subprocess.run(["mount", "-o", "remount,ro", place], check=True)
            ran = subprocess.run(world.export(form), capture_output=True, text=True)
            found, problems = world.state()
            fine = (ran.returncode == 0 and found) or (
                ran.returncode == 2 and not found and "error:" in ran.stderr
            )
            if problems or not fine or world.leftovers() or "panicked" in ran.stderr:
                world.wrong(kibibytes, form, ran.returncode, ran.stderr, problems, world.leftovers())
            world.counts["read-only" if readonly else "fitted" if found else "too small"] += 1
        finally:
            subprocess.run(["umount", place], check=True)
            os.rmdir(place)
    world.folder = outside
    return end("small file systems", world)


def writers(programs, count, seed):
    """Several exports to one target at once: the last one is there, whole, and nothing else."""
    chance = random.Random(seed)
    world = World(programs)
    forms = ["fp32", "fp16", "q4"]
    world.learn(forms)
    for number in range(count):
        overwrite = number % 2 == 0
        if not overwrite:
            subprocess.run(["rm", "-rf", str(world.target)], check=True)
        processes = []
        for index in range(6):
            command = world.export(forms[index % 3])
            if not overwrite:
                command.remove("--overwrite")
            processes.append(
                subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            )
            time.sleep(chance.random() * 0.02)
        for process in processes:
            said = process.communicate(timeout=300)[1]
            late = not overwrite and process.returncode == 2 and "exists" in said
            world.counts["written" if process.returncode == 0 else "too late"] += 1
            if process.returncode != 0 and not late:
                world.wrong(overwrite, process.returncode, said)
        world.judge(("writers",), set(forms))
        if world.leftovers():
            world.wrong("left", world.leftovers())
    return end("six writers at once", world)


def end(name, world):
    counts = ", ".join(f"{world.counts[key]} {key}" for key in sorted(world.counts))
    print(f"{name}: {counts}; {len(world.bad)} bad", flush=True)
    bad = len(world.bad)
    world.close()
    return bad


def run(programs, count, seed):
    return full(programs, count, seed) + mounted(programs, count, seed) + writers(programs, count // 4, seed)
