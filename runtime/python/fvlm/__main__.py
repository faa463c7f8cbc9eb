"""`python -m fvlm` is `fvlm-run`."""

from fvlm._commands import run

run()
