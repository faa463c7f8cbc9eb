"""What an export costs: peak of anonymous memory (RssAnon), and its time as a ratio to cp of the same bytes.

    python3 scripts/measure_export.py target/release --size 7b [--precision fp32] [--to onnx] [--keep DIR]

Synthesises a bf16 checkpoint, exports it, copies the bundle with cp, in one run; Linux only.
"""

import argparse
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time


def peak_anonymous(process):
    """Polls /proc until the process ends; bytes."""
    peak = 0
    while process.poll() is None:
        try:
            status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
        except FileNotFoundError:
            break
        for line in status.splitlines():
            if line.startswith("RssAnon:"):
                peak = max(peak, int(line.split()[1]) * 1024)
        time.sleep(0.02)
    if process.wait() != 0:
        sys.exit(f"error: {process.args} ended with {process.returncode}")
    return peak


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("binaries", type=pathlib.Path)
    parser.add_argument("--size", default="7b")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--to", default="onnx")
    parser.add_argument(
        "--keep", type=pathlib.Path, help="directory for the checkpoint, reused where it exists"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fvlm-measure-") as work:
        work = pathlib.Path(work)
        checkpoint = arguments.keep or work / "checkpoint"
        if not checkpoint.exists():
            subprocess.run(
                [
                    arguments.binaries / "fvlm-conform",
                    "synth",
                    "--size",
                    arguments.size,
                    "--layout",
                    "llava",
                    "--dtype",
                    "bf16",
                    "--seed",
                    "1",
                    "-o",
                    checkpoint,
                ],
                check=True,
            )
        stored = sum(path.stat().st_size for path in checkpoint.iterdir())
        bundle = work / "bundle"
        os.sync()  # both measurements begin with nothing left to write
        start = time.monotonic()
        peak = peak_anonymous(
            subprocess.Popen(
                [
                    arguments.binaries / "fvlm-export",
                    "--model",
                    checkpoint,
                    "--precision",
                    arguments.precision,
                    "--to",
                    arguments.to,
                    "-o",
                    bundle,
                    "--quiet",
                ]
            )
        )
        exported = time.monotonic() - start
        written = sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file())
        os.sync()
        start = time.monotonic()
        subprocess.run(["cp", "-r", bundle, work / "copy"], check=True)
        os.sync()  # an export syncs what it writes
        copied = time.monotonic() - start
        shutil.rmtree(work / "copy")
        print(
            f"checkpoint {stored / 1e9:.2f} GB, bundle {written / 1e9:.2f} GB ({arguments.to}, {arguments.precision})"
        )
        print(f"peak of anonymous memory {peak / 1e6:.0f} MB")
        print(f"export {exported:.1f} s, cp of the bundle {copied:.1f} s, ratio {exported / copied:.2f}")


if __name__ == "__main__":
    main()
