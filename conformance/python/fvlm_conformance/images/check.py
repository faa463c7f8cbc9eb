#!/usr/bin/env python3
"""Compares what `runtime` decodes with what Pillow does, on generated files and any others.

    python -m fvlm_conformance.images.check PROGRAM [FILE_OR_FOLDER ...] [--keep FOLDER] [--heif] [--record]

PROGRAM is `target/release/examples/pixels`. What `jpegs.py`, `formats.py` and `heif.py` generate is compared, and every
image in the paths given: those that packages ship, say. A file that Pillow opens must have the pixels that Pillow has, by
format as `LIMITS` says, or be refused; where Pillow refuses, nothing is compared. Pictures whose 16-bit gray Pillow
clips are compared with their upper byte. HEIC and AVIF are compared with libheif's `heif-convert`, and what that decodes
of the generated ones must be decoded. `--heif` takes HEIC and AVIF alone. `--keep` leaves the generated files and their
pixels there; `--record` writes the files and hashes of `runtime/tests/data/matrix`, and with `--heif` the files of
`runtime/tests/data/heif`, which tests decode. Exit code 1 on a difference.
"""

import argparse
import collections
import io
import json
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import warnings

import numpy as np
from PIL import Image, ImageOps

from ..common import ROOT
from . import formats, heif, jpegs

# The largest difference of a value, by format.
LIMITS = {"JPEG": 0, "PNG": 0, "BMP": 0, "GIF": 0, "TIFF": 0, "WEBP": 0, "HEIC": 2, "AVIF": 2}
DATA = ROOT / "runtime/tests/data/matrix"
HEIF_DATA = ROOT / "runtime/tests/data/heif"
HEIF = {".heic", ".heif", ".hif", ".avif"}
# What is recorded of the matrix: small files, at most so many bytes.
RECORDED = re.compile(
    r"^(?!.*color.*-420).*-33x17\.jpg$"
    r"|^png-\d-\d+-(rows-(plain|trns)|adam7-plain)\.png$"
    r"|^tiff-(palette|gray|la|rgba|cmyk|planar|white|format).*(strips|-tiles|fill-order|None|white-16|-[13])\.tif$"
    r"|^bmp-(rle|gray|\d+-(64|early)|\d+-(12|40)|\d+-[a-z0-9]+-(40|56)).*\.bmp$"
    r"|^(jpeg|png|webp|tiff)-(xmp|raw|named|both)-.*6\.[a-z]+$"
    r"|^webp-frames-.*-ff102030-4\.6-[02]-2\.webp$"
    r"|^gif-16-\w+-(own.*|whole-(None|1)|part-(5\.6|23\.12)-(None|1)-[01]|3\.17|32\.2)\.gif$"
)
MOST = 2_000
# Small ones of each kind.
HEIF_RECORDED = re.compile(
    r"^heic-(42[02]-33x17|444-16x16|alpha|premultiplied|gray-10|rgb-10|irot-1-imir-0|clap-31x21|exif-irot-6|two-primary1|iovl-70)\.heic$"
    r"|^avif-(420-33x17|444-16x16|alpha|rgb-12|imir-1-irot-3|clap-irot-31x21|two-primary1)\.avif$"
    r"|^(heic|avif)-grid-2x3-150x90\.\w+$"
)


def as_meant(path):
    """What Pillow opens for a file: of one that it reads wrongly, its twin."""
    twins = dict(formats.twins())
    return io.BytesIO(twins[path.name]) if path.name in twins else path


def expected(path):
    """Pillow's format, and pixels or error."""
    if path.suffix.lower() in HEIF:
        with tempfile.TemporaryDirectory() as folder:
            found = heif.reference(path, folder)
            pixels = found if isinstance(found, Exception) else found[:, :, :3]
            return "AVIF" if path.suffix.lower() == ".avif" else "HEIC", pixels
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = Image.open(as_meant(path))
            format = "JPEG" if image.format == "MPO" else image.format
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I;16"):
                # Pillow would clip.
                upper = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
                return format, np.repeat(upper[:, :, None], 3, axis=2)
            return format, np.asarray(image.convert("RGB"))
        except Exception as error:
            return None, error


