"""`python -m fvlm` is `fvlm-run`."""

from fvlm._commands import run

if __name__ == "__main__":
    run()
