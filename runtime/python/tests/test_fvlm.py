"""Package `fvlm` as somebody uses it who installed the wheel: `scripts/check_wheel` runs this in an environment of its own.

FVLM_ROOT is the repository, FVLM_BUNDLE a bundle of the demo model in fp32.
"""

import gc
import io
import json
import os
import pathlib
import pickle
import signal
import subprocess
import sys
import threading
import time
import typing
import warnings

import fvlm
import numpy as np
import pytest
from PIL import Image

ROOT = pathlib.Path(os.environ["FVLM_ROOT"])
BUNDLE = os.environ["FVLM_BUNDLE"]
SCENES = ROOT / "models/demo/scenes"
SCENE = SCENES / "scene_1.png"


def recorded() -> dict[tuple[str, str], str]:
    """Answers of the published implementation by image and question."""
    answers = {}
    for case in json.loads((ROOT / "conformance/golden/demo.json").read_text())["cases"]:
        row, path = case["rows"][0], case["images"][0].get("path", "")
        if row["question"] and path.endswith(".png") and len(case["images"]) == 1:
            answers[path, row["question"]] = row["answer"]
    assert len(answers) >= 8, "recorded answers"
    return answers


@pytest.fixture(scope="module")
def model() -> fvlm.Model:
    return fvlm.Model(BUNDLE, provider="cpu", fallback=False)


def test_every_recorded_answer(model: fvlm.Model) -> None:
    for (path, question), answer in recorded().items():
        assert model.describe(ROOT / path, question) == answer, (path, question)


def test_tract_gives_the_same() -> None:
    tract = fvlm.Model(BUNDLE, provider="tract", fallback=False).ready()
    assert tract.provider["used"] == "tract"
    (path, question), answer = next(iter(recorded().items()))
    assert tract.describe(str(ROOT / path), question) == answer


def test_what_an_image_can_be(model: fvlm.Model) -> None:
    """One picture in every form has the same features, and pixels are not copied to be one."""
    picture = Image.open(SCENE).convert("RGB")
    pixels = np.asarray(picture)

    class Interface:
        __array_interface__ = pixels.__array_interface__
        keeps = pixels

    forms: list[typing.Any] = [
        SCENE,
        str(SCENE),
        SCENE.read_bytes(),
        bytearray(SCENE.read_bytes()),
        memoryview(SCENE.read_bytes()),
        picture,
        picture.convert("RGBA"),
        pixels,
        np.asfortranarray(pixels),
        np.repeat(pixels, 2, axis=1)[:, ::2],
        Interface(),
    ]
    features = model.encode(forms)
    assert features.dtype == np.float32 and features.ndim == 3 and len(features) == len(forms)
    for form, found in zip(forms, features, strict=True):
        assert np.array_equal(found, features[0]), type(form)
    assert model.encode(SCENE).shape == (1, *features.shape[1:])
    assert np.array_equal(model.encode(np.stack([pixels, pixels])), features[:2])
    assert model.encode([]).shape == (0, *features.shape[1:])
    assert np.abs(features).max() > 0


def test_a_photo_on_its_side_is_upright(model: fvlm.Model) -> None:
    picture = Image.open(SCENE).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    picture.rotate(90, expand=True).save(file, "PNG", exif=exif)
    same = model.encode([SCENE, file.getvalue(), Image.open(file)])
    assert np.array_equal(same[0], same[1]) and np.array_equal(same[0], same[2])


