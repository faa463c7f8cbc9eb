"""zig's compilers and linkers, for targets that this machine has no other for."""

import functools
import pathlib
import shlex

from .common import BUILT, ROOT, run


@functools.cache
def words():
    """The command of PyPI's ziglang, at the version that the wheels are linked by."""
    python = run([ROOT / "scripts/python_env", "wheel"], capture_output=True).stdout.strip()
    return [python, "-m", "ziglang"]


def script(name, text):
    """A program for cargo, which takes a path where a command is wanted. In its text, `zig` is zig."""
    path = pathlib.Path(BUILT, "zig", name)
    path.parent.mkdir(parents=True, exist_ok=True)
    start = f'#!/bin/bash\nset -euo pipefail\nzig() {{ exec {shlex.join(words())} "$@"; }}\n'
    path.write_text(start + text)
    path.chmod(0o755)
    return path


def compiler(triple, target):
    """Compiles C and assembles for a target, whatever target, processor and folder of a system the caller names."""
    return script(
        f"cc-{triple}",
        f"""
words=(-target {target})
while [ $# -gt 0 ]; do
    case "$1" in
        --target=*|-mmacosx-version-min=*|-miphoneos-version-min=*|-mios-simulator-version-min=*) ;;
        -arch|-isysroot|-target) shift ;;
        *) words+=("$1") ;;
    esac
    shift
done
zig cc "${{words[@]}}"
""",
    )
