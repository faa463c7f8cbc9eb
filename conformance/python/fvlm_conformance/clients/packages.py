"""npm packages that clients of this repository need, in a folder of their own."""

import filecmp
import os
import pathlib
import shutil
import subprocess

# Not of `common`, which needs packages of its own.
ROOT = pathlib.Path(__file__).resolve().parents[4]
HERE = ROOT / "conformance" / "clients"
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
WORK = TARGET / "clients"


def call(*command, **options):
    return subprocess.run([str(part) for part in command], check=True, **options)


def node_packages():
    """A directory of installed npm packages, made anew when package.json changes."""
    source, directory = HERE / "package.json", WORK / "node"
    mark = directory / "made-of.json"
    if not (mark.exists() and filecmp.cmp(source, mark, shallow=False)):
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        shutil.copy(source, directory)
        # Its install script wants another download; the CPU library is in the package.
        call(
            "npm",
            "install",
            "--silent",
            "--no-audit",
            "--no-fund",
            cwd=directory,
            env={**os.environ, "ONNXRUNTIME_NODE_INSTALL": "skip"},
        )
        # Last: an installation that was cut off is made again.
        shutil.copy(source, mark)
    return directory
