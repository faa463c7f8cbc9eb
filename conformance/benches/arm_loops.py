#!/usr/bin/env python3
"""What do the inner loops of the kernels for AArch64 cost? Cuts them out of the disassembly and asks llvm-mca.

    conformance/benches/arm_loops.py                   builds the kernels (as scripts/check_platforms does) and prints the tables
    conformance/benches/arm_loops.py --library FILE    of a libkernels-*.rlib or a program that is already built
    conformance/benches/arm_loops.py --show SET KIND   the instructions of one loop
    conformance/benches/arm_loops.py --check           an error if a loop misses what README.md says of it

Wants llvm-objdump and llvm-mca: Debian's `llvm`, or a newer one, whose names end in its version.
"""

import argparse
import pathlib
import re
import shutil
import subprocess
import sys
from collections import Counter, namedtuple

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROCESSORS = ["apple-m1", "neoverse-n1", "neoverse-v1"]
# Instruction sets by the module that compiles them.
SETS = {
    "portable": "portable",
    "neon": "neon",
    "neon-dotprod": "neon_dotprod",
    "neon-i8mm": "neon_i8mm",
}
# Processors on which the tiles of a set must reach three quarters of the peak: those that have no better set.
BOUND = {"neon-dotprod": ["apple-m1", "neoverse-n1"], "neon-i8mm": ["neoverse-v1"]}
# Products of one instruction: what multiplies bytes, or what bytes became.
PRODUCTS = [
    (re.compile(r"^[su]mmla|^usmmla"), 32),
    (re.compile(r"^(us|s|u)dot"), 16),
    (re.compile(r"^[su]ml[as]l2? v\d+\.8h"), 8),
    (re.compile(r"^[su]mull2? v\d+\.8h"), 8),
    (re.compile(r"^[su]ml[as]l2? v\d+\.4s"), 4),
    (re.compile(r"^[su]mull2? v\d+\.4s"), 4),
    (re.compile(r"^m(ul|la) v\d+\.4s"), 4),
]
FLOATS = [(re.compile(r"^fmla\b.*\.4s"), 4)]
# What is looked for: which function, which products, and how many rows.
KINDS = {
    "tile, int8 and q4": ("accumulate.*Quantised", "bytes", None),
    "few, int8, 1 row": ("few_linear", "bytes", 1),
    "few, q4, 1 row": ("few_linear", "nibbles", 1),
    "few, q4, 4 rows": ("few_linear", "nibbles", 4),
    "tile, fp32": (r"accumulate.*CallTPf", "floats", None),
}

Loop = namedtuple("Loop", "set kind body products multiplying rows")


def tool(name):
    versions = [str(v) for v in range(30, 13, -1)]
    found = next((p for p in [f"{name}-{v}" for v in versions] + [name] if shutil.which(p)), None)
    return found or sys.exit(f"error: there is no {name}: apt-get install llvm")


