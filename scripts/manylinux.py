"""The C library that all we give away for Linux runs with, which zig links against."""

import shlex

from script import TARGET

GLIBC = (2, 28)


def linker(bin, architecture, folder):
    """A program below a folder of what is built, that links as zig does. `bin` has cargo-zigbuild."""
    script = TARGET / folder / f"zig-{architecture}"
    script.parent.mkdir(parents=True, exist_ok=True)
    target = "{}-linux-gnu.{}.{}".format(architecture, *GLIBC)
    zig = f'exec {shlex.quote(str(bin / "cargo-zigbuild"))} zig cc -- -target {target} "$@"'
    script.write_text(f"#!/bin/sh\nPATH={shlex.quote(str(bin))}:$PATH\n{zig}\n")
    script.chmod(0o755)
    return script
