#!/usr/bin/env python3
"""Records references (conformance/reference/README.md): fvlm_conformance.reference.record, from a clone, without installing it."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "python"))

from fvlm_conformance.reference.record import main  # noqa: E402

if __name__ == "__main__":
    main()
