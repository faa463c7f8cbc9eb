"""A folder with a bundle in it, and what may be found there after an attack: the old bundle, the new one, or none."""

import collections
import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[4]
CHECKPOINT = ROOT / "models" / "demo" / "checkpoint"
SCENE = ROOT / "models" / "demo" / "scenes" / "scene_1.png"

# Forms that are exported: every target and every kind of package.
FORMS = {
    "fp32": ["--precision", "fp32"],
    "fp16": ["--precision", "fp16"],
    "q4": ["--precision", "q4"],
    "int8": ["--precision", "int8"],
    "ort-coreml": ["--target", "coreml"],
    "packages": ["--to", "coreml"],
    "many": ["--precision", "fp32", "--precision", "q4", "--image-size", "128", "--card"],
    "both": ["--to", "onnx", "--to", "coreml", "--precision", "q4", "--self-contained"],
}


def programs():
    """The folder of the programs: FVLM_BIN, or what `scripts/binaries` builds."""
    command = [ROOT / "scripts" / "binaries", "-p", "exporter", "-p", "fvlm-runtime"]
    found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    return pathlib.Path(found)


class World:
    """One target in a folder of its own, and the bundle of each form that has been seen whole."""

    def __init__(self, bin_folder, parent=None):
        self.bin = bin_folder
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="fvlm-attack-", dir=parent))
        self.target = self.folder / "bundle"
        self.whole = {}
        self.counts = collections.Counter()
        self.bad = []

    def close(self):
        shutil.rmtree(self.folder, ignore_errors=True)

    def export(self, form, *more, model=CHECKPOINT):
        """The command that exports a form to the target."""
        command = [self.bin / "fvlm-export", "--model", model, "-o", self.target, "--overwrite"]
        return [str(part) for part in [*command, *FORMS[form], *more]]

    def state(self):
        """Which bundle is there, as the hash of its contract, and what is wrong with it."""
        contract = self.target / "bundle.json"
        if not self.target.exists():
            return None, []
        try:
            text = contract.read_bytes()
            files = {file["path"]: file for file in json.loads(text)["files"]}
        except (OSError, ValueError, KeyError) as error:
            return None, [f"bundle.json: {error}"]
        problems = []
        for path, file in files.items():
            try:
                contents = (self.target / path).read_bytes()
            except OSError as error:
                problems.append(str(error))
                continue
            if hashlib.sha256(contents).hexdigest() != file["sha256"]:
                problems.append(f"{path} has another hash")
        for folder, _, names in os.walk(self.target):
            for name in names:
                path = os.path.relpath(os.path.join(folder, name), self.target)
                if path != "bundle.json" and path.replace(os.sep, "/") not in files:
                    problems.append(f"{path} is foreign")
        return hashlib.sha256(text).hexdigest(), problems

    def leftovers(self):
        """What lies beside the target."""
        return sorted(name for name in os.listdir(self.folder) if name not in ("bundle", "hub"))

    def learn(self, forms, **options):
        """Exports each form undisturbed, and remembers its bundle."""
        for form in forms:
            ran = subprocess.run(self.export(form, **options), capture_output=True, text=True)
            assert ran.returncode == 0, (form, ran.stderr)
            found, problems = self.state()
            assert not problems and not self.leftovers(), (form, problems, self.leftovers())
            self.whole[form] = found

    def wrong(self, *what):
        """Takes note of something that must not be, and shows it."""
        self.bad.append(what)
        print("BAD", what, flush=True)

    def judge(self, what, allowed):
        """Counts what is there after an attack; `allowed` are forms, and None for no bundle."""
        found, problems = self.state()
        names = {self.whole[form]: form for form in self.whole}
        form = names.get(found) if found else None
        if problems or form not in allowed or (found and form is None):
            self.wrong(what, form, problems)
        return form

    def answers(self, *more, environment=None, model=None):
        """What fvlm-run says about a scene: return code, stdout, stderr."""
        command = [self.bin / "fvlm-run", "--model", model or self.target, *more, SCENE]
        ran = subprocess.run(
            [str(part) for part in command], capture_output=True, text=True, env=environment, timeout=120
        )
        return ran.returncode, ran.stdout, ran.stderr
