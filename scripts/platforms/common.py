"""What the checks of all platforms share: commands, Debian's packages and compiler, and the table of what was seen."""

import contextlib
import functools
import hashlib
import json
import os
import pathlib
import platform
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time

from script import ROOT, TARGET, words

# One folder for all platforms: build scripts and procedural macros are those of the machine, and are built once.
BUILT = TARGET / "platforms"
COLUMNS = ["built", "linked", "tests run", "answers equal", "bundle equal"]
NOT_RUN = "not run"
COMPILER = {
    "RUSTC": "/usr/bin/rustc",
    "RUSTDOC": "/usr/bin/rustdoc",
    "RUSTC_BOOTSTRAP": "1",
    "CARGO_TARGET_DIR": str(BUILT),
}


class Failed(Exception):
    """A check says that something is not as it should be."""


def say(text):
    print(f"check_platforms: {text}", file=sys.stderr, flush=True)


def finished(command, what=None, **options):
    """What a command of this machine did, in the repository's root; no end within `timeout` seconds is a failure."""
    command = words(command)
    options = {"cwd": ROOT, "text": True, **options}
    if "input" not in options:
        options.setdefault("stdin", subprocess.DEVNULL)
    try:
        return subprocess.run(command, **options)
    except subprocess.TimeoutExpired as expired:
        shown = what or " ".join(command)
        raise Failed(f"{shown}: no end after {options['timeout']} seconds") from expired


def run(command, code=0, **options):
    """As `finished`; another exit code is a failure too."""
    done = finished(command, **options)
    if done.returncode != code:
        said = "".join(
            text if isinstance(text, str) else text.decode(errors="replace")
            for text in (done.stdout, done.stderr)
            if text
        )
        raise Failed(
            f"{' '.join(words(command))}: exit code {done.returncode}, expected {code}: {said.strip()[-3000:]}"
        )
    return done


def expect(what, found, expected):
    if found != expected:
        raise Failed(f"{what}: found {found!r}, expected {expected!r}")


class Table:
    """Platforms and what was seen of them. A cell says `not run` until a command has earned another word."""

    def __init__(self):
        self.rows = {}
        self.failed = []
        self.remarks = []
        self.spent = []

    def row(self, name):
        return self.rows.setdefault(name, dict.fromkeys(COLUMNS, NOT_RUN))

    @contextlib.contextmanager
    def cell(self, name, column):
        """What is done inside earns the cell, which says what was added to the list. A failure stands in it."""
        row, earned = self.row(name), []
        assert column in COLUMNS, column
        try:
            yield earned
        except Failed as failure:
            say(f"{name}, {column}: FAILED: {failure}")
            self.failed.append(f"{name}, {column}")
            row[column] = "**failed**"
            return
        if earned:
            said = "; ".join(earned)
            row[column] = said
            say(f"{name}, {column}: {said}")

    def is_earned(self, name, column):
        return self.row(name)[column] not in (NOT_RUN, "**failed**")

    def remark(self, text):
        if text not in self.remarks:
            self.remarks.append(text)

    @contextlib.contextmanager
    def stage(self, name):
        """A failure ends this stage and none else. What it cost is said at the end."""
        start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
        try:
            yield
        except Failed as failure:
            say(f"{name}: FAILED: {failure}")
            self.failed.append(name)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        self.spent.append(f"{name}: {time.monotonic() - start:.0f} seconds, {cpu:.0f} of processors")

    def markdown(self):
        lines = [f"| platform | {' | '.join(COLUMNS)} |", f"|---{'|---' * len(COLUMNS)}|"]
        for name, row in self.rows.items():
            lines.append(f"| {name} | {' | '.join(row[column] for column in COLUMNS)} |")
        if self.remarks:
            lines += ["", *(f"- {remark}" for remark in self.remarks)]
        return "\n".join(lines) + "\n"

    def write(self, path):
        """As JSON, or between the marks of a file of Markdown."""
        if path.suffix == ".json":
            path.write_text(json.dumps({"rows": self.rows, "remarks": self.remarks}, indent=1) + "\n")
            return
        begin, end = "<!-- platforms -->\n", "<!-- /platforms -->\n"
        text = path.read_text() if path.exists() else begin + end
        before, mark, rest = text.partition(begin)
        _old, last, after = rest.partition(end)
        if not mark or not last:
            raise Failed(f"{path}: expected the lines `{begin.strip()}` and `{end.strip()}`")
        path.write_text(before + begin + self.markdown() + end + after)


def debian(what, lacking, commands):
    """Installs what `lacking()` names, by `commands` of Debian's; an error where that is not allowed or does not help."""
    found = lacking()
    if not found:
        return
    shown = "; ".join(" ".join(command) for command in commands)
    if platform.machine() != "x86_64" or not shutil.which("apt-get") or os.geteuid() != 0:
        raise Failed(f"this machine lacks {', '.join(found)}; on Debian, as root: {shown}")
    say(f"installing what {what} needs: {', '.join(found)} ...")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in commands:
        command = ["apt-get", "-q", *command[1:]] if command[0] == "apt-get" else command
        run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment)
    if found := lacking():
        raise Failed(f"still lacking after installation: {', '.join(found)}")


def update():
    return ["apt-get", "-o", "DPkg::Lock::Timeout=600", "update"]


def packages(*names, release=None):
    suite = ["-t", release] if release else []
    return [
        "apt-get",
        "-o",
        "DPkg::Lock::Timeout=600",
        "-y",
        "install",
        "--no-install-recommends",
        *suite,
        *names,
    ]


