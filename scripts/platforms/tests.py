"""The workspace's own tests on a processor that is emulated here."""

import concurrent.futures
import contextlib
import os
import pathlib
import re

from .common import ROOT, Failed, cargo, finished, run, say

BINFMT = pathlib.Path("/proc/sys/fs/binfmt_misc")
NAME = "fvlm-aarch64"
# The beginning of a program for AArch64, and which of its bits count, as QEMU's own scripts have them.
MAGIC = r"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"
MASK = r"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff"


@contextlib.contextmanager
def programs_start_programs(emulator):
    """Linux starts programs for AArch64 by the emulator while this lasts, so that tests can start what they test."""
    if not (BINFMT / "register").exists():
        run(["mount", "-t", "binfmt_misc", "binfmt_misc", BINFMT], capture_output=True)
    try:
        if (BINFMT / NAME).exists():
            (BINFMT / NAME).write_text("-1")
        # F: the emulator is opened now.
        (BINFMT / "register").write_text(f":{NAME}:M::{MAGIC}:{MASK}:{emulator}:F")
    except OSError as error:
        raise Failed(f"{error}; by it tests start programs, and root may change it") from error
    try:
        yield
    finally:
        (BINFMT / NAME).write_text("-1")


def built(triple, *crates, environment):
    """Programs of tests, each with the folder that it is run in."""
    artifacts = cargo("test", triple, "--no-run", *crates, environment=environment)
    found = [
        (pathlib.Path(artifact["executable"]), pathlib.Path(artifact["manifest_path"]).parent)
        for artifact in artifacts
        if artifact.get("executable") and artifact["profile"]["test"]
    ]
    if len(found) < 2:
        raise Failed(f"{' '.join(crates)}: {len(found)} programs of tests, expected more")
    return found


def passed(program, folder, *, prefix, settings, skip=(), patience=7200):
    """How many tests of a program passed; one that fails is a failure."""
    command = [*prefix, program, "--test-threads=2", *(word for name in skip for word in ("--skip", name))]
    what = f"{program.name} of {folder.relative_to(ROOT)}"
    options = {"cwd": folder, "env": settings, "errors": "replace", "timeout": patience}
    done = finished(command, what, capture_output=True, **options)
    counted = re.search(r"test result: ok\. (\d+) passed; 0 failed;", done.stdout)
    if done.returncode != 0 or not counted:
        raise Failed(f"{what}: exit code {done.returncode}\n{done.stdout[-6000:]}{done.stderr[-2000:]}")
    say(f"{what}: {counted.group(1)} tests passed")
    return int(counted.group(1))


def side_by_side(made, **options):
    """How many tests of several programs passed, of which as many run at once as there are processors."""
    # The longest first: it runs beside all others.
    ordered = sorted(made, key=lambda program: not program[0].name.startswith("suite-"))
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            return sum(pool.map(lambda program: passed(*program, **options), ordered))
        except Failed:
            pool.shutdown(cancel_futures=True)
            raise
