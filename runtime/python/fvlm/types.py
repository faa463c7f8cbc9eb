"""Types of arguments: what an image can be, names of providers, targets and precisions, and keyword arguments.

Nothing here is needed to use the package; programs that are type-checked name these.
"""

import os
from collections.abc import Sequence
from typing import Any, Literal, Protocol, TypeAlias, TypedDict

import numpy as np
import numpy.typing as npt

__all__ = ["ExportFlags", "Image", "Options", "Precision", "Provider", "Target"]


class _ArrayInterface(Protocol):
    @property
    def __array_interface__(self) -> dict[str, Any]: ...


class _Array(Protocol):
    def __array__(self) -> npt.NDArray[Any]: ...


Image: TypeAlias = (
    str | os.PathLike[str] | bytes | bytearray | memoryview | npt.NDArray[np.uint8] | _ArrayInterface | _Array
)
"""An image: a path, the bytes of an image file, a PIL image, or pixels `[height, width, 3]` of uint8 (red, green, blue)."""

Provider: TypeAlias = Literal["auto", "coreml", "coreml-native", "cpu", "tract"]
Precision: TypeAlias = Literal["fp32", "fp16", "int8", "q8", "q4", "q4f16"]
Target: TypeAlias = Literal["portable", "cpu", "coreml"]


class Options(TypedDict, total=False):
    """How an answer is made; what is left out is greedy, 256 tokens."""

    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    seed: int
    stop: str | Sequence[str]
    regex: str


class ExportFlags(TypedDict, total=False):
    """Flags of `fvlm-export`, with `_` for `-`; a list for a flag that may be given several times."""

    adapter: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None
    calibration: str | os.PathLike[str] | None
    card: bool
    dry_run: bool
    from_onnx: str | os.PathLike[str] | None
    image_size: int | Sequence[int] | None
    ios16_encoder: bool
    layout: Literal["auto", "llava", "transformers", "mlx"] | None
    max_context: int | None
    neural_engine: bool
    overwrite: bool
    page: bool
    precision: Precision | Sequence[Precision] | None
    prefill: int | Sequence[int] | None
    self_contained: bool
    target: Target | Sequence[Target] | None
    to: Literal["onnx", "coreml"] | Sequence[Literal["onnx", "coreml"]]
    weights: Literal["beside", "inside"] | None
