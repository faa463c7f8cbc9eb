"""Ours: one bundle a contestant, exported from the same checkpoint, measured by `fvlm-conform bench`, or in an engine of others."""

import json
import subprocess

from . import Peer

# Engines of others that run our bundles, in the place of a provider.
ENGINES = {"genai": "genai_bundle"}
PHASES = ("load_s", "preprocess_s", "encode_s", "prefill_s", "ttft_s", "decode_s")


class Ours:
    """`name` is PROVIDER:TARGET:PRECISION; a provider may be one of ENGINES too."""

    def __init__(self, name, work, programs):
        parts = name.split(":")
        if len(parts) != 3:
            raise SystemExit(
                f"error: --ours {name}: expected PROVIDER:TARGET:PRECISION, for example cpu:portable:fp32"
            )
        self.name = name
        self.provider, self.target, self.precision = parts
        self.work = work
        self.programs = programs
        self.bundle = work / "bundles" / f"{self.target}-{self.precision}"
        if self.provider in ENGINES and self.target != "portable":
            raise SystemExit(
                f"error: --ours {name}: {self.provider} has none of our kernels, expected target portable"
            )
        # The program that runs the bundle, where that is not ours.
        self.peer = Peer(ENGINES[self.provider], self.precision) if self.provider in ENGINES else None

    def export(self):
        """None, or why there is no such bundle. A bundle older than the exporter is made again."""
        exporter = self.programs / "fvlm-export"
        made = self.bundle / "bundle.json"
        if made.exists() and made.stat().st_mtime > exporter.stat().st_mtime:
            return None
        self.bundle.parent.mkdir(exist_ok=True)
        done = subprocess.run(
            [
                exporter,
                "--model",
                self.work / "checkpoint",
                "--target",
                self.target,
                "--precision",
                self.precision,
                "-o",
                self.bundle,
                "--overwrite",
            ],
            capture_output=True,
            text=True,
        )
        return None if done.returncode == 0 else first_line(done.stderr)

    def measure(self, case, options, root):
        """The contestant's line, or a string that says why there is none."""
        command = [
            self.programs / "fvlm-conform",
            "bench",
            "--model",
            self.bundle,
            "--provider",
            self.provider,
            "--target",
            self.target,
            "--precision",
            self.precision,
            "--image",
            case.image,
            "--prompt",
            case.prompt,
            "--threads",
            options.threads,
            "--warm-up",
            options.warm_up,
            "--repeat",
            options.repeat,
            "--decode-tokens",
            options.decode_tokens,
            "--json",
        ]
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=root)
        if done.returncode != 0:
            return first_line(done.stderr)
        return self.line(json.loads(done.stdout), options.threads)

    def line(self, answer, threads):
        results = [
            r
            for r in answer["results"]
            if (r["provider"], r["target"], r["precision"]) == (self.provider, self.target, self.precision)
        ]
        if len(results) != 1:
            return f"fvlm-conform bench gave {len(results)} results for {self.name}, expected one"
        result = results[0]
        return (
            {
                "version": answer.get("tool", "fvlm-conform"),
                "precision": self.precision,
                "threads": threads,
                "prompt_tokens": result["prompt_tokens"],
            }
            | {phase: result[phase] for phase in PHASES}
            | {"peak_rss_bytes": result["peak_rss_bytes"]}
        )


def first_line(text):
    lines = [line for line in text.splitlines() if line.strip()]
    return next((line for line in lines if line.startswith("error")), lines[-1] if lines else "no message")
