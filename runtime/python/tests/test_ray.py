"""Parts of `fvlm.ray` that need no cluster: what inputs hold, what an output takes, what a batch becomes.

`scripts/check_ray` runs this. FVLM_ROOT is the repository, FVLM_BUNDLE a bundle of the demo model.
"""

import gzip
import io
import json
import os
import pathlib
import tarfile
import threading
import time
import typing

import numpy as np
import pytest

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
ray = pytest.importorskip("ray")

import fvlm  # noqa: E402
import fvlm.ray  # noqa: E402
from fvlm.ray import _inputs, _output  # noqa: E402
from fvlm.ray.__main__ import main  # noqa: E402

SCENE = (pathlib.Path(os.environ["FVLM_ROOT"]) / "models/demo/scenes/scene_1.png").read_bytes()
BUNDLE = os.environ["FVLM_BUNDLE"]
SETTINGS: dict[str, typing.Any] = {"bundle": "b", "question": "q", "model": {}, "options": {}}


def archive(members: list[tuple[str, bytes | str]]) -> bytes:
    """A tar of files, and of links where text stands."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return sink.getvalue()


def rows(path: pathlib.Path, done: typing.Collection[str] = ()) -> list[dict[str, typing.Any]]:
    """What a worker reads of a path, without the ends of tars, which are compared."""
    plan = _inputs.plan([str(path)], done)
    found: list[dict[str, typing.Any]] = []
    ends: list[dict[str, typing.Any]] = []
    for planned in plan.tables(64):
        for table in _inputs.read(planned):
            for row in table.to_pylist():
                (ends if row["path"] is None else found).append(row)
    assert sum(row["images"] for row in ends) == sum(row["tar"] is not None for row in found)
    assert len(ends) == len(plan.tars)
    assert len({row["path"] for row in found}) == len(found)
    assert all((row["bytes"] is None) != (row["error"] is None) for row in found)
    return found


def errors(found: list[dict[str, typing.Any]]) -> dict[str, str]:
    return {row["path"]: row["error"] for row in found if row["error"]}


def test_a_folder(tmp_path: pathlib.Path) -> None:
    names = ["a b.png", "50%.jpg", "x#1?.webp", "ä/ü.PNG", "deep/er/c.jfif", "empty.gif"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"" if name.startswith("empty") else SCENE)
    for other in [".hidden.png", ".folder/a.png", "notes.txt", "mypng"]:
        (tmp_path / other).parent.mkdir(exist_ok=True)
        (tmp_path / other).write_bytes(SCENE)
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "link.png").symlink_to("a b.png")
    (tmp_path / "nowhere.png").symlink_to("nothing")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    found = rows(tmp_path)
    expected = [str(tmp_path / name) for name in [*names, "link.png", "nowhere.png", "pipe.png"]]
    assert sorted(row["path"] for row in found) == sorted(expected)
    wrong = errors(found)
    assert sorted(wrong) == [str(tmp_path / name) for name in ["nowhere.png", "pipe.png"]]
    assert "No such file" in wrong[str(tmp_path / "nowhere.png")]
    # One that is done, one that is named twice, and a URI of the same.
    done = [str(tmp_path / names[0])]
    same = [str(tmp_path), f"{tmp_path}/../{tmp_path.name}", tmp_path.as_uri(), str(tmp_path / names[1])]
    assert len(_inputs.plan(same, done).images) == len(expected) - 1
    # As a store of its own, which has other paths. fsspec takes its URIs as they are.
    plan = _inputs.plan([f"fsspec+file://{tmp_path}/ä"], ())
    assert [one.path for one in plan.images] == [f"fsspec+file://{tmp_path}/ä/ü.PNG"]
    [table] = plan.tables(9)
    [read] = list(_inputs.read(table))
    assert read["bytes"].to_pylist() == [SCENE]


def test_a_name_that_is_no_unicode_has_a_row(tmp_path: pathlib.Path) -> None:
    with open(os.fsencode(tmp_path) + b"/a\xff.png", "wb") as file:
        file.write(SCENE)
    [row] = rows(tmp_path)
    assert row["path"] == f"{tmp_path}/a\\xff.png" and "no Unicode" in row["error"]
    assert rows(tmp_path, {row["path"]}) == []


def test_inputs_that_are_refused(tmp_path: pathlib.Path) -> None:
    for name, word in [
        (str(tmp_path / "none"), "no such file"),
        ("nope://a", "expected a path or a URI"),
        ("file:///a b", "%20"),
        ("file:///a#b", "%23"),
        ("file:///a?b", "%3F"),
        ("s3://b/a#b", "%23"),
    ]:
        with pytest.raises((fvlm.Error, OSError), match=word):
            _inputs.plan([name], ())
    plan = _inputs.plan([str(tmp_path)], ())
    assert not plan.images and not plan.tars and plan.empty == [str(tmp_path)]


def test_a_tar(tmp_path: pathlib.Path) -> None:
    members: list[tuple[str, bytes | str]] = [
        ("sub.folder/0001.left.png", SCENE),
        ("sub.folder/0001.right.PNG", b"r"),
        ("sub.folder/0001.json", b"{}"),
        ("sub.folder/._0001.png", b"fork"),
        ("0002.v1.jpg", b""),
        ("0002.txt", b"x"),
        ("0001.jpg", b"another key, later"),
        ("link.png", "0001.jpg"),
    ]
    (tmp_path / "a.tar").write_bytes(archive(members))
    tar = str(tmp_path / "a.tar")
    found = rows(tmp_path / "a.tar")
    images = ["sub.folder/0001.left.png", "sub.folder/0001.right.PNG", "0002.v1.jpg", "0001.jpg", "link.png"]
    assert [row["path"] for row in found] == [f"{tar}/{name}" for name in images]
    assert found[0]["bytes"] == SCENE and found[2]["bytes"] == b""
    assert list(errors(found)) == [f"{tar}/link.png"]
    # Those that have rows are left out; a folder has its tars.
    again = rows(tmp_path, {f"{tar}/{images[0]}", f"{tar}/{images[4]}", "/elsewhere/a.tar/0001.jpg"})
    assert [row["path"] for row in again] == [f"{tar}/{name}" for name in images[1:4]]


def test_a_tar_with_a_name_twice(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(archive([("a.png", b"1"), ("b.png", b"2"), ("a.png", b"3"), ("a.png", b"4")]))
    found = rows(path)
    assert [row["bytes"] for row in found] == [b"1", b"2", None, None]
    assert list(errors(found)) == [f"{path}/a.png (2)", f"{path}/a.png (3)"]
    assert rows(path, {row["path"] for row in found}) == []


def test_a_tar_that_is_cut_off_anywhere(tmp_path: pathlib.Path) -> None:
    """Every image has its row or the tar has one that says what is missing."""
    path = tmp_path / "a.tar"
    whole = archive([("a.png", b"1" * 600), ("b.txt", b"2" * 700), ("c.png", b"3" * 10)])
    end = 512 + 1024 + 512 + 1024 + 512 + 512
    assert len(rows_of(path, whole)) == 2
    for length in [*range(0, end + 512, 100), 511, 512, 513, 1536, 2048, 3072, 3584, end - 1, end, end + 1]:
        found = rows_of(path, whole[:length])
        wrong = errors(found)
        # An end mark of one block is one too.
        assert list(wrong) == ([] if length >= end + 512 else [str(path)]), (length, wrong)
        assert all("damaged or cut off" in one for one in wrong.values())
        # As one that was packed.
        if wrong:
            assert list(errors(rows_of(path, gzip.compress(whole[:length])))) == [str(path)], length
    packed = gzip.compress(whole)
    for length in range(len(packed)):
        assert list(errors(rows_of(path, packed[:length]))) == [str(path)], length
    assert len(rows_of(path, packed)) == 2
    for place in range(10, len(packed)):
        flipped = bytearray(packed)
        flipped[place] ^= 0xFF
        assert list(errors(rows_of(path, bytes(flipped)))) == [str(path)], place
    # Damaged within.
    broken = bytearray(whole)
    broken[1536] ^= 0xFF
    assert list(errors(rows_of(path, bytes(broken)))) == [str(path)]
    # Its row is there once.
    assert str(path) not in {row["path"] for row in rows(path, {str(path)})}


def rows_of(path: pathlib.Path, data: bytes) -> list[dict[str, typing.Any]]:
    path.write_bytes(data)
    return rows(path)


def test_tars_one_behind_the_other(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a.tar"
    both = archive([("a.png", b"1")]), archive([("b.png", b"2")])
    assert [row["bytes"] for row in rows_of(path, b"".join(both))] == [b"1", b"2"]
    packed = [gzip.compress(one) for one in both]
    assert [row["bytes"] for row in rows_of(path, b"".join(packed))] == [b"1", b"2"]
    assert list(errors(rows_of(path, both[0] + b"junk" * 200))) == [str(path)]


def test_a_large_tar_comes_in_parts(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(archive([(f"{number}.png", bytes(3 << 20)) for number in range(8)]))
    [planned] = _inputs.plan([str(path)], ()).tables(64)
    sizes = [table.num_rows for table in _inputs.read(planned)]
    assert sizes == [2, 2, 2, 2, 1]


def opened(
    folder: pathlib.Path | str, settings: dict[str, typing.Any] | None = None, **more: bool
) -> typing.Any:
    return _output.Output(str(folder), settings or SETTINGS, **more)


def filled(folder: pathlib.Path) -> None:
    with opened(folder) as output:
        output.take([("a", "A.", None), ("b", None, "broken"), ("a", "again", None)])
        output.write(9)
        output.take([("c", "C.", None)])
        output.write(9)


def test_an_output_goes_on(tmp_path: pathlib.Path) -> None:
    filled(tmp_path / "new" / "folder")
    folder = tmp_path / "new" / "folder"
    (folder / ".writing-x").write_bytes(b"half")
    (folder / "notes.txt").write_text("mine")
    with opened(folder) as output:
        assert output.done == {"a", "b", "c"} and output.errors == 1
    assert not (folder / ".writing-x").exists() and (folder / "notes.txt").exists()
    # Files beside the Parquet ones are hidden from those who read the folder.
    (folder / "notes.txt").unlink()
    table = pq.read_table(folder)
    assert sorted(table["path"].to_pylist()) == ["a", "b", "c"]
    with opened(folder, retry_errors=True) as output:
        assert output.done == {"a", "c"} and output.errors == 0
    assert sorted(pq.read_table(folder)["path"].to_pylist()) == ["a", "c"]


def test_outputs_that_are_refused(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "captions"
    filled(folder)
    for key, value in [("question", "What?"), ("bundle", "c"), ("options", {"max_tokens": 3})]:
        with pytest.raises(fvlm.Error, match=f"made with {key} .*use another output"):
            opened(folder, {**SETTINGS, key: value}).__enter__()
    part = sorted(folder.glob("*.parquet"))[0]
    whole = part.read_bytes()
    (folder / f"captions-{'0' * 32}.parquet").write_bytes(whole)
    with pytest.raises(fvlm.Error, match="two rows"):
        opened(folder).__enter__()
    (folder / f"captions-{'0' * 32}.parquet").unlink()
    (folder / "theirs.parquet").write_bytes(whole)
    with pytest.raises(fvlm.Error, match="theirs.parquet"):
        opened(folder).__enter__()
    (folder / "theirs.parquet").unlink()
    for broken in [b"", whole[:-9], whole[: len(whole) // 2], b"\xff".join([whole[:20], whole[21:]])]:
        part.write_bytes(broken)
        with pytest.raises(fvlm.Error, match=f"{part.name}.*damaged.*delete it"):
            opened(folder).__enter__()
    part.write_bytes(whole)
    # A run without a row stands in nobody's way.
    with opened(tmp_path / "none", {**SETTINGS, "question": "refused"}):
        pass
    with opened(tmp_path / "none"):
        assert json.loads((tmp_path / "none" / "_captions.json").read_text()) == SETTINGS
    (folder / "_captions.json").write_text("{")
    with pytest.raises(fvlm.Error, match="_captions.json.*damaged"):
        opened(folder).__enter__()
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    with pytest.raises(fvlm.Error, match="notes.txt.*expected an empty folder"):
        opened(other).__enter__()
    assert os.listdir(other) == ["notes.txt"]
    with pytest.raises(fvlm.Error, match="expected a folder"):
        opened(other / "notes.txt").__enter__()


def test_one_run_at_a_time(tmp_path: pathlib.Path) -> None:
    with opened(tmp_path):
        with pytest.raises(fvlm.Error, match="another run writes it"):
            opened(tmp_path).__enter__()
    with opened(tmp_path):
        pass


def test_one_run_at_a_time_in_a_bucket(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_output, "BEAT", 0.2)
    monkeypatch.setattr(_output, "WATCH", 3.0)
    name = f"fsspec+file://{tmp_path}/out"
    outcomes: list[str] = []

    def run(together: threading.Barrier | None = None) -> None:
        try:
            with opened(name):
                outcomes.append("ran")
                if together:
                    together.wait()
        except fvlm.Error as error:
            outcomes.append(str(error))
            if together:
                together.wait()

    with opened(name) as output:
        output.take([("a", "A.", None)])
        output.write(1)
        run()
        assert "another run writes it" in outcomes[0]
        for left in (tmp_path / "out").glob("_running-*"):
            left.unlink()
        output.take([("b", "B.", None)])
        # Somebody took it away: it does not come again, and nothing more is written.
        time.sleep(1)
        assert not list((tmp_path / "out").glob("_running-*"))
        with pytest.raises(fvlm.Error, match="took this one for dead"):
            output.write(1)
    # One that was killed.
    (tmp_path / "out" / "_running-killed").write_text("7\n")
    run()
    assert outcomes[1] == "ran" and not list((tmp_path / "out").glob("_running-*"))
    # Two at once: at most one. None ends before both know whether they may.
    together = threading.Barrier(2)
    threads = [threading.Thread(target=run, args=(together,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes[2:].count("ran") <= 1


def test_forms_of_a_batch() -> None:
    captioner = fvlm.ray.Captioner(BUNDLE, options={"max_tokens": 4})
    answer = fvlm.Model(BUNDLE).describe(SCENE, max_tokens=4)
    images = [SCENE, b"broken", None, SCENE]
    before = [None, None, None, "unread"]
    ids = [1, 2, 3, 4]
    objects = np.array([*images, None], dtype=object)[:-1]
    dict_ = captioner({"id": np.array(ids), "bytes": objects, "error": np.array(before, dtype=object)})
    table = captioner(pa.table({"id": ids, "bytes": images, "error": pa.array(before, pa.string())}))
    for found in (pa.table(dict_), table):
        assert found.column_names == ["id", "caption", "error"] and found["id"].to_pylist() == ids
        assert found["caption"].to_pylist() == [answer, None, None, None]
        errors = found["error"].to_pylist()
        assert (
            errors[0] is None and "bytes" in errors[1] and "NoneType" in errors[2] and errors[3] == "unread"
        )
    pd = pytest.importorskip("pandas")
    frame = captioner(pd.DataFrame({"id": ids, "bytes": images}, index=[5, 6, 7, 8]))
    assert list(frame.columns) == ["id", "caption", "error"] and list(frame.index) == [5, 6, 7, 8]
    assert frame["caption"][5] == answer and frame["caption"].isna().tolist() == [False, True, True, False]
    # Columns without any text are text.
    alone = captioner({"bytes": [SCENE]})
    assert pa.table(alone).schema.types == [pa.string(), pa.string()]
    assert captioner({"bytes": []})["caption"].type == pa.string()
    kept = fvlm.ray.Captioner(BUNDLE, image="image", drop=(), options={"max_tokens": 4})
    assert list(kept({"image": [SCENE]})) == ["image", "caption", "error"]
    with pytest.raises(KeyError, match="found columns image, expected `bytes`"):
        captioner({"image": [SCENE]})
    with pytest.raises(ValueError, match="`caption` already"):
        captioner({"bytes": [SCENE], "caption": ["x"]})
    with pytest.raises(ValueError, match="three different names"):
        fvlm.ray.Captioner(BUNDLE, caption="error")


def test_the_program_without_a_cluster(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing to do ends before Ray is started, and what is refused is refused before."""
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("Ray was started"))
    images, output = tmp_path / "images", tmp_path / "images" / "captions"
    images.mkdir()
    base = ["--bundle", BUNDLE, "--output", str(output)]
    assert main([*base, str(images)]) == 0
    assert "0 rows are there, 0 images are left" in capsys.readouterr().err
    assert json.loads((output / "_captions.json").read_text())["question"] == "Describe the image."
    (images / "a.png").write_bytes(b"x")
    with opened(output, json.loads((output / "_captions.json").read_text())) as captions:
        captions.take([(str(images / "a.png"), None, "broken")])
        captions.write(1)
    assert main([*base, str(images)]) == 1
    assert "1 of 1 images have an error" in capsys.readouterr().err
    for more, word in [
        ([str(images), "--question", "What?"], "question"),
        ([str(tmp_path / "none")], "no such file"),
        ([str(images), "--bundle", str(tmp_path)], "bundle.json"),
    ]:
        assert main([*base, *more]) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ") and word in said and "Traceback" not in said
    for wrong in (["--workers", "0"], ["--cpus", "nan"], ["--unknown"]):
        with pytest.raises(SystemExit) as ended:
            main([*base, str(images), *wrong])
        assert ended.value.code == 2
