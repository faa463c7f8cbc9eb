"""zig's compilers and linkers, for targets that this machine has no other for."""

import functools
import pathlib
import shlex

from .common import BUILT, ROOT, run

# Words of a C compiler that name a processor, a folder of a system or a target, which is the next word.
PLACES = ["-arch", "-isysroot", "-target"]


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


def filtering(name, command, dropped, pairs=(), split=False):
    """A program that gives its words to zig's command, but for those `dropped`, and those of `pairs` with the word behind each.
    Where it splits, it makes words for a linker of those for a C compiler: `A B` of `-Wl,A,B`."""
    program, *fixed = map(str, command)
    arms = [(dropped, ""), (pairs, "shift")]
    if split:
        arms.append((["-Wl,*"], 'IFS=, read -ra several <<< "${1#-Wl,}"; words+=("${several[@]}")'))
    arms.append((["*"], 'words+=("$1")'))
    cases = "\n".join(f"        {'|'.join(patterns)}) {action} ;;" for patterns, action in arms if patterns)
    return script(
        name,
        f"""
words=({shlex.join(fixed)})
while [ $# -gt 0 ]; do
    case "$1" in
{cases}
    esac
    shift
done
zig {program} "${{words[@]}}"
""",
    )


def compiler(triple, target):
    """Compiles C and assembles for a target, whatever target, processor and folder of a system the caller names."""
    oldest = ["-mmacosx-version-min=*", "-miphoneos-version-min=*", "-mios-simulator-version-min=*"]
    return filtering(f"cc-{triple}", ["cc", "-target", target], ["--target=*", *oldest], PLACES)
