"""FastVLM natively: images are described by a bundle that `fvlm-export`, or `fvlm.export`, made of a checkpoint.

    import fvlm

    model = fvlm.Model("fastvlm-bundle")
    print(model.describe("photo.jpg", "What is in the image?"))

Computing gives up the interpreter's lock, threads share a model, and Ctrl-C ends an answer between two tokens.
"""

from fvlm._native import (
    Answer,
    Choice,
    Conversation,
    Error,
    ExportError,
    ImageError,
    IncompleteError,
    Model,
    __version__,
    export,
)

__all__ = [
    "Answer",
    "Choice",
    "Conversation",
    "Error",
    "ExportError",
    "ImageError",
    "IncompleteError",
    "Model",
    "__version__",
    "export",
]