def on_white(path):
    """What transformers' `convert_to_rgb` makes of a file with alpha; None of others."""
    image = heif_with_alpha(path) if path.suffix.lower() in HEIF else with_alpha(path)
    if image is None:
        return None
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return np.asarray(Image.alpha_composite(white, image).convert("RGB"))


def heif_with_alpha(path):
    with tempfile.TemporaryDirectory() as folder:
        found = heif.reference(path, folder)
    return Image.fromarray(found) if found.shape[2] == 4 else None


# Files among those that are generated which Pillow opens and we refuse: conformance/README.md says which.
REFUSED = {"JPEG": 10, "TIFF": 16, "PNG": 4, "GIF": 4, "BMP": 6, "WEBP": 0}


def with_alpha(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = Image.open(as_meant(path))
        if image.format == "PNG" and image.mode in ("1", "L", "I;16") and path.read_bytes()[24] != 8:
            # Pillow looks for the transparent gray of the file among grays that it has scaled.
            return None
        if "A" not in image.getbands() and image.info.get("transparency") is None:
            return None
        return ImageOps.exif_transpose(image).convert("RGBA")


def decode(program, paths, folder):
    """What the program says of each path: an error, or None and its pixels in `folder`."""
    done = subprocess.run(
        [program, folder], input="".join(f"{path}\n" for path in paths), capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"{program} ended with {done.returncode}: {done.stderr[-2000:]}")
    return dict(line.split("\t", 1) for line in done.stdout.splitlines())


def compare(program, paths, folder, ours=False):
    """`ours`: the files are generated, and none of HEIF's kinds is refused that libheif decodes."""
    tally, failures = collections.defaultdict(collections.Counter), []
    answers = decode(program, paths, folder)
    for path in paths:
        answer = answers[str(path)]
        format, pixels = expected(path)
        if isinstance(pixels, Exception):
            other = "libheif" if path.suffix.lower() in HEIF else "Pillow"
            tally[path.suffix.lower()][
                f"{other} refuses, we " + ("decode" if answer == "ok" else "refuse")
            ] += 1
            if ours and other == "libheif":
                failures.append(f"{path.name}: libheif does not decode it: {pixels}")
            continue
        if answer != "ok":
            tally[format]["refused"] += 1
            print(f"refused: {answer}")
            if ours and path.suffix.lower() in HEIF:
                failures.append(f"{path.name}: refused, and libheif decodes it")
            continue
        found = np.asarray(Image.open(folder / (path.name + ".ppm")))
        if found.shape != pixels.shape:
            tally[format]["wrong"] += 1
            failures.append(f"{path.name}: {found.shape}, expected {pixels.shape}")
            continue
        most = int(np.abs(found.astype(int) - pixels).max())
        good = most <= LIMITS.get(format, 0)
        tally[format][f"at most {most}" if good else "wrong"] += 1
        if not good:
            failures.append(f"{path.name}: differs by {most}, at most {LIMITS.get(format, 0)}")
        white = on_white(path)
        if white is not None:
            other = folder / (path.name + ".white.ppm")
            found = np.asarray(Image.open(other)) if other.exists() else found
            same = int(np.abs(found.astype(int) - white).max()) <= LIMITS.get(format, 0)
            tally[format]["on white" if same else "wrong on white"] += 1
            if not same:
                failures.append(f"{path.name}: on white it differs from transformers' `convert_to_rgb`")
    for format, most in REFUSED.items() if ours else ():
        found = tally[format]["refused"]
        if found > most:
            failures.append(f"{format}: {found} files are refused that Pillow opens, expected at most {most}")
    return tally, failures


def images(paths):
    """All files in `paths` that may be images, by their ends."""
    ends = {".jpg", ".jpeg", ".png", ".gif", ".bmp", ".tif", ".tiff", ".webp", *HEIF}
    for path in map(pathlib.Path, paths):
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.suffix.lower() in ends and file.is_file():
                yield file


def fnv(data):
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return f"{value:016x}"


def record(program, folder):
    """Writes the files that the test decodes: of each, its size and a hash of Pillow's pixels, or that it is refused."""
    shutil.rmtree(DATA, ignore_errors=True)
    DATA.mkdir(parents=True)
    paths = [
        path
        for path in sorted(folder.iterdir())
        if RECORDED.search(path.name) and path.stat().st_size <= MOST
    ]
    cases = []
    with tempfile.TemporaryDirectory() as pixels:
        answers = decode(program, paths, pathlib.Path(pixels))
    for path in paths:
        format, pixels = expected(path)
        if isinstance(pixels, Exception):
            continue
        case = {"file": path.name, "size": [pixels.shape[1], pixels.shape[0]]}
        case["fnv"] = fnv(pixels.tobytes()) if answers[str(path)] == "ok" else None
        cases.append(case)
        shutil.copy(path, DATA)
    lines = ",\n".join(json.dumps(case) for case in cases)
    (DATA / "matrix.json").write_text(f"[\n{lines}\n]\n")
    size = sum(path.stat().st_size for path in DATA.iterdir())
    print(f"{len(cases)} files, {size} bytes in {DATA.relative_to(ROOT)}")


def record_heif(folder):
    """Writes the files that the test of HEIC and AVIF decodes, each beside what libheif makes of it."""
    shutil.rmtree(HEIF_DATA, ignore_errors=True)
    HEIF_DATA.mkdir(parents=True)
    for path in sorted(folder.iterdir()):
        if HEIF_RECORDED.search(path.name):
            with tempfile.TemporaryDirectory() as work:
                pixels = heif.reference(path, work)
            Image.fromarray(pixels).save(HEIF_DATA / f"{path.name}.png", optimize=True)
            shutil.copy(path, HEIF_DATA)
    made = list(HEIF_DATA.iterdir())
    size = sum(path.stat().st_size for path in made)
    print(f"{len(made)} files, {size} bytes in {HEIF_DATA.relative_to(ROOT)}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program", type=pathlib.Path)
    parser.add_argument("paths", nargs="*")
    parser.add_argument("--keep", type=pathlib.Path)
    parser.add_argument("--heif", action="store_true")
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or pathlib.Path(temporary)
        generated, pixels = folder / "generated", folder / "pixels"
        generated.mkdir(parents=True, exist_ok=True)
        pixels.mkdir(exist_ok=True)
        sources = [heif] if options.heif else [jpegs, formats, heif]
        for source in sources:
            for name, data in source.files():
                (generated / name).write_bytes(data)
        if options.record and options.heif:
            record_heif(generated)
            return
        if options.record:
            record(options.program, generated)
            return
        failures = []
        given = folder / "given"
        given.mkdir(exist_ok=True)
        for number, path in enumerate(images(options.paths)):
            (given / f"{number:05}-{path.name}").symlink_to(path.resolve())
        for source in (generated, given):
            paths = sorted(source.iterdir())
            tally, wrong = compare(options.program, paths, pixels, ours=source == generated)
            failures += wrong
            print(f"{source.name}: {len(paths)} files")
            for format, counts in sorted(tally.items(), key=str):
                print(
                    f"  {format}: " + ", ".join(f"{count} {what}" for what, count in sorted(counts.items()))
                )
        # What must be refused is.
        damaged = folder / "damaged"
        damaged.mkdir(exist_ok=True)
        for name, data in [*([] if options.heif else jpegs.damaged()), *heif.damaged()]:
            (damaged / name).write_bytes(data)
        answers = decode(options.program, sorted(damaged.iterdir()), pixels)
        failures += [f"{path}: decoded, and is damaged" for path, answer in answers.items() if answer == "ok"]
        print(f"damaged: {len(answers)} files, {sum(answer != 'ok' for answer in answers.values())} refused")
    for failure in failures:
        print(f"FAIL {failure}")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