def functions(library):
    """Names and instructions: (address, text, address of the label that a branch goes to or None)."""
    command = [tool("llvm-objdump"), "-d", "--no-show-raw-insn", "--mattr=+dotprod,+i8mm", str(library)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    name, body = None, []
    for line in process.stdout:
        if header := re.match(r"^[0-9a-f]+ <(.*)>:$", line):
            if name:
                yield name, body
            name, body = header.group(1), []
        elif name and (found := re.match(r"^\s*([0-9a-f]+):\s+(\S.*)$", line)):
            text = re.sub(r"\s+", " ", found.group(2)).strip()
            target = re.match(r"^(b\.\w+|b|cbn?z|tbn?z) (?:.*, )?(?:0x)?([0-9a-f]+) <", text)
            body.append((int(found.group(1), 16), text, int(target.group(2), 16) if target else None))
    if name:
        yield name, body
    if process.wait():
        sys.exit(f"error: {' '.join(command)} failed")


def innermost(body):
    place = {address: i for i, (address, _, _) in enumerate(body)}
    loops = [
        (place[target], i)
        for i, (address, _, target) in enumerate(body)
        if target is not None and target <= address and target in place
    ]
    for start, end in loops:
        if not any(other != (start, end) and start <= other[0] and other[1] <= end for other in loops):
            yield [text for _, text, _ in body[start : end + 1]]


def count(body, table):
    """Products of one turn, and the instructions that make them."""
    found = [(text, n) for text in body for pattern, n in table if pattern.search(text)]
    return sum(n for _, n in found), [text for text, _ in found]


def loaded(body):
    """Bytes that vector registers are loaded with."""
    total = 0
    for text in body:
        operation, _, operands = text.partition(" ")
        registers = re.match(r"^\{? ?((?:[qdv]\d+[.0-9a-z]*,? ?)+)", operands)
        # What lies on the stack are sums and activations that registers did not hold.
        if (
            operation in ("ldr", "ldur", "ldp", "ld1", "ld2", "ld3", "ld4")
            and registers
            and "[sp" not in text
        ):
            names = [name for name in registers.group(1).replace(",", " ").split() if name]
            total += sum(8 if name[0] == "d" else 16 for name in names)
    return total


def loops_of(library):
    """The best loop of each set and kind: the fewest instructions per product."""
    best = {}
    for name, body in functions(library):
        module = re.search(r"kernels3isa(?:\d+)([a-z_0-9]+?)3run", name)
        instruction_set = next((s for s, m in SETS.items() if module and m == module.group(1)), None)
        if not instruction_set:
            continue
        for kind, (pattern, form, rows) in KINDS.items():
            if not re.search(pattern, name):
                continue
            for loop in innermost(body):
                products, multiplying = count(loop, FLOATS if form == "floats" else PRODUCTS)
                nibbles = any(re.match(r"^ushr .*#0?x?4$", text) for text in loop)
                if not products or (form != "floats" and (form == "nibbles") != nibbles):
                    continue
                # Every byte of weights is multiplied once per row, of nibbles twice.
                seen = round(products / max(loaded(loop), 1) / (2 if nibbles else 1) + 0.25)
                if rows is not None and max(seen, 1) != rows:
                    continue
                key = (instruction_set, kind)
                if key not in best or len(loop) / products < len(best[key].body) / best[key].products:
                    best[key] = Loop(instruction_set, kind, loop, products, multiplying, seen)
    return best


def cycles(body, processor, turns=400):
    """Cycles of one turn, in the analyser's model of the processor."""
    lines = []
    for text in body:
        # A branch out of the loop, or back to its start, is a branch.
        text = re.sub(r"^(b\.\w+|b|cbn?z|tbn?z) (.*, )?(0x)?[0-9a-f]+ <.*$", r"\1 \2.", text)
        lines.append(re.sub(r" <.*>$", "", text))
    command = [tool("llvm-mca"), "-mtriple=aarch64", f"-mcpu={processor}", "-mattr=+dotprod,+i8mm,+fullfp16"]
    done = subprocess.run(
        [*command, f"-iterations={turns}"], input="\n".join(lines) + "\n", capture_output=True, text=True
    )
    found = re.search(r"Total Cycles:\s+(\d+)", done.stdout)
    if not found:
        sys.exit(f"error: llvm-mca for {processor}: {done.stderr.strip()[:500]}")
    return int(found.group(1)) / turns


def peak(multiplying, processor):
    """Cycles of the multiplying instructions alone, with sums enough for their latency."""
    lines = []
    for i in range(len(multiplying) * 4):
        text = multiplying[i % len(multiplying)]
        operation, _, operands = text.partition(" ")
        first, _, rest = operands.partition(", ")
        rest = re.sub(r"v\d+\.(\d+[bhs])", r"v31.\1", rest)
        rest = re.sub(r"v\d+\.(s|4b)\[", r"v31.\1[", rest)
        lines.append(f"{operation} {re.sub(r'v[0-9]+', f'v{i % 30}', first)}, {rest}")
    return cycles(lines, processor) / 4


def four_units(body, multiplying):
    """A lower bound for four vector units, three loads and eight instructions a cycle, as an M1 has them."""
    vector = sum(bool(re.match(r"^\S+ \{? ?[vqds]\d", t)) and not re.match(r"^(ld|st|prf)", t) for t in body)
    loads = sum(bool(re.match(r"^(ld|prf)", t)) for t in body)
    return len(multiplying) / 4 / max(vector / 4, loads / 3, len(body) / 8)


def build():
    sys.path.insert(0, str(ROOT / "scripts"))
    from platforms import arm64

    return arm64.kernels_library()


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--library", type=pathlib.Path)
    parser.add_argument("--show", nargs=2, metavar=("SET", "KIND"))
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    loops = loops_of(options.library or build())
    if options.show:
        loop = loops.get(tuple(options.show)) or sys.exit(f"error: no such loop, of: {sorted(loops)}")
        print("\n".join(loop.body))
        return
    missed = []
    print("| loop | set | instructions | products | per product | of portable | what they are |")
    print("|---|---|---|---|---|---|---|")
    for kind in KINDS:
        for name in SETS:
            if not (loop := loops.get((name, kind))):
                continue
            each = len(loop.body) / loop.products
            portable = loops.get(("portable", kind))
            share = each / (len(portable.body) / portable.products) if portable else float("nan")
            what = Counter(text.split()[0] for text in loop.body).most_common(6)
            print(
                f"| {kind} | {name} | {len(loop.body)} | {loop.products} | {each:.3f} | {share:.2f} | "
                f"{', '.join(f'{n} {w}' for w, n in what)} |"
            )
            if name in BOUND and kind.startswith("tile, int8") and share > 0.25:
                missed.append(f"{name}, {kind}: {share:.2f} of the portable set's instructions")
    print()
    print("| loop | set | " + " | ".join(f"{p}: cycles, of peak" for p in PROCESSORS) + " | four units |")
    print("|---|---|" + "---|" * (len(PROCESSORS) + 1))
    for kind in KINDS:
        for name in SETS:
            if name == "portable" or not (loop := loops.get((name, kind))):
                continue
            cells = []
            for processor in PROCESSORS:
                turn = cycles(loop.body, processor)
                share = peak(loop.multiplying, processor) / turn
                cells.append(f"{turn:.1f}, {share:.0%}")
                if kind.startswith("tile, int8") and processor in BOUND.get(name, []) and share < 0.75:
                    missed.append(f"{name}, {kind}: {share:.0%} of {processor}'s peak")
            print(
                f"| {kind} | {name} | {' | '.join(cells)} | {four_units(loop.body, loop.multiplying):.0%} |"
            )
    if options.check and missed:
        sys.exit("error: " + "; ".join(missed))


if __name__ == "__main__":
    main()
