"""Apple's systems: types against the real standard library, and a Mach-O linked by zig. There is no Mac here: nothing is run."""

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

MAC = "aarch64-apple-darwin"
# Triples by what zig compiles their C for. It has no header of iOS: types do not depend on it, and nothing is linked there.
TARGETS = {
    MAC: "aarch64-macos",
    "x86_64-apple-darwin": "x86_64-macos",
    "aarch64-apple-ios": "aarch64-macos",
    "aarch64-apple-ios-sim": "aarch64-macos",
}
# The oldest macOS that is linked for, as for the release.
OLDEST = "12.0"


def missing(triples):
    return compiler_is_missing(*triples) + without(["llvm-objdump"])


def environment(triple):
    name = triple.replace("-", "_")
    found = {
        f"CC_{name}": str(zig.compiler(triple, TARGETS[triple])),
        # Some folder, so that nobody asks Xcode for one: what is compiled needs no header of a system.
        "SDKROOT": str(BUILT),
    }
    if triple == MAC:
        command = ["cc", "-target", f"{TARGETS[MAC]}.{OLDEST}", "-undefined", "dynamic_lookup"]
        dropped = ["--target=*", "-mmacosx-version-min=*", "-lobjc", "-liconv"]
        # zig has what each Mac's own library exports, and none of Apple's frameworks: those are left for the loader.
        linker = zig.filtering(f"link-{triple}", command, dropped, ["-framework", *zig.PLACES])
        found[f"CARGO_TARGET_{name.upper()}_LINKER"] = str(linker)
        found["MACOSX_DEPLOYMENT_TARGET"] = OLDEST
    return found


def load_commands(file):
    return run(["llvm-objdump", "--macho", "--private-headers", file], capture_output=True).stdout


def linked(row):
    """A library and a program for the right processor and the oldest system, that name no library but the system's own."""
    folder = BUILT / MAC / "release"
    for name in ["libfvlm.dylib", "fvlm-run"]:
        said = load_commands(folder / name)
        kind = "DYLIB" if name.endswith(".dylib") else "EXECUTE"
        expect(f"{name}: its processor and kind", bool(re.search(rf"ARM64 .*\b{kind}\b", said)), True)
        expect(f"{name}: the oldest macOS", re.findall(r"^\s+minos (\S+)", said, re.M), [OLDEST])
        expect(f"{name}: paths to look for libraries", re.findall("LC_RPATH", said), [])
        libraries = re.findall(r"cmd LC_LOAD_DYLIB\n.*\n\s+name (\S+)", said)
        expect(f"{name}: libraries", libraries, ["/usr/lib/libSystem.B.dylib"])
    own = re.findall(r"cmd LC_ID_DYLIB\n.*\n\s+name (\S+)", load_commands(folder / "libfvlm.dylib"))
    expect("libfvlm.dylib: its install name", own, ["@rpath/libfvlm.dylib"])
    exported = run(["llvm-nm", "-gU", folder / "libfvlm.dylib"], capture_output=True).stdout
    expect("libfvlm.dylib: fvlm_model_open is exported", " T _fvlm_model_open" in exported, True)
    row.append(
        f"`libfvlm.dylib`, `fvlm-run`: macOS {OLDEST}, frameworks left open, no library named but the system's"
    )


def check(table, ci):
    triples = [MAC] if ci else list(TARGETS)
    debian("Apple's systems", lambda: missing(triples), [update(), packages(*COMPILER_PACKAGES, "llvm")])
    for triple in triples:
        with table.cell(triple, "built") as row:
            features = "fvlm-runtime/coreml-native,fvlm-runtime/rten"
            check_types(row, triple, features, environment(triple))
    if ci or not table.is_earned(MAC, "built"):
        return
    with table.cell(MAC, "linked") as row:
        # Debian's compiler has no program that strips a Mach-O.
        build = ["--config", "profile.release.strip=false", "--lib", "--bins"]
        crates = ["-p", "capi", "-p", "fvlm-runtime", "--features", "fvlm-runtime/coreml-native"]
        cargo("build", MAC, *build, *crates, environment=environment(MAC))
        linked(row)
