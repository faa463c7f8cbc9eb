import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, final

import numpy as np
import numpy.typing as npt
from typing_extensions import Unpack

from fvlm.types import ExportFlags, Image, Options, Precision, Provider, Target

__all__ = [
    "__version__",
    "Error",
    "ImageError",
    "ExportError",
    "IncompleteError",
    "Model",
    "Conversation",
    "Answer",
    "Choice",
    "export",
    "command",
]

__version__: str

class Error(Exception):
    """What fvlm refuses, or cannot do; the message says what was found and what was expected."""

class ImageError(Error):
    """An image that cannot be read or prepared."""

class ExportError(Error):
    """An export that failed, or whose arguments mean none. No bundle was left behind."""

class IncompleteError(Error):
    """An answer that was to be JSON and was cut off."""

    text: str
    """What there is of it."""

@final
class Choice:
    """One of several answers, and how likely it is."""

    @property
    def text(self) -> str:
        """The answer."""
    @property
    def logprob(self) -> float:
        """Natural logarithm of its probability in the model's own distribution."""
    @property
    def probability(self) -> float:
        """Its share among the choices, 0 to 1; those of all choices sum to 1."""

@final
class Answer(Iterator[str]):
    """An answer as it comes: an iterator over pieces of its text, computed one token at a time."""

    def __iter__(self) -> Answer: ...
    def __next__(self) -> str: ...
    def __enter__(self) -> Answer: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...
    def read(self) -> str:
        """The rest of the text, computed to its end."""
    def close(self) -> None:
        """Ends it after the token that is being computed. What came stays said. Any thread may call it."""
    @property
    def text(self) -> str:
        """The text so far."""
    @property
    def finish(self) -> Literal["stop", "stop_string", "max_tokens", "max_context", "cancelled"] | None:
        """Why it ended; None while it goes on."""
    @property
    def stats(self) -> dict[str, Any]:
        """What it took so far: `time_to_first_token` and other times in seconds, counts, `peak_memory` in bytes."""
    @property
    def provider(self) -> dict[str, Any]:
        """Who computes, and with which graphs: `used`, `target`, `precision`, `image`, `notices` ..."""

@final
class Conversation:
    """One dialogue with a model: it remembers what was said, and computes only what is new."""

    def ask(
        self, question: str, image: Image | Sequence[Image] | None = None, **options: Unpack[Options]
    ) -> str:
        """The answer to a question, about images that are shown with it or were before."""
    def stream(
        self, question: str, image: Image | Sequence[Image] | None = None, **options: Unpack[Options]
    ) -> Answer:
        """As `ask`, as it comes. Another question can be asked once the answer has ended or is closed."""
    def choices(
        self, question: str, choices: Sequence[str], image: Image | Sequence[Image] | None = None
    ) -> list[Choice]:
        """How likely each of several answers to a question is. Nothing is said by it: the conversation is as before."""
    def reset(self) -> None:
        """Forgets what was said, but for instructions, and all images, and frees the KV cache."""
    @property
    def messages(self) -> list[dict[str, Any]]:
        """What was said: dicts with `role` (`system`, `user` or `assistant`), `content` and `images`, their number."""
    @property
    def cache_bytes(self) -> int:
        """Bytes of its KV cache; 0 before the first question, and while an answer comes."""

@final
class Model:
    """A bundle that is opened once: graphs, tokenizer, chat template. Threads share it.

    What takes long is opened behind the constructor and waited for where it is needed first, so that an image can be
    decoded and encoded while the decoder still loads; `ready()` waits for all of it. A process that was forked from
    the one that opened a model cannot use it.
    """

    def __new__(
        cls,
        bundle: str | os.PathLike[str],
        *,
        provider: Provider = "auto",
        fallback: bool = True,
        precision: Precision | None = None,
        target: Target | None = None,
        image_size: int | None = None,
        threads: int | None = None,
        onnxruntime: str | os.PathLike[str] | None = None,
    ) -> Model:
        """Opens the bundle in a directory.

        provider: who computes; `auto` is the first that works here.
        fallback: whether another may compute where that one cannot run here; a warning says so.
        precision, target: which of the bundle's forms; the best for the provider where not given.
        image_size: side in pixels of the square that images become, one of those that the bundle has.
        threads: threads that compute; as many as there are physical cores where not given.
        onnxruntime: ONNX Runtime's shared library or a folder with it; that of package `onnxruntime` where not given.
        """
    def ready(self) -> Model:
        """Waits until everything is open; raises what cannot be opened."""
    def verify(self) -> None:
        """Reads every file of the bundle and compares its SHA-256 with the contract."""
    def describe(
        self, image: Image, question: str = "Describe the image.", **options: Unpack[Options]
    ) -> str:
        """The answer to a question about an image."""
    def stream(
        self, image: Image, question: str = "Describe the image.", **options: Unpack[Options]
    ) -> Answer:
        """As `describe`, as it comes: an iterator over its text."""
    def describe_each(
        self,
        images: Iterable[Image],
        question: str = "Describe the image.",
        *,
        errors: Literal["raise", "return"] = "raise",
        **options: Unpack[Options],
    ) -> list[Any]:
        """The answers to one question about each of several images, in their order; tokens are computed together.

        With `errors="return"`, an exception stands in the place of what cannot be answered. Every image has a KV cache
        until the last answer is there: a few dozen at a time are enough.
        """
    def choices(self, image: Image, question: str, choices: Sequence[str]) -> list[Choice]:
        """How likely each of several answers to a question about an image is, in their order."""
    def json(
        self,
        image: Image,
        question: str,
        schema: Mapping[str, Any] | bool | None = None,
        **options: Unpack[Options],
    ) -> Any:
        """The answer to a question about an image as JSON that is valid against a schema (draft 2020-12), as Python objects.

        Without a schema, any object. Raises IncompleteError where `max_tokens` or the context ends it before.
        """
    def encode(self, images: Image | Sequence[Image]) -> npt.NDArray[np.float32]:
        """Features `[n, tokens, hidden]` of images, as the decoder takes them; an array of several is `[n, height, width, 3]`."""
    def conversation(self, *, system: str | None = None, context_shift: bool = False) -> Conversation:
        """A dialogue that remembers what was said.

        system: instructions before the first question.
        context_shift: whether the oldest turns may be left out where the context is full.
        """
    @property
    def provider(self) -> dict[str, Any]:
        """Who computes, and with which graphs; waits for them."""
    @property
    def context(self) -> int:
        """Positions of the longest sequence, prompt and answer; waits for the engine."""
    @property
    def bundle(self) -> os.PathLike[str]:
        """The bundle's directory."""

def export(
    model: str | os.PathLike[str] | None,
    output: str | os.PathLike[str],
    *,
    progress: Callable[[str, int, int], object] | None = None,
    **flags: Unpack[ExportFlags],
) -> dict[str, Any]:
    """Exports a checkpoint to a bundle; what it holds, as `fvlm-export --json` says it.

    model: a directory, `demo`, or `org/name` of the Hugging Face hub (`@revision` may follow).
    output: the bundle's directory; what exists is replaced with `overwrite=True`, if it is a bundle.
    progress: is called with `download` or `write`, bytes so far, and bytes in all; what it raises ends the export.
    flags: those of `fvlm-export`, with `_` for `-`; a list for a flag that may be given several times.
    """

def command(name: str, arguments: Sequence[str]) -> None: ...
