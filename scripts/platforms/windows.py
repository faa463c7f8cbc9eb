"""Windows on x86-64, its GNU flavour: built with mingw and run under Wine."""

import json
import os
import pathlib
import re
import subprocess
import tempfile

from . import programs, zig
from .common import (
    BUILT,
    COMPILER_PACKAGES,
    ROOT,
    Failed,
    cargo,
    check_types,
    compiler_is_missing,
    debian,
    expect,
    onnxruntime,
    packages,
    run,
    update,
    without,
)

TRIPLE = "x86_64-pc-windows-gnu"
RELEASE = BUILT / TRIPLE / "release"
PREFIX = BUILT / "wine"
COMPILER = "x86_64-w64-mingw32-gcc"
WINE = "/usr/lib/wine/wine64"
ENVIRONMENT = {
    "CARGO_TARGET_X86_64_PC_WINDOWS_GNU_LINKER": COMPILER,
    "CC_x86_64_pc_windows_gnu": COMPILER,
    "CXX_x86_64_pc_windows_gnu": "x86_64-w64-mingw32-g++",
}
SETTINGS = {
    "WINEPREFIX": str(PREFIX),
    "WINEDEBUG": "-all",
    # Neither .NET nor a browser is wanted.
    "WINEDLLOVERRIDES": "mscoree,mshtml=",
    # Names of files are UTF-8.
    "LC_ALL": "C.UTF-8",
}
PROGRAMS = ["fvlm-export.exe", "fvlm-run.exe", "fvlm-serve.exe"]
# Microsoft's flavour: its types are checked, nothing is linked or run.
MICROSOFT = "x86_64-pc-windows-msvc"


def missing():
    found = compiler_is_missing(TRIPLE, MICROSOFT) + without([COMPILER, "x86_64-w64-mingw32-g++", "llvm-lib"])
    return found + ([] if pathlib.Path(WINE).exists() else ["Wine"])


def install():
    debian("Windows", missing, [update(), packages(*COMPILER_PACKAGES, "llvm", "mingw-w64", "wine64")])


# An object without code, where Microsoft's assembler is asked for one: what is only checked is not linked.
ASSEMBLER = """
while [ "$1" != /Fo ]; do shift; done
source=$(mktemp --suffix .c)
(zig cc -target x86_64-windows-gnu -c "$source" -o "$2")
rm "$source"
"""


def drive(path):
    """A path of this machine as Windows writes it."""
    return "Z:" + str(path).replace("/", "\\")


def prefix():
    """Wine's own folder, with the one system DLL that Rust's standard library needs and Wine 8 lacks."""
    PREFIX.mkdir(parents=True, exist_ok=True)
    settings = {**os.environ, **SETTINGS}
    if not (PREFIX / "made").exists():
        run([WINE, "wineboot", "-i"], env=settings, capture_output=True)
    system = PREFIX / "drive_c/windows/system32"
    if not (system / "bcryptprimitives.dll").exists():
        source = ROOT / "scripts/platforms/c/bcryptprimitives.c"
        run([COMPILER, "-shared", "-O1", source, "-o", system / "bcryptprimitives.dll", "-lbcrypt"])
    (PREFIX / "made").touch()


def imported(file):
    said = run(["x86_64-w64-mingw32-objdump", "-p", file], capture_output=True).stdout
    expect(f"{file}: its format", "file format pei-x86-64" in said, True)
    return set(re.findall(r"DLL Name: (\S+)", said))


def linked(row):
    """Windows' own DLLs are all that the programs want, none of mingw."""
    own = {
        path.name.lower()
        for path in pathlib.Path("/usr/lib/x86_64-linux-gnu/wine/x86_64-windows").glob("*.dll")
    }
    for name in PROGRAMS:
        found = {library.lower() for library in imported(RELEASE / name)}
        foreign = {library for library in found - own if not library.startswith("api-ms-win-")}
        foreign -= {"bcryptprimitives.dll"}
        expect(f"{name}: DLLs that are not of Windows", sorted(foreign), [])
    row.append("no DLL but those of Windows")


def machine():
    library = onnxruntime("win_amd64", "onnxruntime.dll")
    return programs.Machine(
        TRIPLE, RELEASE, [WINE], suffix=".exe", environment=SETTINGS, path=drive, library=library
    )


