"""Which images do folders, buckets and webdataset tars hold, and what is in them? Listed by the program, read by its workers."""

from __future__ import annotations

import gzip
import io
import os
import stat
import tarfile
import zlib
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
from pyarrow import fs

import fvlm

#: What is taken of a folder or tar: files whose names end in one of these, in any case. As of `fvlm-run --output`.
ENDINGS = (
    ".png",
    ".jpg",
    ".jpeg",
    ".jfif",
    ".webp",
    ".gif",
    ".bmp",
    ".tif",
    ".tiff",
    ".heic",
    ".heif",
    ".avif",
)
TARS = (".tar", ".tar.gz", ".tgz")

#: Longest file: what the library reads of the largest image that it decodes.
LONGEST = 100_000_000 * 8 + (64 << 20)

#: Files that one task reads at a time, and bytes that it hands on at once.
READERS = 8
CHUNK = 4 << 20

#: What workers are given: where an image or tar lies, what its rows are called, and what of a tar has a row already.
PLANNED = pa.schema(
    [
        ("store", pa.string()),
        ("where", pa.string()),
        ("path", pa.string()),
        ("is_tar", pa.bool_()),
        ("done", pa.list_(pa.string())),
        ("error", pa.string()),
    ]
)

#: What is read. A row without `path` is the end of a tar, and `images` how many rows it had.
READ = pa.schema(
    [
        ("tar", pa.string()),
        ("path", pa.string()),
        ("images", pa.int64()),
        ("bytes", pa.large_binary()),
        ("error", pa.string()),
    ]
)


@dataclass(frozen=True)
class Place:
    """A file or folder and its file system: this machine's, where `store` is None, or that of the URI `store`."""

    store: str | None
    where: str
    #: What stands before the paths of this file system in the rows.
    prefix: str = ""

    @staticmethod
    def of(name: str | os.PathLike[str]) -> Place:
        """Of a path or URI; raises what is neither."""
        text = os.fspath(name)
        if "://" not in text:
            return Place(None, os.path.abspath(text))
        scheme, rest = text.split("://", 1)
        if "#" in rest:
            raise fvlm.Error(f"{text}: found `#` in a URI, expected %23 where it is part of a name")
        try:
            files, where = fs.FileSystem.from_uri(text)
        except (pa.ArrowInvalid, ValueError) as error:
            raise fvlm.Error(
                f"{text}: {error}; expected a path or a URI of pyarrow (file, s3, gs, hdfs, abfs, fsspec+...), with "
                "spaces and other odd characters as %20 and the like"
            ) from error
        if isinstance(files, fs.LocalFileSystem):
            if "?" in rest:
                raise fvlm.Error(
                    f"{text}: found `?` in a URI of a file, expected %3F where it is part of a name"
                )
            return Place(None, os.path.abspath(where))
        return Place(text, where.rstrip("/"), f"{scheme}://")

    def files(self) -> fs.FileSystem:
        """Its file system."""
        return _files(self.store)

    @property
    def path(self) -> str:
        """What its row is called: never with keys and options that a URI may have."""
        return self.prefix + self.where


_opened: dict[str, fs.FileSystem] = {}


def _files(store: str | None) -> fs.FileSystem:
    if store is None:
        return fs.LocalFileSystem()
    if store not in _opened:
        _opened[store] = fs.FileSystem.from_uri(store)[0]
    return _opened[store]


@dataclass(frozen=True)
class Planned:
    """An image or tar that is to be read."""

    store: str | None
    where: str | None
    path: str
    done: tuple[str, ...] = ()
    error: str | None = None


@dataclass
class Plan:
    """What is to be read, each once."""

    images: list[Planned] = field(default_factory=list)
    tars: list[Planned] = field(default_factory=list)
    #: Inputs in which there is no image at all.
    empty: list[str] = field(default_factory=list)

    def tables(self, most: int) -> list[pa.Table]:
        """As tables: a tar each, the images in tables of `most`."""
        groups = [[tar] for tar in self.tars]
        groups += [self.images[first : first + most] for first in range(0, len(self.images), most)]
        return [
            pa.Table.from_pylist(
                [
                    {
                        "store": one.store,
                        "where": one.where,
                        "path": one.path,
                        "is_tar": number < len(self.tars),
                        "done": list(one.done),
                        "error": one.error,
                    }
                    for one in group
                ],
                PLANNED,
            )
            for number, group in enumerate(groups)
        ]


