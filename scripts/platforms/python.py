"""The Python package on AArch64: its wheel, in Debian's interpreter for that processor, under qemu."""

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

from . import common, programs
from .common import BUILT, COMPILER, ROOT, expect, run, same_files

VERSION = "3.11"
# What the interpreter is made of, and what it opens. The C library is installed already.
PACKAGES = [
    f"python{VERSION}-minimal",
    f"libpython{VERSION}-minimal",
    f"libpython{VERSION}-stdlib",
    "libexpat1",
    "libffi8",
    "zlib1g",
]
SCRIPT = """
import fvlm
model = fvlm.Model({bundle!r}, precision="q4")
print(model.provider["used"], model.describe({scene!r}))
"""
COMMAND = "import sys; from fvlm import _commands; sys.argv[0] = {name!r}; _commands.{name}()"


def interpreter():
    """The folder of an interpreter for AArch64, of Debian's packages, which are unpacked and not installed."""
    folder = BUILT / f"python{VERSION}-arm64"
    if not folder.exists():
        with tempfile.TemporaryDirectory(dir=BUILT) as made:
            made = pathlib.Path(made)
            packages = made / "packages"
            packages.mkdir()
            wanted = [f"{name}:arm64" for name in PACKAGES]
            run(
                ["apt-get", "-q", "download", *wanted],
                cwd=packages,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
            for package in packages.glob("*.deb"):
                run(["dpkg-deb", "-x", package, made / "root"])
            # Last: a download that was cut off is made again.
            os.replace(made / "root", folder)
    return folder


def wheel(environment):
    """Builds it; its path."""
    settings = {**os.environ, **COMPILER, **environment, "PATH": f"/usr/bin:{os.environ['PATH']}"}
    for name in ["RUSTFLAGS", "RUSTUP_TOOLCHAIN", "CARGO_ENCODED_RUSTFLAGS", "CARGO_INCREMENTAL"]:
        settings.pop(name, None)
    config = [word for setting in common.profile for word in ("--config", setting)]
    triple = ["--target", "aarch64-unknown-linux-gnu", "--output", BUILT / "wheels"]
    done = run([ROOT / "scripts/wheel", *triple, "--", *config], env=settings, stdout=subprocess.PIPE)
    return pathlib.Path(done.stdout.strip())


def packages(wheel):
    """A folder with the wheel and what it needs for AArch64: pip reads tags, and runs nothing of it."""
    folder = BUILT / "python-packages-arm64"
    shutil.rmtree(folder, ignore_errors=True)
    tags = ["manylinux_2_27_aarch64", "manylinux_2_28_aarch64"]
    run(
        [
            *(sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "install"),
            *("--only-binary=:all:", "--python-version", VERSION, "--target", folder),
            *(word for tag in tags for word in ("--platform", tag)),
            *("-c", ROOT / "conformance/python/constraints.txt", f"{wheel}[ort]"),
        ],
        stderr=subprocess.PIPE,
    )
    return folder


def used(emulators, made, bundle, work):
    """Three lines of Python on each processor, and two of the commands, on ONNX Runtime and on tract, on the last; what they have
    shown."""
    root, folder = interpreter(), packages(made)
    libraries = [root / "lib/aarch64-linux-gnu", root / "usr/lib/aarch64-linux-gnu"]
    settings = {
        name: value for name, value in os.environ.items() if name not in ("ORT_DYLIB_PATH", "VIRTUAL_ENV")
    }
    settings |= {
        "LD_LIBRARY_PATH": os.pathsep.join(str(library) for library in libraries),
        "PYTHONHOME": str(root / "usr"),
        "PYTHONPATH": str(folder),
        "PYTHONDONTWRITEBYTECODE": "1",
    }

    def call(emulator, script, *arguments):
        python = [*emulator, root / f"usr/bin/python{VERSION}", "-c", script, *arguments]
        return run(python, env=settings, cwd=work, capture_output=True).stdout.strip()

    script = SCRIPT.format(bundle=str(bundle), scene=str(ROOT / programs.SCENE))
    for emulator in emulators:
        said = call(emulator, script)
        expect(f"three lines of Python on AArch64, {emulator[-1]}", said, f"cpu {programs.description()}")
    best, target = emulators[-1], work / "by-python"
    call(best, COMMAND.format(name="export"), *programs.SMALL, "-o", target)
    same_files("the bundle of the package's fvlm-export on AArch64", target, bundle)
    for provider in ("cpu", "tract"):
        flags = ["--model", bundle, "--provider", provider, "--no-fallback", ROOT / programs.SCENE]
        expect(
            f"fvlm-run of the package, {provider}",
            call(best, COMMAND.format(name="run"), *flags),
            programs.description(),
        )
    size = f"wheel of {made.stat().st_size / 1e6:.1f} MB"
    return f"{size}: three lines on {len(emulators)} processors, `fvlm-export`, `fvlm-run`"
