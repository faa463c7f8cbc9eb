"""Android on AArch64: types against the real standard library, and libfvlm.so linked by zig's linker. Nothing is run."""

import re

from . import zig
from .common import (
    BUILT,
    COMPILER_PACKAGES,
    cargo,
    check_types,
    compiler_is_missing,
    debian,
    expect,
    packages,
    run,
    update,
    without,
)

TRIPLE = "aarch64-linux-android"
LIBRARY = BUILT / TRIPLE / "release" / "libfvlm.so"
# Bytes of a page on newer devices.
PAGE = 16384
# What every Android has, and what of it the standard library wants.
SYSTEM = ["libc.so", "libdl.so", "liblog.so", "libm.so"]


def missing():
    return compiler_is_missing(TRIPLE) + without(["llvm-nm", "llvm-readelf"])


def stubs():
    """A folder of libraries with Android's names, which export nothing."""
    folder = BUILT / "zig" / "android"
    folder.mkdir(parents=True, exist_ok=True)
    source, compiled = folder / "empty.c", folder / "empty.o"
    source.write_text("")
    run([*zig.words(), "cc", "-target", TRIPLE, "-c", source, "-o", compiled])
    for name in SYSTEM:
        run([*zig.words(), "ld.lld", "-shared", "-soname", name, compiled, "-o", folder / name])
    return folder


def environment():
    # zig has no header of Android: C is compiled as for another Linux, whose C library it does not call.
    upper, lower = TRIPLE.upper().replace("-", "_"), TRIPLE.replace("-", "_")
    command = ["ld.lld", "-z", f"max-page-size={PAGE}", "--unresolved-symbols=ignore-all", "-L", stubs()]
    # What zig has no library of: Android's own, for which empty ones of the same names stand, and the unwinder of the NDK.
    dropped = ["-lunwind", "-lgcc", "-nodefaultlibs", "-nostartfiles"]
    linker = zig.filtering(f"link-{TRIPLE}", command, dropped, split=True)
    return {
        f"CC_{lower}": str(zig.compiler(TRIPLE, "aarch64-linux-musl")),
        f"AR_{lower}": "llvm-ar",
        f"CARGO_TARGET_{upper}_LINKER": str(linker),
    }


def linked(row):
    """A library for the right processor that pages of 16 KiB can map, that wants Android's libraries and no path, and exports the
    C interface."""
    said = run(["llvm-readelf", "-h", "-l", "-d", LIBRARY], capture_output=True).stdout
    expect(f"{LIBRARY}: its processor", "AArch64" in said, True)
    expect(f"{LIBRARY}: paths to look for libraries", re.findall(r"RPATH|RUNPATH", said), [])
    expect(f"{LIBRARY}: its name", re.findall(r"soname: \[(.*)\]", said), ["libfvlm.so"])
    wanted = set(re.findall(r"Shared library: \[(.*)\]", said))
    expect(f"{LIBRARY}: libraries that are not Android's", sorted(wanted - set(SYSTEM)), [])
    for line in re.findall(r"^\s+LOAD\s.*$", said, re.M):
        expect(f"{LIBRARY}: alignment of a segment", int(line.split()[-1], 16) % PAGE, 0)
    names = run(["llvm-nm", "-D", LIBRARY], capture_output=True).stdout
    expect(f"{LIBRARY}: fvlm_model_open is exported", bool(re.search(r" T fvlm_model_open", names)), True)
    open_ = sorted(set(re.findall(r" U (_Unwind\w+)", names)))
    row.append(f"`libfvlm.so`, pages of 16 KiB; {len(open_)} names of the NDK's unwinder are open")


def check(table, ci):
    debian("Android", missing, [update(), packages(*COMPILER_PACKAGES, "llvm")])
    settings = environment()
    with table.cell(TRIPLE, "built") as row:
        check_types(row, TRIPLE, "fvlm-runtime/rten", settings)
    if ci or not table.is_earned(TRIPLE, "built"):
        return
    with table.cell(TRIPLE, "linked") as row:
        cargo("build", TRIPLE, "-p", "capi", "--lib", environment=settings)
        linked(row)