def plan(inputs: Sequence[str | os.PathLike[str]], done: Collection[str]) -> Plan:
    """What inputs hold that is not done."""
    found: dict[str, Planned] = {}
    result = Plan()
    for name in inputs:
        place = Place.of(name)
        files = _local(place, name) if place.store is None else _remote(place)
        before = len(found)
        any_of_them = False
        for one in files:
            any_of_them = True
            found.setdefault(one.path, one)
        if not any_of_them and len(found) == before:
            result.empty.append(os.fspath(name))
    members: dict[str, list[str]] = {path: [] for path in found if _is_tar(path)}
    if members:
        for path in done:
            # A member's path is its tar's and its name.
            lowered = path.lower()
            for ending in TARS:
                at = lowered.find(f"{ending}/")
                while at >= 0:
                    tar = path[: at + len(ending)]
                    if tar in members:
                        members[tar].append(path)
                    at = lowered.find(f"{ending}/", at + 1)
            if path in members:
                members[path].append(path)
    for path, one in sorted(found.items()):
        if path in members and one.error is None:
            result.tars.append(Planned(one.store, one.where, path, tuple(members[path])))
        elif path not in done:
            result.images.append(one)
    return result


def _is_tar(name: str) -> bool:
    return name.lower().endswith(TARS)


def _is_taken(name: str) -> bool:
    return not name.startswith(".") and name.lower().endswith(ENDINGS + TARS)


def _named(path: str) -> Planned:
    """A file of this machine."""
    try:
        path.encode()
    except UnicodeEncodeError:
        shown = os.fsencode(path).decode(errors="backslashreplace")
        return Planned(None, None, shown, error=f"{shown}: its name is no Unicode, expected UTF-8: rename it")
    return Planned(None, path, path)


def _local(place: Place, name: str | os.PathLike[str]) -> Iterator[Planned]:
    if not os.path.lexists(place.where):
        raise FileNotFoundError(f"{name}: no such file or folder, expected images or webdataset tars")
    if not os.path.isdir(place.where):
        yield _named(place.where)
        return

    def refuse(error: OSError) -> None:
        raise error

    for folder, folders, names in os.walk(place.where, onerror=refuse):
        folders[:] = [one for one in folders if not one.startswith(".")]
        for one in names:
            if _is_taken(one):
                yield _named(os.path.join(folder, one))


def _remote(place: Place) -> Iterator[Planned]:
    files = place.files()
    found = files.get_file_info(place.where)
    if found.type == fs.FileType.NotFound:
        raise FileNotFoundError(f"{place.path}: no such file or folder, expected images or webdataset tars")
    if found.is_file:
        yield Planned(place.store, place.where, place.path)
        return
    for one in files.get_file_info(fs.FileSelector(place.where, recursive=True)):
        below = one.path[len(place.where) :].split("/")
        if one.is_file and _is_taken(one.base_name) and not any(part.startswith(".") for part in below):
            yield Planned(place.store, one.path, place.prefix + one.path)


def read(planned: pa.Table) -> Iterator[pa.Table]:
    """The bytes of images and of the images of tars: tables `READ`, each small. What cannot be read has its error."""
    rows = planned.to_pylist()
    chunk = _Chunk()
    with ThreadPoolExecutor(READERS) as pool:
        images = [row for row in rows if not row["is_tar"]]
        # A few at a time, so that not all of them are in memory.
        for first in range(0, len(images), READERS):
            some = images[first : first + READERS]
            for row, (data, error) in zip(some, pool.map(_image, some)):
                yield from chunk.add(None, row["path"], data, error)
    for row in rows:
        if row["is_tar"]:
            yield from _tar(row, chunk)
    yield from chunk.rest()


