#!/usr/bin/env python3
"""Ours against the peers: the same weights, image and prompt, in turns, each in a process of its own.

Started by scripts/bench_peers, which makes the environment. The Markdown table goes to stdout, talk to stderr.
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

from ..common import ROOT
from . import case
from .contestants import PEERS
from .contestants.cold import KINDS
from .contestants.common import Case
from .contestants.ours import Ours, first_line

CONTESTANTS = f"{__package__}.contestants"
PHASES = ("load", "preprocess", "encode", "prefill", "ttft", "decode")
OURS = "cpu:cpu:int8,cpu:cpu:q4,cpu:cpu:fp32,tract:cpu:q4,tract:cpu:fp32"
# Names of instructions that decide which kernels an engine has.
FLAGS = (
    "avx2",
    "avx_vnni",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "amx_int8",
    "amx_bf16",
    "asimddp",
    "i8mm",
    "bf16",
)


def options():
    parser = argparse.ArgumentParser(
        prog="scripts/bench_peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--size", choices=list(case.IMAGES), default="0.5b", help="geometry of the synthetic weights"
    )
    parser.add_argument("--rounds", type=int, default=3, help="how often each contestant has its turn")
    parser.add_argument("--peers", default=",".join(PEERS), help="comma-separated, or empty (default: all)")
    parser.add_argument(
        "--ours",
        default=OURS,
        help=f"comma-separated PROVIDER:TARGET:PRECISION; provider genai is onnxruntime-genai (default: {OURS})",
    )
    parser.add_argument(
        "--warm-up", type=int, default=2, help="runs before those that count, in each process"
    )
    parser.add_argument("--repeat", type=int, default=5, help="runs that count, in each process")
    parser.add_argument("--decode-tokens", type=int, default=32)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--no-cold", action="store_true", help="leave out the cold starts")
    parser.add_argument(
        "--outliers", action="store_true", help="weights with massive activations, in a cache of their own"
    )
    parser.add_argument("--tokenizer", type=Path, help="a real tokenizer.json instead of the stand-in")
    parser.add_argument("--work", type=Path, default=ROOT / "target" / "bench_peers", help="cache directory")
    built = ROOT / os.environ.get("CARGO_TARGET_DIR", "target") / "release"
    parser.add_argument("--programs", type=Path, default=built, help="where fvlm-* are")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers")
    parser.add_argument(
        "--record", action="store_true", help="write JSON and table to conformance/benches/results/"
    )
    parser.add_argument("--list", action="store_true", help="print the peers and leave")
    chosen = parser.parse_args()
    for name in ("rounds", "repeat", "decode_tokens", "threads"):
        if getattr(chosen, name) < 1:
            parser.error(f"--{name.replace('_', '-')}: found {getattr(chosen, name)}, expected 1 or more")
    chosen.peers = [name for name in chosen.peers.split(",") if name]
    chosen.ours = [name for name in chosen.ours.split(",") if name]
    for name in chosen.peers:
        if name not in PEERS:
            parser.error(f"--peers: found `{name}`, expected some of {', '.join(PEERS)}")
    return chosen


def machine():
    found = {
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "flags": [],
        "os": f"{platform.system()} {platform.machine()}",
    }
    info = Path("/proc/cpuinfo")
    if info.exists():
        fields = dict(
            line.split(":", 1) for line in info.read_text().split("\n\n")[0].splitlines() if ":" in line
        )
        fields = {key.strip(): value.strip() for key, value in fields.items()}
        family, model = fields.get("cpu family", "?"), fields.get("model", "?")
        found["cpu"] = f"{fields.get('model name', found['cpu'])} (family {family}, model {model})"
        known = set((fields.get("flags") or fields.get("Features") or "").split())
        found["flags"] = [flag for flag in FLAGS if flag in known]
    return found


def contestant(peer, work, chosen, *more):
    """A peer's line, or a string that says why there is none."""
    command = [
        sys.executable,
        "-m",
        f"{CONTESTANTS}.{peer.module}",
        "--work",
        str(work),
        "--precision",
        peer.precision,
        "--threads",
        str(chosen.threads),
        "--warm-up",
        str(chosen.warm_up),
        "--repeat",
        str(chosen.repeat),
        "--decode-tokens",
        str(chosen.decode_tokens),
        *more,
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        return lines[-1] if lines else f"ended with {done.returncode}"
    return None if "--prepare" in more else json.loads(done.stdout.splitlines()[-1])


def prepare(chosen, work):
    """Everything that is converted, before anything is timed. Returns who can take part."""
    mine, portable = {}, Ours("cpu:portable:fp32", work, chosen.programs)
    reason = portable.export()
    if reason is not None:
        raise SystemExit(f"error: fvlm-export could not write the portable bundle: {reason}")
    for name in chosen.ours:
        entry = Ours(name, work, chosen.programs)
        reason = entry.export()
        if reason is None:
            mine[name] = entry
        else:
            case.say(f"absent: {name}: {reason}")
    peers = []
    contestant(PEERS["transformers-fp32"], work, chosen, "--prepare")
    for name in chosen.peers:
        case.say(f"preparing {name}")
        reason = contestant(PEERS[name], work, chosen, "--prepare")
        if reason is None:
            peers.append(name)
        else:
            case.say(f"absent: {name}: {reason}")
    return mine, peers


def rounds(chosen, work, mine, peers):
    lines, facts = {}, Case(work)
    for k in range(chosen.rounds):
        for name in [*mine, *peers]:
            case.say(f"round {k + 1} of {chosen.rounds}: {name}")
            peer = mine[name].peer if name in mine else PEERS[name]
            line = contestant(peer, work, chosen) if peer else mine[name].measure(facts, chosen, ROOT)
            if isinstance(line, str):
                case.say(f"absent in this round: {name}: {line}")
            else:
                lines.setdefault(name, []).append(line)
    return {name: gathered(found, name in mine) for name, found in lines.items()}


def gathered(lines, is_ours):
    """Medians over the rounds of the medians in them; the least and greatest of all."""
    entry = {"ours": is_ours, "rounds": len(lines)}
    entry |= {
        key: lines[-1].get(key) for key in ("version", "precision", "threads", "prompt_tokens", "relative_l2")
    }
    for phase in PHASES:
        found = [line[f"{phase}_s"] for line in lines if line.get(f"{phase}_s")]
        entry[f"{phase}_s"] = (
            {
                "median": statistics.median(f["median"] for f in found),
                "min": min(f["min"] for f in found),
                "max": max(f["max"] for f in found),
            }
            if found
            else None
        )
    entry["peak_rss_bytes"] = statistics.median(line["peak_rss_bytes"] for line in lines)
    return entry


def cold(chosen, work, mine, peers):
    """Wall time of whole processes, files in the page cache: ours and the Python peers that have both halves."""
    facts, commands = Case(work), {}
    for name, entry in mine.items():
        if entry.peer:
            continue
        commands[name] = [
            chosen.programs / "fvlm-run",
            "--model",
            entry.bundle,
            "--provider",
            entry.provider,
            "--no-fallback",
            "--threads",
            chosen.threads,
            "--prompt",
            facts.prompt,
            "--max-tokens",
            1,
            "--quiet",
            facts.image,
        ]
    for name in peers:
        if PEERS[name].module in KINDS and PEERS[name].precision != "fp32":
            commands[name] = [
                sys.executable,
                "-m",
                f"{CONTESTANTS}.cold",
                "--work",
                work,
                "--peer",
                name,
                "--threads",
                chosen.threads,
            ]
    seconds = {}
    # One round more than counted: the first brings the files into the page cache.
    for k in range(chosen.rounds + 1):
        for name, command in commands.items():
            case.say(f"cold start {k} of {chosen.rounds}: {name}")
            start = time.perf_counter()
            done = subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=ROOT)
            spent = time.perf_counter() - start
            if done.returncode != 0:
                case.say(f"absent: cold start of {name}: {first_line(done.stderr)}")
            elif k > 0:
                seconds.setdefault(name, []).append(spent)
    return {
        name: {"median": statistics.median(s), "min": min(s), "max": max(s)} for name, s in seconds.items()
    }


