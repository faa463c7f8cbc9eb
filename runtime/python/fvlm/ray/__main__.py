"""`python -m fvlm.ray`: captions of folders, buckets and webdataset tars on a Ray cluster, as Parquet."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from typing import Any

import fvlm
from fvlm.ray import Progress, caption


def positive(text: str) -> int:
    """A number of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"found {text}, expected 1 or more")
    return number


def share(text: str) -> float:
    """A number of processors."""
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"found {text}, expected more than 0")
    return number


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m fvlm.ray",
        description="Captions of the images of folders, buckets and webdataset tars, on a Ray cluster, as Parquet files of "
        "`path`, `caption` and `error`. Images that have a row are not asked about again: what was ended goes on.",
        epilog="Exit codes: 0 done; 1 done, and some images have an error in the place of a caption; 2 an error; "
        "130 interrupted.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="folder, bucket (s3://, gs:// and what else pyarrow knows), image, or webdataset tar (.tar, .tar.gz, .tgz); "
        "a folder is read with those below it, its tars too",
    )
    parser.add_argument(
        "--output", required=True, metavar="FOLDER", help="folder or bucket for Parquet files, of its own"
    )
    parser.add_argument(
        "--bundle", required=True, metavar="DIR", help="the bundle, the same on every machine"
    )
    parser.add_argument("--question", default="Describe the image.", help="default: %(default)s")
    parser.add_argument("--max-tokens", type=positive, default=256, help="of an answer (default: 256)")
    parser.add_argument("--provider", help="who computes, as fvlm-run has it (default: the first that works)")
    parser.add_argument("--precision", help="which of the bundle's precisions (default: the provider's best)")
    parser.add_argument(
        "--workers", type=positive, default=1, help="actors with the bundle open (default: 1)"
    )
    parser.add_argument("--cpus", type=share, default=1.0, help="processors of each (default: 1)")
    parser.add_argument(
        "--threads", type=positive, help="threads that compute in each (default: its processors)"
    )
    parser.add_argument(
        "--batch", type=positive, default=16, help="images that a worker describes together (default: 16)"
    )
    parser.add_argument(
        "--rows", type=positive, default=1000, help="most rows of a Parquet file (default: 1000)"
    )
    parser.add_argument(
        "--retry-errors", action="store_true", help="ask again about images that got an error before"
    )
    parser.add_argument("--address", help="the cluster (default: the one this machine is of, else a new one)")
    return parser.parse_args(arguments)


def say(*words: object) -> None:
    print(*words, file=sys.stderr, flush=True)


def connect(given: argparse.Namespace) -> None:
    """Joins the cluster, or starts one here; says so where no machine of it has what a worker needs."""
    import ray

    address = given.address or os.environ.get("RAY_ADDRESS", "")
    host, _, port = address.rpartition(":")
    if host and port.isdecimal() and "//" not in host:
        # Ray itself goes on trying for minutes.
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=20).close()
        except (OSError, OverflowError) as error:
            raise fvlm.Error(f"{address}: no cluster: {error}") from error
    own = False
    try:
        ray.init(address=given.address or "auto", log_to_driver=False)
    except ConnectionError:
        if address:
            raise
        ray.init(address="local", log_to_driver=False)
        own = True
    # Which has no types.
    cluster: Any = ray
    most = max(float(node["Resources"].get("CPU", 0)) for node in cluster.nodes() if node["Alive"])
    if given.cpus <= most:
        return
    if own:
        raise fvlm.Error(f"--cpus is {given.cpus:g}, expected at most {most:g}: this machine has no more")
    say(
        f"warning: --cpus is {given.cpus:g}, and no machine of the cluster has more than {most:g}: this waits until one "
        "joins that has"
    )


def report(progress: Progress, begun: float) -> None:
    rate = progress.written / max(time.monotonic() - begun, 1e-9)
    left = "" if progress.left is None else f", {progress.left} left"
    say(f"{progress.written} rows written, {rate:.1f} a second{left}")


def terminate(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def main(arguments: Sequence[str] | None = None) -> int:
    """The program; its exit code."""
    given = parse(arguments)
    try:
        import pyarrow  # noqa: F401
        from ray.data.exceptions import ExecutionTimeoutError
        from ray.exceptions import RayError
    except ImportError as error:
        say(f"error: {error}; install it: pip install 'fvlm[ray]'")
        return 2
    model = {"provider": given.provider, "precision": given.precision}
    progress, begun = Progress(0, 0, 0, None), time.monotonic()
    try:
        runs = caption(
            given.inputs,
            given.output,
            given.bundle,
            given.question,
            workers=given.workers,
            cpus=given.cpus,
            batch=given.batch,
            rows=given.rows,
            threads=given.threads,
            retry_errors=given.retry_errors,
            model={name: value for name, value in model.items() if value is not None},
            options={"max_tokens": given.max_tokens},
        )
        progress = next(runs)
        more = "tars are to be read" if progress.left is None else f"{progress.left} images are left"
        say(f"{progress.rows} rows are there, {more}")
        if progress.left != 0:
            connect(given)
            signal.signal(signal.SIGTERM, terminate)
            begun = time.monotonic()
        for progress in runs:
            report(progress, begun)
    except KeyboardInterrupt:
        say("interrupted; what was computed is written, and the same command goes on with the rest")
        return 130
    except (RayError, ExecutionTimeoutError) as error:
        cause = getattr(error, "cause", None) or error
        # Ray has shown where it comes from; the last line is what went wrong.
        words = str(cause).strip().splitlines() or [type(cause).__name__]
        say(f"error: {words[-1]}")
        return 2
    except (fvlm.Error, OSError, ValueError, TypeError) as error:
        say(f"error: {error}")
        return 2
    if progress.errors:
        say(f"{progress.errors} of {progress.rows} images have an error in the place of a caption")
    return 1 if progress.errors else 0


if __name__ == "__main__":
    sys.exit(main())