class _Chunk:
    """Rows until there are enough for a table."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.size = 0

    def add(
        self,
        tar: str | None,
        path: str | None,
        data: bytes | None,
        error: str | None,
        images: int | None = None,
    ) -> Iterator[pa.Table]:
        self.rows.append({"tar": tar, "path": path, "images": images, "bytes": data, "error": error})
        self.size += len(data or b"")
        if self.size >= CHUNK or len(self.rows) >= 1000:
            yield from self.rest()

    def rest(self) -> Iterator[pa.Table]:
        if self.rows:
            yield pa.Table.from_pylist(self.rows, READ)
        self.rows, self.size = [], 0


def _open(row: dict[str, Any]) -> io.BufferedReader:
    """A stream of a file as it is: nothing is decompressed because of its name."""
    if row["store"] is None:
        # What is no file may keep a reader waiting for ever.
        if not stat.S_ISREG(os.stat(row["where"]).st_mode):
            raise OSError("no regular file")
        return open(row["where"], "rb")
    raw = _files(row["store"]).open_input_stream(row["where"], compression=None)
    return io.BufferedReader(raw, 1 << 20)


def _image(row: dict[str, Any]) -> tuple[bytes | None, str | None]:
    """The bytes of an image, or what is wrong."""
    if row["error"] is not None:
        return None, row["error"]
    try:
        with _open(row) as stream:
            data = stream.read(LONGEST + 1)
    except OSError as error:
        return None, f"{row['path']}: {error.strerror or error}"
    return _short(row["path"], data)


def _short(path: str, data: bytes) -> tuple[bytes | None, str | None]:
    if len(data) > LONGEST:
        return None, f"{path}: has more than {LONGEST} bytes"
    return data, None


class _Member(tarfile.TarInfo):
    """A header of a tar. tarfile takes whatever is none for the archive's end; only an end mark is one."""

    @classmethod
    def fromtarfile(cls, tarfile: Any) -> Any:
        return _header(super().fromtarfile, tarfile)


def _header(read: Any, archive: Any) -> Any:
    try:
        member = read(archive)
    except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
        archive.ended = True
        raise
    except tarfile.HeaderError as error:
        # Behind an end mark there may be another archive, or nothing.
        if isinstance(error, tarfile.EmptyHeaderError) and getattr(archive, "ended", False):  # type: ignore[attr-defined]
            raise
        raise tarfile.ReadError(f"{error}") from error
    archive.ended = False
    return member


def _tar(row: dict[str, Any], chunk: _Chunk) -> Iterator[pa.Table]:
    """The images of a tar, and its end. Their paths are `TAR/NAME`; what is wrong with the tar has a row of its own."""
    tar, done = row["path"], set(row["done"])
    seen: set[str] = set()
    count, last = 0, None
    try:
        with _open(row) as plain, _decompressed(plain) as stream:
            # Archives that were put one behind the other are read to the last.
            archive = tarfile.open(
                fileobj=stream, mode="r|", tarinfo=_Member, ignore_zeros=True, errors="backslashreplace"
            )
            for member in archive:
                # tarfile keeps all headers otherwise.
                archive.members = []  # type: ignore[attr-defined]
                name = member.name
                last = name
                if member.isdir() or not _is_image(name):
                    continue
                path = f"{tar}/{name}"
                data, error = None, None
                if path in seen:
                    path, number = f"{path} (2)", 2
                    while path in seen:
                        number += 1
                        path = f"{tar}/{name} ({number})"
                    error = f"{path}: the tar has this name several times, expected each once"
                seen.add(path)
                if path in done:
                    continue
                if error is None and not member.isreg():
                    error = f"{path}: a link or the like in a tar, expected a file"
                elif error is None and member.size > LONGEST:
                    error = f"{path}: has {member.size} bytes, expected at most {LONGEST}"
                elif error is None:
                    content = archive.extractfile(member)
                    data = content.read() if content is not None else b""
                    if len(data) != member.size:
                        raise tarfile.ReadError("unexpected end of data")
                count += 1
                yield from chunk.add(tar, path, data, error)
    except (tarfile.TarError, OSError, EOFError, ValueError, zlib.error) as error:
        if tar not in done:
            behind = f"behind `{last}`" if last is not None else "at its beginning"
            count += 1
            problem = f"{tar}: damaged or cut off {behind}: {error}; what is behind that has no rows"
            yield from chunk.add(tar, tar, None, problem)
    yield from chunk.add(tar, None, None, "end", count)


def _is_image(name: str) -> bool:
    base = name.rsplit("/", 1)[-1]
    return not base.startswith(".") and base.lower().endswith(ENDINGS)


def _decompressed(stream: io.BufferedReader) -> Any:
    """A tar's own bytes. gzip's module reads all parts of a file and checks them, which tarfile's stream does not."""
    return gzip.GzipFile(fileobj=stream, mode="rb") if stream.peek(2)[:2] == b"\x1f\x8b" else stream
