"""Captions of many images on many machines: a class for `map_batches` of Ray Data, and a program around it.

    import fvlm.ray, ray

    images = ray.data.read_binary_files("s3://bucket/images", include_paths=True)
    captions = images.map_batches(
        fvlm.ray.Captioner,
        fn_constructor_kwargs={"bundle": "/models/fastvlm-bundle"},
        batch_size=16,
        compute=ray.data.ActorPoolStrategy(size=2),
    )
    captions.write_parquet("s3://bucket/captions")

Every worker opens the bundle once. Rows stay as they are and get a caption; an image that cannot be read gets its error
instead. The program reads folders, buckets and webdataset tars, writes Parquet, and goes on where it was ended:

    python -m fvlm.ray --bundle /models/fastvlm-bundle --output s3://bucket/captions s3://bucket/images
"""

from __future__ import annotations

import argparse
import os
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

import fvlm

__all__ = ["Captioner", "caption"]

#: Files that are images, by the ends of their names.
EXTENSIONS = ("png", "jpg", "jpeg", "webp", "gif", "bmp", "tif", "tiff", "heic", "avif")


class Captioner:
    """Describes the images of batches; one instance is one worker with the bundle open.

    bundle: the bundle's directory, on every machine.
    question: what is asked about every image.
    image: the column with images: paths, bytes of files, or pixels `[height, width, 3]` of uint8.
    caption, error: the columns that are added: the answer, and what was wrong. One of them is None in every row.
    drop: columns that are left out of the result, `image` by default; `()` keeps all.
    threads: threads of one worker; Ray's `num_cpus` does not limit them by itself.
    model: further keyword arguments of `fvlm.Model`.
    options: further keyword arguments of `Model.describe`.
    """

    def __init__(
        self,
        bundle: str,
        question: str = "Describe the image.",
        *,
        image: str = "bytes",
        caption: str = "caption",
        error: str = "error",
        drop: Sequence[str] | None = None,
        threads: int | None = None,
        model: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.model = fvlm.Model(bundle, threads=threads, **(model or {})).ready()
        self.question = question
        self.image, self.caption, self.error = image, caption, error
        self.drop = frozenset([image] if drop is None else drop)
        self.options = dict(options or {})

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The batch with captions: columns as Ray gives them (`batch_format="numpy"`), equally long."""
        if self.image not in batch:
            raise KeyError(f"found columns {', '.join(batch)}, expected `{self.image}` with images")
        for added in (self.caption, self.error):
            if added in batch and added not in self.drop:
                raise ValueError(f"found a column `{added}` already: name another one for what is added")
        answers = self.model.describe_each(batch[self.image], self.question, errors="return", **self.options)
        captions = np.empty(len(answers), dtype=object)
        errors = np.empty(len(answers), dtype=object)
        for row, answer in enumerate(answers):
            if isinstance(answer, str):
                captions[row] = answer
            else:
                errors[row] = str(answer)
        kept = {name: column for name, column in batch.items() if name not in self.drop}
        return {**kept, self.caption: captions, self.error: errors}


def caption(
    inputs: Sequence[str],
    output: str,
    bundle: str,
    question: str = "Describe the image.",
    *,
    workers: int = 1,
    cpus: float = 1,
    batch: int = 16,
    rows: int = 1000,
    threads: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> Iterator[int]:
    """Captions of the images of folders, buckets and webdataset tars (`.tar`), as Parquet files of `path`, `caption`, `error`.

    A file of `output` is there whole or not at all, so that whoever calls this again asks only about images that have no
    row yet. Yields how many rows were written so far, file by file; at the end each image has exactly one row.

    workers: actors, each with the bundle open on `cpus` of Ray's processors, with `threads` of its own (`cpus` of them).
    batch: images that a worker describes together. rows: rows of a file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq
    import ray.data
    from pyarrow import fs

    files, folder = (
        fs.FileSystem.from_uri(output) if "://" in output else (fs.LocalFileSystem(), os.path.abspath(output))
    )
    files.create_dir(folder, recursive=True)
    parts = [one for one in files.get_file_info(fs.FileSelector(folder)) if one.path.endswith(".parquet")]
    done: set[str] = set()
    for part in parts:
        done.update(pq.read_table(part.path, columns=["path"], filesystem=files)["path"].to_pylist())
    for left in files.get_file_info(fs.FileSelector(folder)):
        # Of a run that was ended while it wrote.
        if left.base_name.startswith(".writing-"):
            files.delete_file(left.path)

    datasets = [dataset for dataset in (_tars(inputs, done), _images(inputs, done)) if dataset is not None]
    schema = pa.schema([("path", pa.string()), ("caption", pa.string()), ("error", pa.string())])
    written = 0
    for dataset in datasets:
        answers = dataset.map_batches(
            Captioner,
            fn_constructor_kwargs={
                "bundle": bundle,
                "question": question,
                "threads": threads or max(1, int(cpus)),
                "options": dict(options or {}),
            },
            batch_size=batch,
            batch_format="numpy",
            num_cpus=cpus,
            compute=ray.data.ActorPoolStrategy(size=workers),
        )
        for table in answers.iter_batches(batch_size=rows, batch_format="pyarrow"):
            table = table.select(schema.names).cast(schema)
            name = f"{uuid.uuid4().hex}.parquet"
            pq.write_table(table, f"{folder}/.writing-{name}", filesystem=files)
            files.move(f"{folder}/.writing-{name}", f"{folder}/{name}")
            written += table.num_rows
            yield written


def _images(inputs: Sequence[str], done: set[str]) -> Any:
    """The files of folders and buckets that have no caption yet; None where there are none."""
    import ray.data
    from pyarrow import fs

    paths: list[str] = []
    for name in inputs:
        if name.endswith(".tar"):
            continue
        files, path = (
            fs.FileSystem.from_uri(name) if "://" in name else (fs.LocalFileSystem(), os.path.abspath(name))
        )
        found = files.get_file_info(path)
        if found.type == fs.FileType.NotFound:
            raise FileNotFoundError(f"{name}: no such file or folder, expected images or webdataset tars")
        every = [found] if found.is_file else files.get_file_info(fs.FileSelector(path, recursive=True))
        for one in every:
            if (
                one.is_file
                and (found.is_file or one.path.lower().endswith(EXTENSIONS))
                and one.path not in done
            ):
                paths.append(f"{name.split('://')[0]}://{one.path}" if "://" in name else one.path)
    if not paths:
        return None
    return ray.data.read_binary_files(sorted(set(paths)), include_paths=True)


def _tars(inputs: Sequence[str], done: set[str]) -> Any:
    """The images of webdataset tars that have no caption yet; None where there are no tars. Their path is `TAR/KEY.EXTENSION`."""
    import ray
    import ray.data

    tars = [name if "://" in name else os.path.abspath(name) for name in inputs if name.endswith(".tar")]
    if not tars:
        return None
    for name in tars:
        if "://" not in name and not os.path.isfile(name):
            raise FileNotFoundError(f"{name}: no such file")
    known = ray.put(done)
    samples = ray.data.read_webdataset(tars, decoder=False, include_paths=True)

    def images(sample: dict[str, Any]) -> list[dict[str, Any]]:
        seen = ray.get(known)
        found = []
        for kind in EXTENSIONS:
            path = f"{sample['path']}/{sample['__key__']}.{kind}"
            if sample.get(kind) is not None and path not in seen:
                found.append({"path": path, "bytes": sample[kind]})
        return found

    return samples.flat_map(images)


def main(arguments: Sequence[str] | None = None) -> int:
    """The program; its exit code: 1 where some images have an error in the place of a caption."""
    parser = argparse.ArgumentParser(
        prog="python -m fvlm.ray", description=__doc__.splitlines()[0] if __doc__ else None
    )
    parser.add_argument(
        "inputs", nargs="+", metavar="INPUT", help="folder, bucket or file of images, or webdataset .tar"
    )
    parser.add_argument(
        "--output", required=True, metavar="FOLDER", help="folder or bucket for Parquet files"
    )
    parser.add_argument("--bundle", required=True, metavar="DIR", help="the bundle, on every machine")
    parser.add_argument("--question", default="Describe the image.")
    parser.add_argument("--workers", type=int, default=1, help="actors with the bundle open (default: 1)")
    parser.add_argument("--cpus", type=float, default=1, help="processors of each (default: 1)")
    parser.add_argument(
        "--batch", type=int, default=16, help="images that a worker describes together (default: 16)"
    )
    parser.add_argument("--rows", type=int, default=1000, help="rows of a Parquet file (default: 1000)")
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--address", help="the cluster (default: the one this machine is of, else a new one)")
    given = parser.parse_args(arguments)
    for name in ("workers", "batch", "rows", "max_tokens"):
        if getattr(given, name) < 1:
            parser.error(f"--{name.replace('_', '-')} is {getattr(given, name)}, expected 1 or more")

    import ray

    ray.init(address=given.address, log_to_driver=False)
    try:
        for written in caption(
            given.inputs,
            given.output,
            given.bundle,
            given.question,
            workers=given.workers,
            cpus=given.cpus,
            batch=given.batch,
            rows=given.rows,
            options={"max_tokens": given.max_tokens},
        ):
            print(f"{written} rows written", file=sys.stderr)
    except FileNotFoundError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 1 if _errors(given.output) else 0


def _errors(output: str) -> int:
    """How many rows of a folder have an error."""
    import pyarrow.dataset as ds

    return int(
        ds.dataset(output, format="parquet", exclude_invalid_files=True).count_rows(
            filter=ds.field("error").is_valid()
        )
    )


if __name__ == "__main__":
    sys.exit(main())