def ratios(entries, cold_starts):
    """Ours divided by each peer, phase by phase, from the medians of this run."""
    found = []
    for ours, mine in entries.items():
        if not mine["ours"]:
            continue
        for peer, theirs in entries.items():
            if theirs["ours"]:
                continue
            row = {"ours": ours, "peer": peer}
            for phase in PHASES:
                a, b = mine[f"{phase}_s"], theirs[f"{phase}_s"]
                row[phase] = a["median"] / b["median"] if a and b else None
            a, b = cold_starts.get(ours), cold_starts.get(peer)
            row["cold"] = a["median"] / b["median"] if a and b else None
            row["peak_rss"] = mine["peak_rss_bytes"] / theirs["peak_rss_bytes"]
            found.append(row)
    return found


def cell(value, digits=3):
    return "–" if value is None else f"{value:.{digits}f}"


def table(report):
    facts = report["machine"]
    lines = [
        f"{report['size']}, {report['prompt_tokens']} prompt positions, {report['threads']} threads, {report['date']}; "
        f"{facts['cpu']}, {facts['cores']} cores, {' '.join(facts['flags'])}; seconds, median (least), of "
        f"{report['rounds']} rounds in turns.",
        "",
        "| contestant | " + " | ".join(PHASES) + " | cold | peak GB | error of features / logits |",
        "|---" * (len(PHASES) + 4) + "|",
    ]
    for name, entry in report["contestants"].items():
        cells = [f"**{name}**" if entry["ours"] else name]
        for phase in PHASES:
            spread = entry[f"{phase}_s"]
            digits = 4 if phase == "decode" else 3
            cells.append(
                f"{cell(spread['median'], digits)} ({cell(spread['min'], digits)})" if spread else "–"
            )
        start = report["cold"].get(name)
        cells.append(f"{cell(start['median'], 2)} ({cell(start['min'], 2)})" if start else "–")
        cells.append(cell(entry["peak_rss_bytes"] / 1e9, 2))
        errors = entry["relative_l2"] or {}
        cells.append(f"{cell(errors.get('features'), 4)} / {cell(errors.get('logits'), 4)}")
        lines.append("| " + " | ".join(cells) + " |")
    if report["ratios"]:
        phases = [phase for phase in PHASES if phase != "load"] + ["cold", "peak_rss"]
        lines += [
            "",
            "Ours divided by the peer's, below 1 is faster or smaller:",
            "",
            "| ours | peer | " + " | ".join(phases) + " |",
            "|---" * (len(phases) + 2) + "|",
        ]
        lines += [
            "| " + " | ".join([row["ours"], row["peer"]] + [cell(row[phase], 2) for phase in phases]) + " |"
            for row in report["ratios"]
        ]
    for word, picked in (
        ("whole pipeline", "ttft"),
        ("encoder", "encode"),
        ("prefill", "prefill"),
        ("decode", "decode"),
    ):
        for is_ours in (True, False):
            best = [
                (entry[f"{picked}_s"]["median"], name)
                for name, entry in report["contestants"].items()
                if entry["ours"] == is_ours and entry[f"{picked}_s"]
            ]
            if best:
                seconds, name = min(best)
                lines += [
                    "" if is_ours or not report["ratios"] else None,
                    f"Fastest {word} {'of ours' if is_ours else 'of the peers'}: {name}, {seconds:.4f} s.",
                ]
    versions = {entry["version"] for entry in report["contestants"].values()}
    lines += ["", "Versions: " + "; ".join(sorted(versions)) + "."]
    return "\n".join(line for line in lines if line is not None) + "\n"


