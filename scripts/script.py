"""What scripts share: folders, and how they speak. Those of a release run on Windows too: nothing here is Unix's alone."""

import os
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).absolute()
NAME = pathlib.Path(sys.argv[0]).name
# What was not as expected.
failed = []


def words(command):
    return [str(part) for part in command]


def say(message):
    print(f"{NAME}: {message}", file=sys.stderr, flush=True)


def fail(message):
    sys.exit(f"error: {NAME}: {message}")


def expect(what, found, expected):
    """Says what is not as expected, and goes on."""
    if found != expected:
        failed.append(what)
        print(f"{what}: found {found!r}, expected {expected!r}", file=sys.stderr)
