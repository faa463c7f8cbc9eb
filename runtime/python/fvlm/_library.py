"""Where ONNX Runtime's library is: in the folders that the interpreter installs packages into, and never in the current one."""

import pathlib
import site


def onnxruntime() -> str | None:
    """The folder of the installed package `onnxruntime` with its library; None where it is not installed."""
    # A virtual environment that sees the system's packages has ours in one folder and perhaps that one in another.
    folders = [str(pathlib.Path(__file__).parent.parent), *site.getsitepackages()]
    if site.ENABLE_USER_SITE:
        folders.append(site.getusersitepackages())
    for folder in folders:
        found = pathlib.Path(folder, "onnxruntime", "capi")
        if any(found.glob("*onnxruntime*.so*")) or any(found.glob("*onnxruntime*.d*")):
            return str(found)
    return None
