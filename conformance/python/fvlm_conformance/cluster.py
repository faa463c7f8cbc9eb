"""`python -m fvlm.ray` on a cluster of two nodes, against `fvlm-run --output`; drivers, a worker and a node are killed.

Every image has exactly one row, with the words of fvlm-run. Run by scripts/check_ray.
"""

import argparse
import collections
import contextlib
import gzip
import io
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tarfile
import tempfile
import time

import fvlm
import pyarrow.parquet as pq
import ray
from fvlm import _library
from ray.cluster_utils import Cluster

from .attacks.captions import png

# Pictures, and every how manyth of them is broken.
COUNT, BROKEN = 1500, 97
# Rows of a file, and rows that a run writes before something is killed.
ROWS, BEFORE = 20, 60
# Seconds after which a run is taken for one that hangs.
LONGEST = 900
MOST = ["--max-tokens", "32"]
failed = []


def say(*words):
    print(*words, file=sys.stderr, flush=True)


def expect(what, found, expected):
    if found != expected:
        failed.append(what)
        say(f"BAD {what}: found {found!r}, expected {expected!r}")


def pictures(folder):
    """Pictures in folders with odd names; some are cut off or empty."""
    chance = random.Random(17)
    for number in range(COUNT):
        path = folder / f"{number // 100} ä%20#" / f"{number:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        data = png(chance)
        broken = number % BROKEN == BROKEN - 1
        path.write_bytes(data[: len(data) // 2 * (number % 2)] if broken else data)


def reference(program, model, folder, *inputs):
    """What fvlm-run says of images: path to text, or None where it has an error."""
    output = folder / "reference.jsonl"
    environment = dict(os.environ)
    if installed := _library.onnxruntime():
        environment.setdefault("ORT_DYLIB_PATH", installed)
    command = [program, "--model", model, "--quiet", *MOST, "--output", output, *inputs]
    ran = subprocess.run([str(part) for part in command], env=environment, capture_output=True, text=True)
    if ran.returncode not in (0, 1):
        sys.exit(f"error: fvlm-run: {ran.stderr}")
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    return {line["image"]: line.get("text") for line in lines}


def rows(folder):
    """Rows of an output so far."""
    found = []
    for path in folder.glob("captions-*.parquet"):
        found += pq.read_table(path).to_pylist()
    return found


class Run:
    """The program, as it runs; with one worker more than there is room for."""

    def __init__(self, cluster, model, output, inputs, workers=3):
        self.output, self.said = output, tempfile.TemporaryFile("w+")
        command = [sys.executable, "-m", "fvlm.ray", "--bundle", model, "--output", output, *MOST]
        command += ["--rows", ROWS, "--batch", 8, "--workers", workers, "--address", cluster.address, *inputs]
        self.begun = time.monotonic()
        self.process = subprocess.Popen(
            [str(part) for part in command],
            stderr=self.said,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def until(self, count):
        """Waits for rows; whether it still runs then."""
        while time.monotonic() - self.begun < LONGEST:
            if self.process.poll() is not None:
                return False
            with contextlib.suppress(FileNotFoundError):
                if len(list(self.output.glob("captions-*.parquet"))) * ROWS >= count:
                    return True
            time.sleep(0.02)
        self.process.kill()
        sys.exit(f"error: {count} rows were not there after {LONGEST} s\n{self.words()}")

    def end(self):
        """Its exit code, and what it said."""
        try:
            code = self.process.wait(timeout=LONGEST)
        except subprocess.TimeoutExpired:
            self.process.kill()
            sys.exit(f"error: it did not end within {LONGEST} s\n{self.words()}")
        return code, self.words()

    def words(self):
        self.said.seek(0)
        return self.said.read()


def workers(node):
    """Processes of a node that have the bundle open: they are children of its raylet."""
    raylet = node.all_processes["raylet"][0].process.pid
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((path / "stat").read_text().rsplit(")", 1)[1].split()[1])
            if parent == raylet and b"_Worker" in (path / "cmdline").read_bytes():
                found.append(int(path.name))
    return found


def same(what, output, expected):
    """Every image has one row, and the words are those."""
    found = rows(output)
    counts = collections.Counter(row["path"] for row in found)
    expect(f"{what}: rows doubled", [path for path, count in counts.items() if count > 1], [])
    expect(f"{what}: rows lost", sorted(set(expected) - set(counts))[:5], [])
    expect(f"{what}: rows of nothing", sorted(set(counts) - set(expected))[:5], [])
    other = [
        (row["path"], row["caption"], expected[row["path"]])
        for row in found
        if row["path"] in expected and row["caption"] != expected[row["path"]]
    ]
    expect(f"{what}: other words", other[:3], [])
    unclear = [row["path"] for row in found if (row["caption"] is None) == (not row["error"])]
    expect(f"{what}: neither caption nor error, or both", unclear[:3], [])
    leftovers = [path.name for path in output.iterdir() if path.name.startswith((".writing-", "_running-"))]
    expect(f"{what}: leftovers", leftovers, [])
    broken = sum(row["error"] is not None for row in found)
    say(f"{what}: {len(found)} rows, {broken} with an error, {len(expected)} expected")


def killed(cluster, second, given, images, expected, work):
    """One output, by a driver that is killed, one that is interrupted, and one that loses a worker and a node."""
    output = work / "out put"
    first = Run(cluster, given.model, output, [images])
    if not first.until(BEFORE):
        sys.exit(f"error: the first run ended before it was killed\n{first.words()}")
    refused = Run(cluster, given.model, output, [images]).end()
    expect("a second run at once", (refused[0], "another run writes it" in refused[1]), (2, True))
    first.process.kill()
    first.end()
    before = len(rows(output))
    say(f"driver killed with {before} rows")
    again = Run(cluster, given.model, output, [images])
    if not again.until(before + BEFORE):
        sys.exit(f"error: the second run ended before it was interrupted\n{again.words()}")
    again.process.send_signal(signal.SIGINT)
    code, said = again.end()
    expect(
        "an interrupted run", (code, "goes on with the rest" in said, "Traceback" in said), (130, True, False)
    )
    other = Run(cluster, given.model, output, [images, "--question", "What colour is it?"]).end()
    expect("another question", (other[0], "made with question" in other[1]), (2, True))
    before = len(rows(output))
    say(f"driver interrupted with {before} rows")
    last = Run(cluster, given.model, output, [images])
    alive = last.until(before + BEFORE)
    nodes = [[node for node in cluster.list_all_nodes() if node is not second], [second]]
    here, there = ([pid for node in some for pid in workers(node)] for some in nodes)
    expect("workers on both nodes", (alive, len(here), len(there)), (True, 1, 1))
    os.kill(here[0], signal.SIGKILL)
    say(f"worker killed with {len(rows(output))} rows")
    expect("a node to kill", last.until(before + 2 * BEFORE), True)
    cluster.remove_node(second, allow_graceful=False)
    say(f"node killed with {len(rows(output))} rows")
    third = cluster.add_node(num_cpus=1, object_store_memory=100 << 20)
    code, said = last.end()
    expect("the last run's exit code", code, 1)
    if code != 1:
        say(said)
    same("killed runs", output, expected)
    done = Run(cluster, given.model, output, [images]).end()
    expect("nothing left", (done[0], "0 images are left" in done[1]), (1, True))
    return third


def tars(cluster, given, images, expected, work):
    """The same pictures in tars, plain, packed and cut off."""
    folder = work / "tars"
    folder.mkdir()
    paths = sorted(images.rglob("*.png"))
    wanted = {}
    for number, part in enumerate((paths[:200], paths[200:320], paths[320:380])):
        sink = io.BytesIO()
        with tarfile.open(fileobj=sink, mode="w") as tar:
            for path in part:
                tar.add(path, arcname=f"{path.parent.name}/{path.stem}.left.png")
        data = sink.getvalue()
        name = folder / ("a.tar", "b.tar.gz", "c.tar")[number]
        if number == 2:
            # Behind thirty members, in the middle of a header.
            with tarfile.open(fileobj=io.BytesIO(data)) as tar:
                at = tar.getmembers()[30].offset
            data, part = data[: at + 100], part[:30]
            wanted[str(name)] = None
        name.write_bytes(gzip.compress(data) if number == 1 else data)
        for path in part:
            wanted[f"{name}/{path.parent.name}/{path.stem}.left.png"] = expected[str(path)]
    output = work / "tars.captions"
    code, said = Run(cluster, given.model, output, [folder]).end()
    expect("tars: exit code", code, 1)
    if code != 1:
        say(said)
    same("tars", output, wanted)
    cut = [row["error"] for row in rows(output) if row["path"] == str(folder / "c.tar")]
    expect("a tar that is cut off", ["cut off" in (error or "") for error in cut], [True])


def rates(cluster, given, images, work):
    """The rate of one worker and of two, behind the first file."""
    found = []
    for count in (1, 2):
        output = work / f"rate-{count}"
        run = Run(cluster, given.model, output, [images], workers=count)
        run.until(ROWS)
        begun, before = time.monotonic(), len(rows(output))
        run.end()
        found.append((len(rows(output)) - before) / (time.monotonic() - begun))
    say(
        f"rate: {found[0]:.1f} images a second with one worker, {found[1]:.1f} with two, {found[1] / found[0]:.2f} times "
        f"({os.cpu_count()} processors; whatever else they do counts)"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--program", required=True, help="fvlm-run")
    parser.add_argument("--model", required=True, type=pathlib.Path, help="the bundle")
    parser.add_argument("--rates", action="store_true", help="measure one worker and two")
    given = parser.parse_args()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fvlm-ray-") as name:
        work = pathlib.Path(name)
        images = work / "images"
        pictures(images)
        expected = reference(given.program, given.model, work, images)
        expect("pictures that fvlm-run has lines for", len(expected), COUNT)
        expect("pictures that are broken", sum(text is None for text in expected.values()), COUNT // BROKEN)
        node = {"num_cpus": 1, "object_store_memory": 100 << 20}
        cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
        try:
            second = cluster.add_node(**node)
            say(
                f"Ray {ray.__version__}, fvlm {fvlm.__version__}: two nodes after {time.monotonic() - begun:.0f} s"
            )
            killed(cluster, second, given, images, expected, work)
            tars(cluster, given, images, expected, work)
            if given.rates:
                rates(cluster, given, images, work)
        finally:
            cluster.shutdown()
    spent = os.times()
    took = f"{time.monotonic() - begun:.0f} s, {spent.children_user + spent.user:.0f} user, {spent.children_system + spent.system:.0f} system"
    if failed:
        sys.exit(f"error: {len(failed)} of what {took} showed is not so: {', '.join(failed)}")
    print(f"ray: OK, {took}")


if __name__ == "__main__":
    main()
