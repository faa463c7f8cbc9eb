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

import hashlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import fvlm

__all__ = ["Captioner", "Progress", "caption"]

#: Bytes of images that are handed to a worker at once, about. Its captions are there when all of them are.
BLOCK = 4 << 20

#: Seconds between two Parquet files at most, while captions come.
PATIENCE = 60.0


class Captioner:
    """Describes the images of batches; one instance is one worker with the bundle open.

    bundle: the bundle's directory, on every machine.
    question: what is asked about every image.
    image: the column with images: paths, bytes of files, or pixels `[height, width, 3]` of uint8.
    caption, error: the columns that are added: the answer, and what was wrong. One of them is None in every row. A row
        that has an error already, of whoever read the image, keeps it and is not asked about.
    drop: columns that are left out of the result, `image` by default; `()` keeps all.
    threads: threads of one worker; Ray's `num_cpus` does not limit them by itself.
    model: further keyword arguments of `fvlm.Model`.
    options: further keyword arguments of `Model.describe`.
    """

    def __init__(
        self,
        bundle: str | os.PathLike[str],
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
        if len({image, caption, error}) < 3:
            raise ValueError(
                f"found columns `{image}`, `{caption}` and `{error}`, expected three different names"
            )
        if isinstance(drop, str):
            raise TypeError(f"drop is `{drop}`, expected a list of columns")
        self.model = fvlm.Model(bundle, threads=threads, **(model or {})).ready()
        self.question = question
        self.image, self.caption, self.error = image, caption, error
        self.drop = frozenset([image] if drop is None else drop)
        self.options = dict(options or {})

    def __call__(self, batch: Any) -> Any:
        """The batch with captions, in the form that it has: a dict of columns, a pandas DataFrame, or a pyarrow Table.

        Both columns that are added are text for whoever looks at their type, also where all of a batch are None.
        """
        table, frame = hasattr(batch, "column_names"), hasattr(batch, "iloc")
        names = [str(name) for name in (batch.column_names if table else batch)]
        if self.image not in names:
            raise KeyError(f"found columns {', '.join(names)}, expected `{self.image}` with images")
        if self.caption in names and self.caption not in self.drop:
            raise ValueError(
                f"found a column `{self.caption}` already: name another one for what is added, or drop it"
            )
        images = batch[self.image].to_pylist() if table else list(batch[self.image])
        found: list[Any] = [None] * len(images)
        if self.error in names:
            before = batch[self.error].to_pylist() if table else list(batch[self.error])
            found = [one if isinstance(one, str) and one else None for one in before]
        asked = [row for row, one in enumerate(found) if one is None]
        answers = self.model.describe_each(
            [images[row] for row in asked], self.question, errors="return", **self.options
        )
        captions: list[str | None] = [None] * len(images)
        errors: list[str | None] = list(found)
        for row, answer in zip(asked, answers):
            if isinstance(answer, str):
                captions[row] = answer
            else:
                errors[row] = str(answer) or type(answer).__name__
        gone = [name for name in names if name in self.drop or name in (self.caption, self.error)]
        return self._with(batch, table, frame, gone, {self.caption: captions, self.error: errors})

    @staticmethod
    def _with(
        batch: Any, table: bool, frame: bool, gone: list[str], added: Mapping[str, list[str | None]]
    ) -> Any:
        """The batch without some columns and with others, of text."""
        if frame:
            import pandas as pd

            typed = {name: pd.array(column, dtype="string") for name, column in added.items()}
            return batch.drop(columns=gone).assign(**typed)
        # Only an Arrow array is known to be text where it has no text: files of a column without a type do not go together.
        import pyarrow as pa

        arrays = {name: pa.array(column, pa.string()) for name, column in added.items()}
        if not table:
            return {**{name: column for name, column in batch.items() if name not in gone}, **arrays}
        batch = batch.drop_columns(gone)
        for name, array in arrays.items():
            batch = batch.append_column(name, array)
        return batch


class Progress(NamedTuple):
    """How far `caption` is."""

    #: Rows that this run has written.
    written: int
    #: Rows that the output has in all.
    rows: int
    #: Those of them with an error in the place of a caption.
    errors: int
    #: Images that have no row yet; None while tars are unread, whose images nobody has counted.
    left: int | None


class _Worker(Captioner):
    """A captioner whose bundle is the one that the run began with."""

    def __init__(self, bundle: str, contract: str, **more: Any) -> None:
        found = _contract(bundle)
        if found != contract:
            raise fvlm.Error(
                f"{bundle}: the bundle on machine {os.uname().nodename if hasattr(os, 'uname') else '?'} is another one "
                f"(SHA-256 of bundle.json {found}, expected {contract})"
            )
        super().__init__(bundle, **more)


def _contract(bundle: str | os.PathLike[str]) -> str:
    """What tells a bundle from others: the hash of its contract, which has the hashes of its files."""
    with open(os.path.join(bundle, "bundle.json"), "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def caption(
    inputs: Sequence[str],
    output: str,
    bundle: str | os.PathLike[str],
    question: str = "Describe the image.",
    *,
    workers: int = 1,
    cpus: float = 1,
    batch: int = 16,
    rows: int = 1000,
    threads: int | None = None,
    retry_errors: bool = False,
    model: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Iterator[Progress]:
    """Captions of the images of folders, buckets and webdataset tars, as Parquet files of `path`, `caption`, `error`.

    inputs, output: paths that all machines share, or URIs as `pyarrow.fs` knows them. A folder is read with those below
        it, images and tars; hidden files and links to folders are left out.
    workers: actors, each with the bundle open on `cpus` of Ray's processors, with `threads` of its own (`cpus` of them).
    batch: images that a worker describes together.
    rows: rows of a file; fewer where captions come slowly.
    retry_errors: whether images that have an error from an earlier run are asked about again.

    Yields how far it is: first what the output has already, before Ray is needed, then file by file. A file is there
    whole or not at all, so that whoever calls this again asks only about images that have no row yet; at the end each
    image has exactly one row. Whoever stops iterating gets what has come until then written.
    """
    from . import _inputs, _output

    if isinstance(inputs, (str, os.PathLike)):
        raise TypeError(f"inputs is `{inputs}`, expected a list")
    for name, value in (("workers", workers), ("batch", batch), ("rows", rows)):
        if value < 1:
            raise ValueError(f"{name} is {value}, expected 1 or more")
    if not cpus > 0:
        raise ValueError(f"cpus is {cpus}, expected more than 0")
    bundle = os.path.abspath(bundle)
    contract = _contract(bundle)
    settings = {
        "bundle": contract,
        "question": question,
        "model": dict(model or {}),
        "options": dict(options or {}),
    }
    with _output.Output(output, settings, retry_errors=retry_errors) as captions:
        plan = _inputs.plan(inputs, captions.done)
        expected = _Expected(plan)
        yield Progress(0, len(captions.done), captions.errors, expected.left())
        if not plan.images and not plan.tars:
            return
        arrived = _ask(
            plan,
            workers=workers,
            cpus=cpus,
            batch=batch,
            arguments={
                "bundle": bundle,
                "contract": contract,
                "question": question,
                "threads": threads or max(1, int(cpus)),
                "model": dict(model or {}),
                "options": dict(options or {}),
            },
        )
        before, flushed = len(captions.done), time.monotonic()
        try:
            for table in arrived:
                captions.take(expected.take(table))
                while captions.waiting >= rows or (
                    captions.waiting and time.monotonic() - flushed > PATIENCE
                ):
                    captions.write(rows)
                    flushed = time.monotonic()
                    total = len(captions.done) - captions.waiting
                    yield Progress(total - before, total, captions.errors, expected.left(captions.waiting))
        finally:
            # Also of a run that is interrupted: what was computed is not computed again.
            last = captions.waiting > 0
            if last:
                captions.write(captions.waiting)
        total = len(captions.done)
        if last:
            yield Progress(total - before, total, captions.errors, expected.left())
        expected.check(output)


class _Expected:
    """Which images have no row yet, so that none can be lost unseen."""

    def __init__(self, plan: Any) -> None:
        self.images = {image.path for image in plan.images}
        self.tars: dict[str, int | None] = {tar.path: None for tar in plan.tars}
        self.found: dict[str, int] = dict.fromkeys(self.tars, 0)

    def take(self, table: Any) -> list[tuple[str, str | None, str | None]]:
        """The rows of a table; ends of tars are counted."""
        rows = []
        for row in table.to_pylist():
            if row["path"] is None:
                self.tars[row["tar"]] = row["images"]
                continue
            if row["tar"] is None:
                self.images.discard(row["path"])
            else:
                self.found[row["tar"]] += 1
            rows.append((row["path"], row["caption"], row["error"]))
        return rows

    def left(self, waiting: int = 0) -> int | None:
        """How many there are, with those whose rows wait; None where tars have not been read to their ends."""
        if None in self.tars.values():
            return None
        tars = sum((count or 0) - self.found[tar] for tar, count in self.tars.items())
        return len(self.images) + tars + waiting

    def check(self, output: str) -> None:
        """Refuses to be done where Ray gave back less than it got, or more."""
        short = sorted(self.images) + [tar for tar, count in self.tars.items() if count != self.found[tar]]
        if short:
            raise fvlm.Error(
                f"{output}: {len(short)} images or tars came back incomplete, the first is {short[0]}; what came "
                "is written, the same call again goes on with the rest"
            )


def _ask(plan: Any, *, workers: int, cpus: float, batch: int, arguments: Mapping[str, Any]) -> Iterator[Any]:
    """Tables of answers as they come, in any order: `tar`, `path`, `images`, `caption`, `error`."""
    import ray
    import ray.data

    from . import _inputs

    context = ray.data.DataContext.get_current().copy()
    context.target_max_block_size = BLOCK
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    tables = plan.tables(batch * 4)
    with ray.data.DataContext.current(context):
        answers = (
            ray.data.from_arrow(tables)
            # Reading takes none of the processors, which workers may all have.
            .map_batches(
                _inputs.read,
                batch_size=None,
                batch_format="pyarrow",
                num_cpus=0,
                compute=ray.data.TaskPoolStrategy(size=min(workers + 1, len(tables))),
            )
            .map_batches(
                _Worker,
                fn_constructor_kwargs=dict(arguments),
                batch_size=batch,
                batch_format="pyarrow",
                num_cpus=cpus,
                # One is enough to go on with: the others come as there is room.
                compute=ray.data.ActorPoolStrategy(min_size=1, max_size=workers, initial_size=workers),
            )
        )
        yield from answers.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