def main():
    chosen = options()
    if chosen.list:
        for name, peer in PEERS.items():
            print(f"{name}\t{CONTESTANTS}.{peer.module}")
        return
    chosen.programs = chosen.programs.resolve()
    for name in ("fvlm-export", "fvlm-run", "fvlm-conform"):
        if not (chosen.programs / name).exists():
            raise SystemExit(
                f"error: there is no {name} in {chosen.programs}: build it, or name its directory by --programs"
            )
    work = chosen.work.resolve() / (chosen.size + ("-outliers" if chosen.outliers else ""))
    case.make(work, chosen.size, chosen.programs, chosen.tokenizer, chosen.outliers)
    mine, peers = prepare(chosen, work)
    entries = rounds(chosen, work, mine, peers)
    if not entries:
        raise SystemExit("error: no contestant could be measured; the lines above say why")
    cold_starts = {} if chosen.no_cold else cold(chosen, work, mine, peers)
    report = {
        "schema": 1,
        "date": datetime.date.today().isoformat(),
        "size": work.name,
        "machine": machine(),
        "threads": chosen.threads,
        "rounds": chosen.rounds,
        "repeat": chosen.repeat,
        "prompt_tokens": len(Case(work).prompt_ids),
        "contestants": entries,
        "cold": cold_starts,
        "ratios": ratios(entries, cold_starts),
    }
    text = table(report)
    print(text, end="")
    if chosen.json:
        chosen.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if chosen.record:
        results = ROOT / "conformance" / "benches" / "results"
        results.mkdir(exist_ok=True)
        stem = results / f"{report['date']}-{report['size']}"
        stem.with_suffix(stem.suffix + ".json").write_text(
            json.dumps(report, indent=1) + "\n", encoding="utf-8"
        )
        stem.with_suffix(stem.suffix + ".md").write_text(text, encoding="utf-8")
        case.say(f"recorded {stem.name}")


if __name__ == "__main__":
    main()
