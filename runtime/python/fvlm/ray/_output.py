"""The folder with captions: Parquet files that are there whole or not at all, what they were made with, and who writes them."""

from __future__ import annotations

import json
import os
import posixpath
import re
import threading
import time
import uuid
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout
from pyarrow import fs

import fvlm

from ._inputs import Place

SCHEMA = pa.schema([("path", pa.string()), ("caption", pa.string()), ("error", pa.string())])

# Readers of Parquet folders leave names out that begin with `_` or `.`.
SETTINGS = "_captions.json"
LOCK = "_captions.lock"
RUNNING = "_running-"
WRITING = ".writing-"
PART = re.compile(r"captions-[0-9a-f]{32}\.parquet")

#: Where there are no locks: seconds between two signs of life, and how long one that is found is watched.
BEAT, WATCH = 5.0, 20.0


class Output:
    """A folder that one run writes. `done` are the paths that have a row, or will when all that waits is written."""

    def __init__(self, name: str, settings: dict[str, Any], *, retry_errors: bool = False) -> None:
        place = Place.of(name)
        # As rows are called: a URI's keys are in no message.
        self.name, self.settings = place.path, settings
        self.files, self.folder = place.files(), place.where
        self.is_local = place.store is None
        self.retry_errors = retry_errors
        self.done: set[str] = set()
        self.errors = 0
        self.rows: list[tuple[str, str | None, str | None]] = []
        self._lock: FileLock | _Beacon | None = None

    def __enter__(self) -> Output:
        try:
            self.files.create_dir(self.folder, recursive=True)
        except OSError as error:
            raise fvlm.Error(f"{self.name}: {error}; expected a folder for captions") from error
        found = self._list()
        if found and SETTINGS not in found and any(not name.startswith((RUNNING, LOCK)) for name in found):
            raise fvlm.Error(
                f"{self.name}: found {_some(found)}, expected an empty folder or one that this program wrote"
            )
        if self.is_local:
            lock = FileLock(os.path.join(self.folder, LOCK))
            try:
                lock.acquire(timeout=0)
            except Timeout:
                raise fvlm.Error(f"{self.name}: another run writes it, expected one at a time") from None
            self._lock = lock
        else:
            self._lock = _Beacon(self.files, self.folder, self.name)
        try:
            self._resume()
        except BaseException:
            self._release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._release()

    def _release(self) -> None:
        if isinstance(self._lock, _Beacon):
            self._lock.close()
        elif self._lock is not None:
            self._lock.release()
        self._lock = None

    def _list(self) -> list[str]:
        found = self.files.get_file_info(fs.FileSelector(self.folder))
        return sorted(one.base_name for one in found)

    def _path(self, name: str) -> str:
        return posixpath.join(self.folder, name)

    def _resume(self) -> None:
        """Reads what earlier runs wrote, after a look at what they were asked."""
        found = self._list()
        # Without rows there is nothing to mix: of a run whose options were refused, say.
        if SETTINGS in found and any(PART.fullmatch(name) for name in found):
            self._compare()
        else:
            self._publish(SETTINGS, json.dumps(self.settings, indent=2, sort_keys=True).encode() + b"\n")
        owners: dict[str, str] = {}
        for name in found:
            if name.startswith(WRITING):
                # Of a run that was ended while it wrote.
                self.files.delete_file(self._path(name))
            elif PART.fullmatch(name):
                self._read(name, owners)
            elif name.endswith(".parquet"):
                raise fvlm.Error(
                    f"{self.name}: found `{name}`, expected only files of this program: who reads the folder would take "
                    "it for captions"
                )

    def _compare(self) -> None:
        with self.files.open_input_stream(self._path(SETTINGS)) as stream:
            text = stream.read()
        try:
            before = json.loads(text)
            if not isinstance(before, dict):
                raise ValueError("no object")
        except ValueError as error:
            raise fvlm.Error(f"{self.name}: `{SETTINGS}` is damaged: {error}") from error
        # As they are when they were written and read.
        now = json.loads(json.dumps(self.settings))
        for key in sorted({*before, *now}):
            if before.get(key) != now.get(key):
                raise fvlm.Error(
                    f"{self.name}: found captions that were made with {key} {json.dumps(before.get(key))}, expected those "
                    f"of this run, {json.dumps(now.get(key))}: use another output, or the same {key}"
                )

    def _read(self, name: str, owners: dict[str, str]) -> None:
        try:
            with self.files.open_input_file(self._path(name)) as file:
                table = pq.ParquetFile(file, page_checksum_verification=True).read()
            if table.schema.remove_metadata() != SCHEMA or table["path"].null_count:
                raise ValueError(
                    f"found columns {', '.join(table.schema.names)}, expected path, caption, error"
                )
        except (OSError, ValueError) as error:
            raise fvlm.Error(
                f"{self.name}: `{name}` is damaged: {error}; delete it, and its images are captioned again"
            ) from error
        kept = table
        if self.retry_errors and table["error"].null_count < table.num_rows:
            kept = table.filter(table["error"].is_null())
        for path in kept["path"].to_pylist():
            if path in owners:
                raise fvlm.Error(
                    f"{self.name}: `{path}` has two rows, in `{owners[path]}` and `{name}`; delete one of the files, "
                    "and its images are captioned again"
                )
            owners[path] = name
        self.done.update(kept["path"].to_pylist())
        self.errors += kept.num_rows - kept["error"].null_count
        if kept.num_rows == 0:
            self.files.delete_file(self._path(name))
        elif kept is not table:
            # In the place of the old one: at no time a row is lost or doubled.
            self._publish(name, _parquet(kept))

    def take(self, rows: list[tuple[str, str | None, str | None]]) -> None:
        """Rows that are to be written, but for those that are there."""
        for row in rows:
            if row[0] not in self.done:
                self.done.add(row[0])
                self.rows.append(row)

    @property
    def waiting(self) -> int:
        """Rows that are not written yet."""
        return len(self.rows)

    def write(self, most: int) -> None:
        """Writes a file of the rows that wait, `most` of them."""
        if isinstance(self._lock, _Beacon):
            self._lock.check()
        rows, self.rows = self.rows[:most], self.rows[most:]
        columns = list(zip(*rows))
        table = pa.table([pa.array(column, pa.string()) for column in columns], schema=SCHEMA)
        self._publish(f"captions-{uuid.uuid4().hex}.parquet", _parquet(table))
        self.errors += sum(row[2] is not None for row in rows)

    def _publish(self, name: str, data: bytes) -> None:
        """A file that is there whole or not at all."""
        hidden = self._path(f"{WRITING}{uuid.uuid4().hex}")
        if self.is_local:
            with open(hidden, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(hidden, self._path(name))
            return
        with self.files.open_output_stream(hidden) as stream:
            stream.write(data)
        self.files.move(hidden, self._path(name))


def _parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, write_page_checksum=True)
    return bytes(sink.getvalue())


