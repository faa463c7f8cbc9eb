"""AArch64 Linux, run under qemu's user mode: it tells right from wrong, and nothing about speed."""

import os
import pathlib
import re
import shutil
import subprocess
import tempfile

from . import programs, python, tests
from .common import (
    BUILT,
    COMPILER_PACKAGES,
    ROOT,
    Failed,
    cargo,
    compiler_is_missing,
    debian,
    expect,
    is_installed,
    onnxruntime,
    packages,
    run,
    sysroot,
    update,
    without,
)

TRIPLE = "aarch64-unknown-linux-gnu"
RELEASE = BUILT / TRIPLE / "release"
# Processors of qemu by the best set that the kernels find on them.
PROCESSORS = {"neon": "cortex-a72", "neon-dotprod": "neoverse-n1", "neon-i8mm": "max"}
LINKER = "aarch64-linux-gnu-gcc"
ENVIRONMENT = {
    "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER": LINKER,
    "CC_aarch64_unknown_linux_gnu": LINKER,
    "CXX_aarch64_unknown_linux_gnu": "aarch64-linux-gnu-g++",
}
BINARIES = ["-p", "exporter", "-p", "fvlm-runtime", "-p", "server", "-p", "conformance", "--bins"]
# Tests that take an emulated processor hours; the others have the same code, and smaller images. The last one
# measures the process's memory, which is the emulator's here.
SLOW = ["references/demo", "demo-512", "fused_graphs"]
LIBRARIES = ["libc6:arm64", "libstdc++6:arm64", "libgcc-s1:arm64"]


def missing():
    """What the checks need and this machine lacks."""
    found = compiler_is_missing(TRIPLE) + without([LINKER, "aarch64-linux-gnu-g++"])
    for library in ["/lib/aarch64-linux-gnu/libc.so.6", "/usr/lib/aarch64-linux-gnu/libstdc++.so.6"]:
        if not pathlib.Path(library).exists():
            found.append(library)
    if shutil.which("/usr/bin/rustc") and not is_installed(TRIPLE):
        if not (sysroot() / "lib/rustlib" / TRIPLE).exists():
            found.append(f"the standard library for {TRIPLE}")
    qemu = shutil.which("qemu-aarch64-static")
    version = subprocess.run([qemu, "--version"], capture_output=True, text=True).stdout if qemu else ""
    number = re.search(r"version (\d+)", version)
    # Debian 12's own qemu crashes where ONNX Runtime's library is loaded.
    if not number or int(number.group(1)) < 9:
        found.append("qemu-aarch64-static, version 9 or later")
    return found


def add_backports():
    """Debian's archive of newer packages, from where the others come."""
    sources = pathlib.Path("/etc/apt/sources.list.d")
    files = [path for path in [*sources.glob("*"), sources.parent / "sources.list"] if path.is_file()]
    written = "".join(path.read_text() for path in files)
    if "bookworm-backports" not in written:
        where = re.search(r"https?://\S*debian/?(?=\s)", written)
        mirror = where.group(0) if where else "http://deb.debian.org/debian"
        (sources / "backports.list").write_text(f"deb {mirror} bookworm-backports main\n")


def install():
    if missing() and os.geteuid() == 0 and shutil.which("dpkg"):
        add_backports()
    needed = ["gcc-aarch64-linux-gnu", "g++-aarch64-linux-gnu", "libstd-rust-web-dev:arm64", *LIBRARIES]
    debian(
        "AArch64",
        missing,
        [
            ["dpkg", "--add-architecture", "arm64"],
            update(),
            packages(*COMPILER_PACKAGES, *needed),
            packages("qemu-user-static", release="bookworm-backports"),
        ],
    )


def emulated(processor):
    return ["qemu-aarch64-static", "-cpu", processor]


def kernels_library():
    """The kernels as a release has them, for who reads their instructions."""
    install()
    cargo("build", TRIPLE, "-p", "fvlm-kernels", environment=ENVIRONMENT)
    return RELEASE / "libkernels.rlib"


def kernels(row):
    """The tests of the kernels, on a processor of each instruction set."""
    made = tests.built(TRIPLE, "-p", "fvlm-kernels", environment=ENVIRONMENT)
    for name, processor in PROCESSORS.items():
        prefix = emulated(processor)
        count = tests.side_by_side(made, prefix=prefix, settings=dict(os.environ))
        row.append(f"{count} of the kernels' tests on {name}")


def workspace(row, library):
    """All tests of the workspace but those of the kernels and the slow ones, as on a machine with that processor."""
    made = tests.built(TRIPLE, "--workspace", "--exclude", "fvlm-kernels", environment=ENVIRONMENT)
    settings = {
        **os.environ,
        "ORT_DYLIB_PATH": str(library),
        "FVLM_REQUIRE": "cpu,tract",
        "QEMU_CPU": PROCESSORS["neon-i8mm"],
        # Tests that compile libraries load them, too.
        "CC": LINKER,
    }
    for name in ["FVLM_BIN", "FVLM_ISA"]:
        settings.pop(name, None)
    with tests.programs_start_programs(shutil.which("qemu-aarch64-static")):
        count = tests.side_by_side(made, prefix=[], settings=settings, skip=SLOW)
    row.append(f"{count} of the workspace's tests")