def pressed(wine, work, program, *arguments, ready, stdin=None):
    """Ctrl-C in a console: exit code and what was written to stderr."""
    helper, go = work / "ctrl_c.exe", work / "go"
    go.unlink(missing_ok=True)
    if not helper.exists():
        run([COMPILER, "-municode", "-O1", ROOT / "scripts/platforms/c/ctrl_c.c", "-o", helper])
    shown = [wine.path(part) if isinstance(part, pathlib.Path) else str(part) for part in arguments]
    line = subprocess.list2cmdline([wine.path(RELEASE / program), *shown])
    with programs.ended(wine.start(helper, go, line, stdin=stdin or subprocess.DEVNULL)) as process:
        ready(process)
        go.touch()
        # Its stdin stays open: that it ends would end it too.
        try:
            process.wait(timeout=90)
        except subprocess.TimeoutExpired as expired:
            raise Failed(f"{program}: no end after Ctrl-C") from expired
        said = process.stderr.read()
    return process.returncode, said.decode(errors="replace")


def ctrl_c(wine, work, bundle):
    """Ctrl-C ends a program with 130; an export leaves nothing."""
    folder = work / "ctrl_c"
    folder.mkdir()

    def answered(process):
        process.stdin.write((ROOT / programs.SCENE).read_bytes())
        process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            raise Failed(f"fvlm-run under ctrl_c.exe: {process.wait()}: {process.stderr.read().decode()}")
        expect("an answer before Ctrl-C", json.loads(line)["text"].strip(), programs.description())

    flags = ["--model", bundle, *wine.engine("tract"), "--json", "--frames", "-", "--no-drop"]
    code, said = pressed(wine, work, "fvlm-run.exe", *flags, ready=answered, stdin=subprocess.PIPE)
    expect(f"fvlm-run after Ctrl-C ({said[-300:]})", code, 130)

    def begun(process):
        programs.wait_for("a part of a bundle", lambda: list(folder.glob("*/bundle/onnx/*")), process)

    flags = [*programs.FORMS["graphs"], "-o", folder / "bundle"]
    code, said = pressed(wine, work, "fvlm-export.exe", *flags, ready=begun)
    expect(f"fvlm-export after Ctrl-C ({said[-300:]})", code, 130)
    expect("what an export left after Ctrl-C", [path.name for path in folder.iterdir()], [])


def microsoft(row):
    """Checks types as for Microsoft's compiler, which is not here."""
    name = MICROSOFT.replace("-", "_")
    # tract assembles by Microsoft's own programs alone.
    tools = zig.script("ml64.exe", ASSEMBLER).parent
    zig.script("lib.exe", 'exec llvm-lib "$@"\n')
    settings = {
        f"CC_{name}": str(zig.compiler(MICROSOFT, "x86_64-windows-gnu")),
        f"AR_{name}": "llvm-lib",
        "VCINSTALLDIR": str(tools),
        "VSINSTALLDIR": str(tools),
    }
    check_types(row, MICROSOFT, "fvlm-runtime/rten", settings)


def check(table, ci):
    install()
    if not ci:
        with table.cell(MICROSOFT, "built") as row:
            microsoft(row)
    with table.cell(TRIPLE, "built") as row:
        crates = ["-p", "exporter", "-p", "fvlm-runtime", "-p", "server", "--bins"]
        cargo("build", TRIPLE, *crates, environment=ENVIRONMENT)
        row.append("three programs")
    if not table.is_earned(TRIPLE, "built"):
        return
    with table.cell(TRIPLE, "linked") as row:
        linked(row)
    prefix()
    wine = machine()
    with tempfile.TemporaryDirectory() as work:
        work = pathlib.Path(work)
        bundle = programs.exported(work / "demo", programs.SMALL)
        try:
            programs.compared(table, TRIPLE, [wine], bundle, work)
            with table.cell(TRIPLE, "tests run") as row:
                programs.tried(wine, bundle, work)
                ctrl_c(wine, work, bundle)
                row.append(
                    "replacing, locks, odd and long paths, a bundle in use, binary stdin, Ctrl-C, HTTP"
                )
        finally:
            # Wine's server outlives its programs by some seconds.
            subprocess.run([WINE.replace("wine64", "wineserver64"), "-k"], env={**os.environ, **SETTINGS})