def _some(names: list[str]) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


class _Beacon:
    """A sign of life in a bucket, which has no locks: a file that is written again and again while a run lasts.

    Whoever finds one watches whether it changes. Of two runs that begin at once both give way.
    """

    def __init__(self, files: fs.FileSystem, folder: str, name: str) -> None:
        self.files, self.path = files, posixpath.join(folder, f"{RUNNING}{uuid.uuid4().hex}")
        self._stop = threading.Event()
        self._failed: Exception | None = None
        self._dead = False
        self._beat(0)
        self._thread = threading.Thread(target=self._beats, daemon=True)
        self._thread.start()
        try:
            others = self._others(folder)
            if others:
                end = time.monotonic() + WATCH
                while time.monotonic() < end:
                    time.sleep(1)
                    now = self._others(folder)
                    for other, sign in now.items():
                        if others.get(other) != sign:
                            raise fvlm.Error(
                                f"{name}: another run writes it ({other}), expected one at a time"
                            )
                # Of runs that were killed.
                for other in self._others(folder):
                    files.delete_file(other)
        except BaseException:
            self.close()
            raise

    def _others(self, folder: str) -> dict[str, bytes]:
        signs: dict[str, bytes] = {}
        for one in self.files.get_file_info(fs.FileSelector(folder)):
            if one.base_name.startswith(RUNNING) and one.base_name != posixpath.basename(self.path):
                try:
                    with self.files.open_input_stream(one.path) as stream:
                        signs[one.path] = stream.read()
                except FileNotFoundError:
                    # It ended in this moment.
                    continue
        return signs

    def _beat(self, count: int) -> None:
        with self.files.open_output_stream(self.path) as stream:
            stream.write(f"{count}\n".encode())

    def _beats(self) -> None:
        count = 0
        while not self._stop.wait(BEAT) and not self._is_dead():
            count += 1
            try:
                self._beat(count)
                self._failed = None
            except Exception as error:  # noqa: BLE001
                self._failed = error

    def _is_dead(self) -> bool:
        """Whether another run took the sign away: for good, or two would write from then on."""
        try:
            gone = self.files.get_file_info(self.path).type == fs.FileType.NotFound
        except Exception:  # noqa: BLE001
            # Of a bucket that cannot be reached; writing the sign says so.
            gone = False
        self._dead = self._dead or gone
        return self._dead

    def check(self) -> None:
        """Refuses to write where nobody else could know of this run."""
        if self._failed is not None:
            raise fvlm.Error(f"{self.path}: {self._failed}") from self._failed
        if self._is_dead():
            raise fvlm.Error(f"{self.path}: another run took this one for dead and writes the output now")

    def close(self) -> None:
        """Takes it away."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        try:
            self.files.delete_file(self.path)
        except OSError:
            pass