def without(programs):
    """Those that are not here."""
    return [program for program in programs if not shutil.which(program)]


def sysroot():
    return pathlib.Path(run(["/usr/bin/rustc", "--print", "sysroot"], capture_output=True).stdout.strip())


@functools.cache
def is_installed(triple):
    """Whether the machine's own toolchain has the standard library for a target (`rustup target add`)."""
    asked = ["rustc", "--print", "target-libdir", "--target", triple]
    folder = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    return bool(folder) and pathlib.Path(folder).exists()


def compiler_is_missing(*triples):
    """Debian's compiler, which has the standard library for other platforms, or its source; not where the own one has the targets."""
    if all(is_installed(triple) for triple in triples):
        return []
    found = without(["/usr/bin/rustc", "/usr/bin/cargo"])
    if not found and not (sysroot() / "lib/rustlib/src/rust/library/std/src").exists():
        found.append("the standard library's source")
    return found


COMPILER_PACKAGES = ["rustc-web", "cargo-web", "rust-web-src"]


# Other people's crates need not be fast here. In CI ours need not be either, but for the kernels, which are those of a release.
PROFILES = {
    False: ['profile.release.package."*".opt-level=1'],
    True: [
        'profile.release.package."*".opt-level=0',
        "profile.release.opt-level=1",
        "profile.release.package.fvlm-kernels.opt-level=3",
    ],
}
profile = PROFILES[False]


def hasten(ci):
    """Whether programs are built sooner and are slower."""
    global profile
    profile = PROFILES[ci]


def cargo(command, triple, *arguments, environment=None):
    """The own cargo where it knows the target, else Debian's: what it says that it made. A warning of the compiler about our own code
    is a failure."""
    own = is_installed(triple)
    compiler = {"CARGO_TARGET_DIR": str(BUILT)} if own else COMPILER
    settings = {**os.environ, **compiler, **(environment or {})}
    for name in ["RUSTFLAGS", "RUSTUP_TOOLCHAIN", "CARGO_ENCODED_RUSTFLAGS"]:
        settings.pop(name, None)
    config = [word for setting in profile for word in ("--config", setting)]
    build = ["--release", "--locked", "--target", triple]
    if not own and not (sysroot() / "lib/rustlib" / triple).exists():
        build.append("-Zbuild-std")
    program = "cargo" if own else "/usr/bin/cargo"
    words = [program, *config, command, "--message-format", "json", *build, *arguments]
    done = subprocess.run(words, cwd=ROOT, env=settings, text=True, stdout=subprocess.PIPE)
    messages = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    said = [message for message in messages if message["reason"] == "compiler-message"]
    shown = [
        message["message"]["rendered"].strip()
        for message in said
        if message["message"]["level"] == "error" or f"path+file://{ROOT}/" in message["package_id"]
    ]
    if done.returncode != 0 or shown:
        raise Failed(f"{' '.join(words)}: exit code {done.returncode}\n" + "\n\n".join(shown)[-6000:])
    return [message for message in messages if message["reason"] == "compiler-artifact"]


def check_types(row, triple, features, environment):
    """Checks all crates and tests for a target, against the real standard library."""
    selected = ["--workspace", "--all-targets", "--features", features]
    cargo("check", triple, *selected, environment=environment)
    row.append("types checked, all crates and tests, no warning")


def onnxruntime(platform_tag, pattern):
    """ONNX Runtime's library for another platform, from its wheel."""
    pins = (ROOT / "conformance/python/constraints.txt").read_text()
    version = re.search(r"^onnxruntime==(\S+)$", pins, re.M).group(1)
    folder = BUILT / f"onnxruntime-{version}-{platform_tag}"
    if not folder.exists():
        BUILT.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=BUILT) as download:
            pip = [
                sys.executable,
                "-m",
                "pip",
                "download",
                "--quiet",
                "--disable-pip-version-check",
                "--no-deps",
            ]
            wanted = ["--only-binary=:all:", "--platform", platform_tag, "--python-version", "3.12"]
            run([*pip, *wanted, "--dest", download, f"onnxruntime=={version}"])
            (wheel,) = pathlib.Path(download).glob("*.whl")
            run([sys.executable, "-m", "zipfile", "-e", wheel, pathlib.Path(download, "wheel")])
            whole = pathlib.Path(download, "libraries")
            whole.mkdir()
            for library in pathlib.Path(download, "wheel/onnxruntime/capi").glob(pattern):
                shutil.copy(library, whole)
            # Last: a download that was cut off is made again.
            whole.rename(folder)
    found = list(folder.glob(pattern))
    if len(found) != 1:
        raise Failed(f"{folder} has {len(found)} libraries of ONNX Runtime, expected one")
    return found[0]


@functools.cache
def own(program):
    """A program of this machine, which others are compared with."""
    folder = run(
        [ROOT / "scripts/binaries", "-p", "exporter", "-p", "fvlm-runtime", "--bins"], stdout=subprocess.PIPE
    ).stdout.strip()
    return pathlib.Path(folder, program)


def tree(folder):
    """SHA-256 of every file below a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }


def same_files(what, found, expected):
    found, expected = tree(found), tree(expected)
    if not expected:
        raise Failed(f"{what}: nothing to compare with")
    differing = sorted(
        name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name)
    )
    if differing:
        raise Failed(f"{what}: {len(differing)} of {len(expected)} files differ: {', '.join(differing[:10])}")
    return len(expected)