def machines(library=None):
    return [
        programs.Machine(f"{TRIPLE}, {name}", RELEASE, emulated(processor), library=library)
        for name, processor in PROCESSORS.items()
    ]


def elf(path):
    """What LLVM's reader says of a file."""
    return run(["aarch64-linux-gnu-readelf", "-W", "-h", "-l", "-d", path], capture_output=True).stdout


def linked(row):
    """Programs for the right processor, segments that 64 KiB pages can map, no path of this machine to look for libraries."""
    files = [
        *(RELEASE / f"fvlm-{name}" for name in ("export", "run", "serve", "conform")),
        RELEASE / "libfvlm.so",
    ]
    for file in files:
        said = elf(file)
        if "AArch64" not in said:
            raise Failed(f"{file}: not for AArch64: {said[:500]}")
        expect(f"{file}: paths to look for libraries", re.findall(r"RPATH|RUNPATH", said), [])
        for line in re.findall(r"^\s+LOAD\s.*$", said, re.M):
            expect(f"{file}: alignment of a segment", int(line.split()[-1], 16) >= 0x10000, True)
    expect(
        "libfvlm.so: its name", re.findall(r"SONAME.*\[(.*)\]", elf(RELEASE / "libfvlm.so")), ["libfvlm.so"]
    )
    row.append("segments fit pages of 64 KiB, no paths inside")


def in_c(machine, work, bundle):
    """The example in C, against the shared library and against the static one."""
    flags = ["-std=c99", "-Wall", "-Wextra", "-Werror", f"-I{ROOT / 'runtime/capi/include'}"]
    source = ROOT / "runtime/capi/examples/describe.c"
    shared, static = work / "describe", work / "describe-static"
    run([LINKER, *flags, source, f"-L{RELEASE}", "-lfvlm", "-o", shared], stderr=subprocess.PIPE)
    run(
        [LINKER, *flags, source, RELEASE / "libfvlm.a", "-lm", "-lpthread", "-ldl", "-o", static],
        stderr=subprocess.PIPE,
    )
    for program in (shared, static):
        done = machine.run(
            program, bundle, programs.SCENE, env=machine.settings(LD_LIBRARY_PATH=str(RELEASE))
        )
        expect(f"{program.name} on AArch64", done.stdout.strip(), programs.description())


def pages(machine, work, bundle):
    """Answers and an export on a system with pages of 16 and of 64 KiB, as far as a program can tell."""
    library = work / "pages.so"
    source = ROOT / "scripts/platforms/c/pages.c"
    run([LINKER, "-O1", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", source, "-o", library])
    for size in (16384, 65536):
        # The emulator itself is linked statically: it loads nothing before.
        settings = machine.settings(LD_PRELOAD=str(library), FVLM_PAGES=str(size))
        for provider in ("tract", "cpu"):
            done = machine.run(
                "fvlm-run",
                "--model",
                bundle,
                "--quiet",
                *machine.engine(provider),
                programs.SCENE,
                env=settings,
            )
            expect(f"{provider} with pages of {size}", done.stdout.strip(), programs.description())
        target = work / f"pages-{size}"
        machine.run("fvlm-export", *programs.SMALL, "-o", target, env=settings)
        programs.same_files(f"a bundle written with pages of {size}", target, bundle)


def package(row, bundle, work):
    """The wheel, in a bare environment."""
    emulators = [emulated(processor) for processor in PROCESSORS.values()]
    row.append(python.used(emulators, python.wheel(ENVIRONMENT), bundle, work))


def check(table, ci):
    install()
    if ci:
        # What there is time for: all of the code but `libfvlm`'s, on each of the kernels' sets.
        with table.cell(TRIPLE, "tests run") as row, tempfile.TemporaryDirectory() as work:
            work = pathlib.Path(work)
            package(row, programs.exported(work / "demo", programs.SMALL), work)
        return
    with table.cell(TRIPLE, "built") as row:
        cargo("build", TRIPLE, *BINARIES, "-p", "capi", "--lib", environment=ENVIRONMENT)
        row.append("four programs, `libfvlm`")
    if not table.is_earned(TRIPLE, "built"):
        return
    with table.cell(TRIPLE, "linked") as row:
        linked(row)
    library = onnxruntime("manylinux_2_28_aarch64", "libonnxruntime.so.*")
    every = machines(library)
    best = every[-1]
    with tempfile.TemporaryDirectory() as work:
        work = pathlib.Path(work)
        bundle = programs.exported(work / "demo", programs.SMALL)
        programs.compared(table, TRIPLE, every, bundle, work)
        with table.cell(TRIPLE, "tests run") as row:
            programs.tried(best, bundle, work)
            pages(best, work, bundle)
            in_c(best, work, bundle)
            row.append(
                "replacing, locks, odd and long paths, a bundle in use, stdin, HTTP, pages of 16 and 64 KiB, C"
            )
            kernels(row)
            workspace(row, library)
            package(row, bundle, work)