@pytest.mark.parametrize(
    ("image", "kind", "words"),
    [
        (
            np.zeros((4, 4), np.uint8),
            ValueError,
            r"found an array \[4, 4\] of uint8, expected \[height, width, 3\]",
        ),
        (np.zeros((4, 4, 3), np.float32), ValueError, "of float32"),
        (np.zeros((4, 4, 4), np.uint8), ValueError, r"\[4, 4, 4\]"),
        (np.zeros((0, 4, 3), np.uint8), fvlm.ImageError, "no pixels"),
        (b"no image", fvlm.ImageError, "bytes"),
        (b"", fvlm.ImageError, "bytes"),
        ("no/such.png", fvlm.ImageError, "no/such.png"),
        (3, TypeError, "found an image of type int"),
        (None, TypeError, "NoneType"),
        ({"a": 1}, TypeError, "dict"),
    ],
)
def test_what_an_image_cannot_be(
    model: fvlm.Model, image: typing.Any, kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        model.describe(image)
    with pytest.raises(kind, match=words):
        model.encode([SCENE, image])
    answers = model.describe_each([SCENE, image, SCENE], errors="return")
    assert isinstance(answers[1], kind) and answers[0] == answers[2] == model.describe(SCENE)


def test_text_comes_in_pieces(model: fvlm.Model) -> None:
    answer = model.stream(SCENE)
    pieces = list(answer)
    assert len(pieces) > 3 and "".join(pieces) == answer.text == model.describe(SCENE)
    assert answer.finish == "stop" and answer.stats["tokens"] >= len(pieces)
    assert answer.stats["time_to_first_token"] > 0 and answer.provider["used"] == "cpu"
    assert list(answer) == [] and answer.read() == ""


def test_an_answer_is_closed(model: fvlm.Model) -> None:
    with model.stream(SCENE) as answer:
        first = next(answer)
    assert answer.text == first and list(answer) == [] and answer.finish == "cancelled"
    short = model.stream(SCENE, max_tokens=2)
    assert short.read() and short.finish == "max_tokens" and short.stats["tokens"] == 2


def test_gray_of_sixteen_bits(model: fvlm.Model, tmp_path: pathlib.Path) -> None:
    """Pillow makes nearly all of it white; we keep the upper eight bits, of files and of Pillow's images."""
    gray = np.asarray(Image.open(SCENE).convert("L")).astype(np.uint16) * 256 + 77
    for name in ("gray.png", "gray.tif"):
        Image.fromarray(gray).save(tmp_path / name)
        opened = Image.open(tmp_path / name)
        assert opened.mode.startswith("I;16")
        np.testing.assert_array_equal(model.encode(opened), model.encode(tmp_path / name))
    # With a gray that is transparent, in a bundle that puts it on white.
    Image.fromarray(gray).save(tmp_path / "key.png", transparency=int(gray[0, 0]))
    opened = Image.open(tmp_path / "key.png")
    assert opened.mode.startswith("I;16") and opened.info["transparency"] == gray[0, 0]
    np.testing.assert_array_equal(model.encode(opened), model.encode(tmp_path / "key.png"))
    assert not np.array_equal(model.encode(opened), model.encode(tmp_path / "gray.png"))
    for wide in (gray.astype(np.int32), gray.astype(np.float32)):
        with pytest.raises(fvlm.ImageError, match="has values from .* expected 0 to 255"):
            model.encode(Image.fromarray(wide))
        low = Image.fromarray((gray // 256).astype(wide.dtype))
        np.testing.assert_array_equal(model.encode(low), model.encode(Image.open(SCENE).convert("L")))


def test_what_is_transparent_lies_on_white(model: fvlm.Model, tmp_path: pathlib.Path) -> None:
    rgb = Image.open(SCENE).convert("RGB")
    veil = Image.linear_gradient("L").resize(rgb.size)
    rgba = rgb.copy()
    rgba.putalpha(veil)
    white = Image.alpha_composite(Image.new("RGBA", rgb.size, "white"), rgba).convert("RGB")
    expected = model.encode(white)
    assert not np.array_equal(expected, model.encode(rgb))
    for name in ("veil.png", "veil.tif"):
        rgba.save(tmp_path / name)
        np.testing.assert_array_equal(model.encode(tmp_path / name), expected)
    np.testing.assert_array_equal(model.encode(rgba), expected)
    palette = rgb.quantize(8)
    palette.save(tmp_path / "veil.gif", transparency=0)
    opened = Image.open(tmp_path / "veil.gif")
    np.testing.assert_array_equal(model.encode(opened), model.encode(tmp_path / "veil.gif"))
    assert not np.array_equal(model.encode(opened), model.encode(palette))


def test_options(model: fvlm.Model) -> None:
    warm = [model.describe(SCENE, temperature=5.0, seed=seed, max_tokens=8) for seed in range(6)]
    assert len(set(warm)) > 1
    assert warm[0] == model.describe(SCENE, temperature=5.0, seed=0, max_tokens=8)
    whole = model.describe(SCENE)
    word = whole.split()[2]
    assert model.describe(SCENE, stop=word) == whole.split(word)[0]
    assert model.describe(SCENE, stop=["zzz", word], top_k=0) == whole.split(word)[0]
    assert model.describe(SCENE, regex="[a-c]{3}") in {a + b + c for a in "abc" for b in "abc" for c in "abc"}


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"max_token": 3}, TypeError, "`max_token`.*max_tokens"),
        ({"max_tokens": 0}, ValueError, "max_tokens is 0"),
        ({"max_tokens": -1}, ValueError, "max_tokens is -1"),
        ({"max_tokens": "3"}, TypeError, "max_tokens is '3'"),
        ({"temperature": -1.0}, ValueError, "temperature"),
        ({"top_p": 7}, ValueError, "top-p is 7"),
        ({"presence_penalty": 3}, ValueError, "presence penalty is 3"),
        ({"stop": 3}, TypeError, "stop is 3"),
        ({"stop": ""}, ValueError, "stop has an empty text"),
        ({"stop": ["a", ""]}, ValueError, "stop has an empty text"),
        ({"stop": "\ud800"}, ValueError, "stop is '.ud800'"),
        ({"stop": ["\ud800"]}, ValueError, "stop is"),
        ({"regex": "("}, fvlm.Error, "regular expression"),
    ],
)
def test_options_that_are_wrong(
    model: fvlm.Model, options: dict[str, typing.Any], kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        model.describe(SCENE, **options)


def test_several_images_at_once(model: fvlm.Model) -> None:
    scenes = sorted(SCENES.glob("*.png"))
    assert model.describe_each(scenes) == [model.describe(scene) for scene in scenes]
    assert model.describe_each([]) == []
    assert model.describe_each(scene for scene in scenes[:1]) == [model.describe(scenes[0])]
    buffer = np.empty((256, 256, 3), np.uint8)

    def frames() -> typing.Iterator[np.ndarray]:
        for scene in scenes[:3]:
            buffer[:] = np.asarray(Image.open(scene).convert("RGB"))
            yield buffer

    assert model.describe_each(frames()) == [model.describe(scene) for scene in scenes[:3]]

    class Tensor:
        """As one of torch: its array is a view."""

        def __array__(self, dtype: object = None, copy: bool | None = None) -> np.ndarray:
            return buffer.copy() if copy else buffer

    tensors = (Tensor() for _frame in frames())
    assert model.describe_each(tensors) == [model.describe(scene) for scene in scenes[:3]]
    with pytest.raises(ValueError, match="errors is `ignore`"):
        model.describe_each([], errors="ignore")  # type: ignore[arg-type]


def test_choices(model: fvlm.Model) -> None:
    asked = "How many objects are there?"
    chosen = model.choices(SCENE, asked, ["One.", "Two.", "Three.", "Four."])
    assert abs(sum(choice.probability for choice in chosen) - 1) < 1e-6
    best = max(chosen, key=lambda choice: choice.probability)
    assert best.text == model.describe(SCENE, asked) and best.logprob <= 0
    with pytest.raises(fvlm.Error, match="choices"):
        model.choices(SCENE, asked, [])


def test_json(model: fvlm.Model) -> None:
    schema = {
        "type": "object",
        "properties": {"count": {"type": "integer", "minimum": 0, "maximum": 9}},
        "required": ["count"],
    }
    found = model.json(SCENE, "How many objects are there?", schema)
    assert set(found) >= {"count"} and 0 <= found["count"] <= 9
    with pytest.raises(fvlm.IncompleteError, match=r"after 2 tokens \(max_tokens\)") as cut:
        model.json(SCENE, "How many objects are there?", schema, max_tokens=2)
    assert cut.value.text.startswith("{")
    with pytest.raises(fvlm.Error, match="JSON schema"):
        model.json(SCENE, "What?", {"type": "none"})
    with pytest.raises(ValueError, match="both"):
        model.json(SCENE, "What?", schema, regex="a")


def test_a_conversation(model: fvlm.Model) -> None:
    conversation = model.conversation(system="You are brief.")
    assert conversation.cache_bytes == 0
    first = conversation.ask("Describe the image.", SCENE)
    second = conversation.ask("How many objects are there?")
    said = conversation.messages
    assert [one["role"] for one in said] == ["system", "user", "assistant", "user", "assistant"]
    assert [said[2]["content"], said[4]["content"]] == [first, second]
    assert [one["images"] for one in said] == [0, 1, 0, 0, 0] and conversation.cache_bytes > 0
    before = conversation.messages
    chosen = conversation.choices("Is it red?", ["Yes.", "No."])
    assert len(chosen) == 2 and conversation.messages == before
    answer = conversation.stream("And now?", [SCENE, SCENES / "scene_2.png"])
    piece = next(answer)
    with pytest.raises(fvlm.Error, match="still comes"):
        conversation.ask("Hello?")
    with pytest.raises(fvlm.Error, match="still comes"):
        conversation.reset()
    answer.close()
    assert conversation.messages[-1] == {"role": "assistant", "content": piece, "images": 0}
    conversation.stream("Dropped?")  # nobody keeps it
    assert conversation.messages[-1] == {"role": "assistant", "content": "", "images": 0}
    with pytest.raises(fvlm.ImageError):
        conversation.ask("What?", "no/such.png")
    conversation.reset()
    assert [one["role"] for one in conversation.messages] == ["system"] and conversation.cache_bytes == 0
    assert conversation.ask("Describe the image.", SCENE) == first


def test_a_context_that_is_full(model: fvlm.Model) -> None:
    long = "word " * 3000
    with pytest.raises(fvlm.Error, match="positions|context"):
        model.describe(SCENE, long)
    conversation = model.conversation()
    with pytest.raises(fvlm.Error):
        conversation.ask(long, SCENE)
    assert conversation.messages == [] and conversation.ask("Describe the image.", SCENE) == model.describe(
        SCENE
    )


def test_threads_share_a_model(model: fvlm.Model) -> None:
    scenes = sorted(SCENES.glob("*.png"))
    expected = {scene: model.describe(scene) for scene in scenes}
    wrong: list[typing.Any] = []

    def work(scene: pathlib.Path) -> None:
        for _ in range(5):
            if (found := model.describe(scene)) != expected[scene]:
                wrong.append((scene, found))

    threads = [threading.Thread(target=work, args=(scene,)) for scene in scenes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_the_lock_is_given_up_while_computing(model: fvlm.Model) -> None:
    """Another thread runs during one call: nobody takes the lock from a thread that keeps it, the interval is hours."""
    counted, over = [0], threading.Event()

    def count() -> None:
        while not over.is_set():
            counted[0] += 1
            time.sleep(0)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(10_000)
    thread = threading.Thread(target=count)
    try:
        thread.start()
        before = counted[0]
        model.choices(SCENE, "How many?", [f"choice {number}" for number in range(100)])
        during = counted[0] - before
    finally:
        over.set()
        thread.join()
        sys.setswitchinterval(interval)
    assert during > 0


def test_an_answer_is_closed_by_another_thread(model: fvlm.Model) -> None:
    answer = model.stream(SCENE, "Describe the image.", regex="a{1000}", max_tokens=900)
    next(answer)
    threading.Timer(0.05, answer.close).start()
    assert len(answer.text + answer.read()) < 1000


@pytest.mark.parametrize("provider", ["cpu", "tract"])
def test_a_model_that_was_opened_elsewhere(provider: typing.Literal["cpu", "tract"]) -> None:
    """A forked process has none of the model's threads: it is told so, and does not wait for them, not even at its end."""
    model = fvlm.Model(BUNDLE, provider=provider)
    conversation = model.conversation()
    conversation.ask("Describe the image.", SCENE)
    model_said = model.describe(SCENE)
    answer = model.stream(SCENE)
    first = next(answer)

    def refused() -> int:
        uses: list[typing.Callable[[], str]] = [
            lambda: model.describe(SCENE),
            lambda: conversation.ask("And now?"),
            lambda: next(answer),
        ]
        count = 0
        for use in uses:
            try:
                use()
            except fvlm.Error as error:
                count += "after `fork`" in str(error)
        return count

    child = os.fork()
    if child == 0:
        signal.alarm(30)
        count = refused()
        # One that is opened here has threads of its own.
        own = fvlm.Model(BUNDLE, provider=provider, threads=2)
        count += own.describe(SCENE) == model_said
        del own
        del answer, conversation, model
        gc.collect()
        os._exit(count)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 4
    assert first + answer.read() == model.describe(SCENE)
    with pytest.raises(TypeError, match="pickle"):
        pickle.dumps(model)


def test_what_cannot_be_opened(tmp_path: pathlib.Path) -> None:
    with pytest.raises(fvlm.Error, match="bundle.json"):
        fvlm.Model(tmp_path)
    refused: list[tuple[dict[str, typing.Any], str]] = [
        ({"provider": "gpu"}, "gpu"),
        ({"threads": -1}, "threads is -1, expected 1 to "),
        ({"image_size": 2**32}, "image_size is 4294967296, expected 1 to "),
        ({"precision": "q3"}, "q3"),
        ({"threads": 0}, "threads is 0"),
    ]
    for wrong, words in refused:
        with pytest.raises(ValueError, match=words):
            fvlm.Model(BUNDLE, **wrong)
    with pytest.raises(fvlm.Error, match="q4"):
        fvlm.Model(BUNDLE, precision="q4").ready()
    elsewhere = fvlm.Model(BUNDLE, provider="cpu", onnxruntime=tmp_path, fallback=False)
    with pytest.raises(fvlm.Error, match="ONNX Runtime|onnxruntime"):
        elsewhere.ready()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        fallen = fvlm.Model(BUNDLE, provider="cpu", onnxruntime=tmp_path).ready()
    assert fallen.provider["used"] == "tract" and any("tract" in str(one.message) for one in told)


def test_export(tmp_path: pathlib.Path) -> None:
    told: list[tuple[str, int, int]] = []
    made = fvlm.export(
        "demo", tmp_path / "bündle", precision=["fp32", "q4"], progress=lambda *all: told.append(all)
    )
    assert [variant["precision"] for variant in made["variants"]] == ["fp32", "q4"]
    assert told[0] == ("write", 0, told[0][2]) and told[-1][1] == told[-1][2] > 0
    for precision in ("fp32", "q4"):
        model = fvlm.Model(tmp_path / "bündle", precision=precision)
        model.verify()
        assert model.provider["precision"] == precision and model.describe(SCENE)
    with pytest.raises(fvlm.ExportError, match="exists"):
        fvlm.export("demo", tmp_path / "bündle")
    fvlm.export("demo", tmp_path / "bündle", overwrite=True)
    with pytest.raises(fvlm.Error, match="q4"):
        fvlm.Model(tmp_path / "bündle", precision="q4").ready()


def test_exports_that_end(tmp_path: pathlib.Path) -> None:
    def stop(phase: str, done: int, total: int) -> None:
        raise LookupError("enough")

    with pytest.raises(LookupError, match="enough"):
        fvlm.export("demo", tmp_path / "none", progress=stop)
    refused: list[tuple[dict[str, typing.Any], str]] = [
        ({"precision": "q3"}, "q3"),
        ({"target": "coreml", "precision": "q4"}, "--precision q4"),
        ({"to": "coreml", "target": "cpu"}, "--target"),
        ({"layout": "-x"}, "-x"),
    ]
    for wrong, words in refused:
        with pytest.raises(fvlm.ExportError, match=words):
            fvlm.export("demo", tmp_path / "none", **wrong)
    with pytest.raises(TypeError, match="`precison`"):
        fvlm.export("demo", tmp_path / "none", precison="q4")  # type: ignore[call-arg]
    with pytest.raises(fvlm.ExportError, match="no-such"):
        fvlm.export(tmp_path / "no-such", tmp_path / "none")
    assert list(tmp_path.iterdir()) == []


def interrupted(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A Python program that gets Ctrl-C once it said `going`."""
    command = [sys.executable, "-u", "-c", script, *arguments]
    program = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert program.stdout
    while (line := program.stdout.readline()) and "going" not in line:
        pass
    time.sleep(0.2)
    program.send_signal(signal.SIGINT)
    out, err = program.communicate(timeout=60)
    return subprocess.CompletedProcess(command, program.returncode, out, err)


def test_a_warning_that_is_an_exception() -> None:
    """What was not answered was not asked."""
    conversation = fvlm.Model(BUNDLE, provider="coreml").conversation()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning):
            conversation.ask("Describe the image.", SCENE)
    assert conversation.messages == []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert conversation.ask("Describe the image.", SCENE)


@pytest.mark.parametrize("provider", ["cpu", "tract"])
@pytest.mark.parametrize("what", ["describe", "encode", "stream", "describe_each"])
def test_an_interpreter_that_ends_while_threads_compute(what: str, provider: str) -> None:
    script = """
import fvlm, sys, threading, time
model = fvlm.Model(sys.argv[1], provider=sys.argv[4]).ready()
def compute():
    while True:
        if sys.argv[3] == "stream":
            list(model.stream(sys.argv[2]))
        else:
            getattr(model, sys.argv[3])([sys.argv[2]] if sys.argv[3] == "describe_each" else sys.argv[2])
for _ in range(3):
    threading.Thread(target=compute, daemon=True).start()
time.sleep(0.3)
"""
    command = [sys.executable, "-c", script, BUNDLE, str(SCENE), what, provider]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done


def test_an_interpreter_that_ends_while_a_model_opens() -> None:
    script = """
import fvlm, sys, threading, time
threading.Thread(target=lambda: fvlm.Model(sys.argv[1]).ready(), daemon=True).start()
time.sleep(float(sys.argv[2]))
"""
    for wait in range(0, 120, 20):
        command = [sys.executable, "-c", script, BUNDLE, str(wait / 1000)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, (wait, done)


def test_ctrl_c_ends_an_answer() -> None:
    script = """
import fvlm, sys
model = fvlm.Model(sys.argv[1]).ready()
print("going")
try:
    while True:
        model.describe(sys.argv[2], regex="a{1000}", max_tokens=900)
except KeyboardInterrupt:
    print("ended", model.describe(sys.argv[2]))
"""
    done = interrupted(script, BUNDLE, str(SCENE))
    assert done.returncode == 0 and done.stdout.startswith("ended A "), done


def test_ctrl_c_ends_an_export(tmp_path: pathlib.Path) -> None:
    script = """
import fvlm, sys, time
def told(phase, done, total):
    print("going", flush=True)
    time.sleep(0.5)
try:
    fvlm.export("demo", sys.argv[1], progress=told)
except KeyboardInterrupt:
    print("ended")
"""
    done = interrupted(script, str(tmp_path / "none"))
    assert done.returncode == 0 and done.stdout.rstrip().endswith("ended"), done
    assert list(tmp_path.iterdir()) == []
