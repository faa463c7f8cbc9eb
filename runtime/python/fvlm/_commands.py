"""The commands of the package: each is the program of that name, in the process of the interpreter."""

import os
import signal
import sys

from fvlm import _library, _native


def _become(name: str) -> None:
    # What the interpreter does on Ctrl-C is taken back: the command decides. What was ignored stays ignored.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    if not os.environ.get("ORT_DYLIB_PATH") and (found := _library.onnxruntime()):
        os.environ["ORT_DYLIB_PATH"] = found
    _native.command(name, sys.argv[1:])


def export() -> None:
    """`fvlm-export`."""
    _become("fvlm-export")


def run() -> None:
    """`fvlm-run`."""
    _become("fvlm-run")


def serve() -> None:
    """`fvlm-serve`."""
    _become("fvlm-serve")
