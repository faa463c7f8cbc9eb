"""HEIC and AVIF files of every kind: coded by libheif's `heif-enc`, and put together here box by box.

What `heif-enc` 1.15 cannot write is written here around what it coded: grids, overlays, rotations, mirrors, crops, EXIF,
several images, data in `idat`. `reference` is what libheif's own `heif-convert` makes of a file.
"""

import functools
import io
import os
import pathlib
import shutil
import struct
import subprocess
import sys
import tempfile

import numpy as np
from PIL import Image, ImageCms

from .jpegs import scene

SIZES = [(1, 1), (16, 16), (33, 17), (64, 48), (65, 47), (131, 200)]
PACKAGE = "libheif-examples"


def tools():
    """libheif's programs are there, or are installed where that is allowed; anything else ends with a sentence."""
    names = ["heif-enc", "heif-convert"]
    if not all(map(shutil.which, names)) and shutil.which("apt-get") and os.geteuid() == 0:
        print(f"installing {PACKAGE} ...", file=sys.stderr)
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        install = [
            "apt-get",
            "-qy",
            "-o",
            "DPkg::Lock::Timeout=600",
            "install",
            "--no-install-recommends",
            PACKAGE,
        ]
        for command in (install, ["apt-get", "-q", "update"], install):
            subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=False)
            if all(map(shutil.which, names)):
                break
    if not all(map(shutil.which, names)):
        sys.exit(
            f"error: this machine lacks heif-enc or heif-convert; on Debian, as root: apt-get install {PACKAGE}"
        )


def painted(width, height, channels, kind=0):
    """`[height, width, channels]`: gray is red, alpha is a slope that is nowhere 0."""
    rgb = scene(width, height, kind)
    slope = np.broadcast_to(np.linspace(1, 255, width).astype(np.uint8)[None, :, None], (height, width, 1))
    return np.concatenate([rgb, slope], axis=2) if channels == 4 else rgb[:, :, :channels]


def encode(kind, image, *flags):
    """The file that `heif-enc` makes of an image, or of several."""
    images = image if isinstance(image, list) else [image]
    with tempfile.TemporaryDirectory() as folder:
        sources = [f"{folder}/{number}.png" for number in range(len(images))]
        for path, source in zip(sources, images):
            write_png(path, source)
        out = f"{folder}/out.{kind}"
        avif = ["-A"] if kind == "avif" else []
        command = ["heif-enc", "-o", out, *avif, *flags, *sources]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode or not os.path.exists(out):
            sys.exit(f"error: {' '.join(command)}: {done.stdout[-500:]} {done.stderr[-500:]}")
        return pathlib.Path(out).read_bytes()


def write_png(path, image):
    """Pillow writes no RGB of 16 bits."""
    if isinstance(image, Image.Image):
        image.save(path)
    else:
        from .formats import png

        colors = {1: 0, 3: 2, 4: 6}[image.shape[2]]
        pathlib.Path(path).write_bytes(png(image, 16, colors))


def reference(path, folder):
    """What `heif-convert` makes of a file's primary image: its upper 8 bits, with alpha if it has any, or an error."""
    out = pathlib.Path(folder) / "reference.png"
    for old in out.parent.glob("reference*.png"):
        old.unlink()
    done = subprocess.run(["heif-convert", str(path), str(out)], capture_output=True, text=True)
    made = sorted(out.parent.glob("reference*.png"))
    made = [found for found in made if "alpha" not in found.name and "depth" not in found.name]
    if not made:
        return ValueError(done.stderr.strip() or done.stdout.strip())
    # Of several images it writes all, in the order of their numbers; the name says which one is meant.
    wanted = int(path.stem.rsplit("-primary", 1)[1]) if "-primary" in path.stem else 0
    found = upper(made[wanted].read_bytes())
    # It writes colours as they are stored; Pillow, which decodes AVIF by itself, divides them by alpha.
    return straight(found) if "-premultiplied" in path.stem else found


def upper(png):
    """Pillow keeps the upper byte of RGB with 16 bits, and clips gray."""
    image = Image.open(io.BytesIO(png))
    if image.mode.startswith("I;16"):
        gray = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
        return np.repeat(gray[:, :, None], 3, axis=2)
    return np.asarray(image.convert("RGBA" if "A" in image.getbands() else "RGB"))


def straight(pixels):
    """Colours that were multiplied with alpha, divided by it."""
    color, alpha = pixels[:, :, :3].astype(int), pixels[:, :, 3:].astype(int)
    whole = np.minimum((color * 255 + alpha // 2) // np.maximum(alpha, 1), 255)
    return np.concatenate([np.where(alpha > 0, whole, 0), alpha], axis=2).astype(np.uint8)


# Boxes, and a file of them.


def box(kind, *parts):
    body = b"".join(parts)
    return struct.pack(">I4s", 8 + len(body), kind) + body


def full(kind, version, flags, *parts):
    return box(kind, struct.pack(">I", version << 24 | flags), *parts)


def boxes(data):
    at = 0
    while at < len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        yield kind, data[at + 8 : at + size], data[at : at + size]
        at += size


def coded(data):
    """Of a file of one coded image: its item's type, the properties of how it is coded, its data, and its size."""
    top = {kind: body for kind, body, _ in boxes(data)}
    meta = {kind: body for kind, body, _ in boxes(top[b"meta"][4:])}
    properties = {kind: body for kind, body, _ in boxes(meta[b"iprp"])}
    kept, size = [], None
    for kind, body, whole in boxes(properties[b"ipco"]):
        if kind in (b"hvcC", b"av1C"):
            kept.append((whole, True))
        if kind == b"ispe" and size is None:
            size = struct.unpack(">II", body[4:12])
    # The first of two where a grid of one tile keeps an odd size.
    at, entries = 8, []
    version, sizes = meta[b"iloc"][0], meta[b"iloc"][4:6]
    assert sizes == b"\x44\x40", sizes
    for _ in range(struct.unpack_from(">H", meta[b"iloc"], 6)[0]):
        # Version 0 has no word on whether it lies in `idat`.
        entry = ">HHHIH" if version else ">HHIH"
        _, *method, _, base, extents = struct.unpack_from(entry, meta[b"iloc"], at)
        method = method[0] if method else 0
        at += struct.calcsize(entry)
        for _ in range(extents):
            offset, length = struct.unpack_from(">II", meta[b"iloc"], at)
            at += 8
            entries.append((method, base + offset, length))
    method, offset, length = entries[0]
    assert method == 0
    kind = b"av01" if any(whole[4:8] == b"av1C" for whole, _ in kept) else b"hvc1"
    return kind, [*kept, (ispe(*size), False)], data[offset : offset + length], size


def ispe(width, height):
    return full(b"ispe", 0, 0, struct.pack(">II", width, height))


def irot(quarters):
    return box(b"irot", bytes([quarters]))


def imir(axis):
    return box(b"imir", bytes([axis]))


def clap(width, height, x, y):
    """Width and height are numbers; offsets of the centre are pairs."""
    return box(b"clap", struct.pack(">IIIIiIiI", width, 1, height, 1, *x, *y))


def nclx(matrix, whole):
    return box(b"colr", b"nclx", struct.pack(">HHHB", 1, 13, matrix, whole << 7))


def alpha():
    return full(b"auxC", 0, 0, b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha\0")


def item(kind, data=b"", properties=(), refers=(), inside=False, hidden=False, more=b""):
    """`refers` are a type of references and numbers of items, from 1; `inside` lies in `idat`."""
    return dict(
        kind=kind,
        data=data,
        properties=list(properties),
        refers=refers,
        inside=inside,
        hidden=hidden,
        more=more,
    )


def heif(items, primary=1, brands=(b"heic", b"mif1", b"heic"), split=False):
    """A file of items. `split` cuts their data in two extents that lie apart."""
    ipco, places, ipma, iinf, iref, iloc, idat, mdat = [], {}, b"", b"", b"", [], b"", b""
    for number, entry in enumerate(items, 1):
        found = []
        for whole, essential in entry["properties"]:
            if whole not in places:
                ipco.append(whole)
                places[whole] = len(ipco)
            found.append(places[whole] | essential << 7)
        ipma += struct.pack(">HB", number, len(found)) + bytes(found)
        iinf += full(
            b"infe",
            2,
            int(entry["hidden"]),
            struct.pack(">HH4s", number, 0, entry["kind"]),
            b"\0",
            entry["more"],
        )
        for kind, numbers in entry["refers"]:
            iref += box(kind, struct.pack(f">HH{len(numbers)}H", number, len(numbers), *numbers))
        data = entry["data"]
        if entry["inside"]:
            iloc.append((number, 1, [(len(idat), len(data))]))
            idat += data
        elif split:
            half = len(data) // 2
            first = (len(mdat), half)
            mdat += data[:half] + b"apart"
            iloc.append((number, 0, [first, (len(mdat), len(data) - half)]))
            mdat += data[half:]
        else:
            iloc.append((number, 0, [(len(mdat), len(data))]))
            mdat += data

    def meta(base):
        locations = b""
        for number, method, extents in iloc:
            locations += struct.pack(">HHHH", number, method, 0, len(extents))
            for offset, length in extents:
                locations += struct.pack(">II", offset + (0 if method else base), length)
        parts = [
            full(b"hdlr", 0, 0, struct.pack(">I4s", 0, b"pict"), bytes(13)),
            full(b"pitm", 0, 0, struct.pack(">H", primary)),
            full(b"iloc", 1, 0, b"\x44\0", struct.pack(">H", len(iloc)), locations),
            full(b"iinf", 0, 0, struct.pack(">H", len(items)), iinf),
        ]
        if iref:
            parts.append(full(b"iref", 0, 0, iref))
        parts.append(
            box(b"iprp", box(b"ipco", *ipco), full(b"ipma", 0, 0, struct.pack(">I", len(items)), ipma))
        )
        if idat:
            parts.append(box(b"idat", idat))
        return full(b"meta", 0, 0, *parts)

    ftyp = box(b"ftyp", brands[0], bytes(4), *brands[1:])
    head = len(ftyp) + len(meta(0)) + 8
    return ftyp + meta(head) + box(b"mdat", mdat)


def grid(rows, columns, width, height, wide=False):
    size = struct.pack(">II" if wide else ">HH", width, height)
    return bytes([0, int(wide), rows - 1, columns - 1]) + size


def overlay(width, height, offsets):
    body = struct.pack(">BB4H2H", 0, 0, 65535, 0, 32768, 65535, width, height)
    return body + b"".join(struct.pack(">hh", *offset) for offset in offsets)


def exif(orientation):
    tiff = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01" + struct.pack(">HH", orientation, 0) + bytes(4)
    return struct.pack(">I", 6) + b"Exif\0\0" + tiff


BRANDS = {"heic": (b"heic", b"mif1", b"heic"), "avif": (b"avif", b"mif1", b"avif", b"miaf")}


@functools.cache
def tile(kind, seed=0, width=64, height=64, *flags):
    image = Image.fromarray(painted(width, height, 3, seed))
    return coded(encode(kind, image, *flags))


def plain():
    """What `heif-enc` writes."""
    for kind in ("heic", "avif"):
        for width, height in SIZES:
            for chroma in ("420", "422", "444"):
                image = Image.fromarray(painted(width, height, 3))
                yield (
                    f"{kind}-{chroma}-{width}x{height}.{kind}",
                    encode(kind, image, "-p", f"chroma={chroma}"),
                )
        rgb, rgba = Image.fromarray(painted(65, 47, 3)), Image.fromarray(painted(65, 47, 4), "RGBA")
        gray, even = Image.fromarray(painted(65, 47, 1)[:, :, 0]), Image.fromarray(painted(64, 48, 3))
        yield f"{kind}-gray.{kind}", encode(kind, gray)
        yield f"{kind}-alpha.{kind}", encode(kind, rgba)
        yield f"{kind}-gray-alpha.{kind}", encode(kind, rgba.convert("LA"))
        yield f"{kind}-premultiplied.{kind}", encode(kind, rgba, "--premultiplied-alpha")
        yield f"{kind}-thumbnail.{kind}", encode(kind, rgb, "-t", "24")
        yield f"{kind}-several.{kind}", encode(kind, [rgb, even])
        exact = ("-L", "-p", "chroma=444", "--matrix_coefficients=0")
        yield f"{kind}-lossless.{kind}", encode(kind, rgb, *exact)
        for quality in (5, 95):
            yield f"{kind}-quality-{quality}.{kind}", encode(kind, rgb, "-q", str(quality))
        for matrix in (1, 2, 5, 6, 7, 9):
            for whole in (0, 1):
                flags = (f"--matrix_coefficients={matrix}", f"--full_range_flag={whole}")
                yield f"{kind}-matrix-{matrix}-{whole}.{kind}", encode(kind, even, *flags)
        # Of 16 bits; heif-enc keeps the upper ones.
        for channels, name in ((1, "gray"), (3, "rgb"), (4, "rgba")):
            deep = (
                painted(64, 48, channels).astype(np.uint16) * 257
                - np.arange(64, dtype=np.uint16)[None, :, None] % 29
            )
            for bits in (10, 12):
                chroma = ()
                if kind == "avif" and bits == 10:
                    # Debian's encoder of AV1 fails on other images of 10 bits.
                    if channels != 3:
                        continue
                    chroma = ("-p", "chroma=422")
                if kind == "avif" and channels == 1:
                    continue
                yield f"{kind}-{name}-{bits}.{kind}", encode(kind, deep, "-b", str(bits), *chroma)


def composed():
    """What is put together here around coded tiles."""
    for kind, brands in BRANDS.items():
        code, how, data, (width, height) = tile(kind)

        def one(name, *more, kind=kind, brands=brands, code=code, how=how, data=data, items=(), **options):
            first = item(code, data, [*how, *((whole, True) for whole in more)])
            return f"{kind}-{name}.{kind}", heif([first, *items], brands=brands, **options)

        yield one("bare")
        yield one("extents", split=True)
        for matrix in (0, 1, 6):
            for whole in (0, 1):
                yield one(f"colr-{matrix}-{whole}", nclx(matrix, whole))
        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
        yield one("icc", box(b"colr", b"prof", profile))
        for quarters in range(4):
            yield one(f"irot-{quarters}", irot(quarters))
            for axis in (0, 1):
                yield one(f"irot-{quarters}-imir-{axis}", irot(quarters), imir(axis))
                yield one(f"imir-{axis}-irot-{quarters}", imir(axis), irot(quarters))
        for axis in (0, 1):
            yield one(f"imir-{axis}", imir(axis))
        for w, h, x, y in [
            (64, 64, (0, 1), (0, 1)),
            (32, 20, (0, 1), (0, 1)),
            (31, 21, (1, 2), (-1, 2)),
            (1, 1, (-63, 2), (63, 2)),
            (40, 30, (-12, 1), (17, 1)),
        ]:
            yield one(f"clap-{w}x{h}", clap(w, h, x, y))
            yield one(f"clap-irot-{w}x{h}", clap(w, h, x, y), irot(1))
        for orientation in range(1, 9):
            about = item(b"Exif", exif(orientation), refers=[(b"cdsc", [1])], hidden=True)
            yield one(f"exif-{orientation}", items=[about])
            yield one(f"exif-irot-{orientation}", irot(3), items=[about])
        yield from grids(kind, brands)
        other = tile(kind, 1)
        two = [item(code, data, how), item(other[0], other[2], other[1])]
        for primary in (1, 2):
            yield f"{kind}-two-primary{primary - 1}.{kind}", heif(two, primary, brands)
        hidden = [item(code, data, how, hidden=True), item(other[0], other[2], other[1])]
        yield f"{kind}-hidden.{kind}", heif(hidden, 2, brands)
        properties = [(ispe(width, height), False), (irot(1), True)]
        # It has no data; libheif 1.15 wants some all the same.
        same = item(b"iden", b"\0", properties, [(b"dimg", [1])], inside=True)
        yield f"{kind}-iden.{kind}", heif([item(code, data, how, hidden=True), same], 2, brands)
        for offsets in ([(0, 0), (40, 30)], [(10, 20), (70, 8)]):
            data_of = overlay(100, 80, offsets)
            over = item(b"iovl", data_of, [(ispe(100, 80), False)], [(b"dimg", [1, 2])], inside=True)
            layers = [dict(entry, hidden=True) for entry in two]
            yield f"{kind}-iovl-{offsets[1][0]}.{kind}", heif([*layers, over], 3, brands)
        veil = item(other[0], other[2], [*other[1], (alpha(), False)], [(b"auxl", [1])], hidden=True)
        yield one("aux-alpha", items=[veil])


def grids(kind, brands):
    for rows, columns, width, height in [
        (1, 1, 64, 64),
        (1, 1, 50, 33),
        (2, 2, 128, 128),
        (2, 3, 150, 90),
        (3, 1, 64, 130),
    ]:
        tiles = [tile(kind, seed) for seed in range(rows * columns)]
        items = [item(code, data, how, hidden=True) for code, how, data, _ in tiles]
        numbers = list(range(1, len(items) + 1))
        for name, more, wide, inside in [
            ("", [], False, True),
            ("-wide", [], True, False),
            ("-turned", [(irot(1), True), (imir(0), True)], False, True),
        ]:
            properties = [(ispe(width, height), False), *more]
            whole = item(
                b"grid", grid(rows, columns, width, height, wide), properties, [(b"dimg", numbers)], inside
            )
            yield (
                f"{kind}-grid-{rows}x{columns}-{width}x{height}{name}.{kind}",
                heif([*items, whole], len(items) + 1, brands),
            )


def files():
    tools()
    yield from plain()
    yield from composed()


def damaged():
    """Files that must be refused, by name."""
    for kind, brands in BRANDS.items():
        code, how, data, size = tile(kind)
        whole = heif([item(code, data, how)], brands=brands)
        for left in (12, 40, 200, len(whole) // 2, len(whole) - 1):
            yield f"{kind}-cut-{left}.{kind}", whole[:left]
        yield f"{kind}-no-config.{kind}", heif([item(code, data, how[1:])], brands=brands)
        yield f"{kind}-no-primary.{kind}", heif([item(code, data, how)], 7, brands)
        yield f"{kind}-other-codec.{kind}", heif([item(b"j2k1", data, how)], brands=brands)
        yield (
            f"{kind}-size.{kind}",
            heif([item(code, data, [how[0], (ispe(60000, 60000), False)])], brands=brands),
        )
        tiles = item(code, data, how, hidden=True)
        bomb = item(
            b"grid", grid(255, 255, 64, 64), [(ispe(*size), False)], [(b"dimg", [1] * 255 * 255)], True
        )
        yield f"{kind}-tiles.{kind}", heif([tiles, bomb], 2, brands)
        itself = item(b"grid", grid(1, 1, 64, 64), [(ispe(*size), False)], [(b"dimg", [1])], True)
        yield f"{kind}-itself.{kind}", heif([itself], 1, brands)
        large = item(b"grid", grid(1, 1, 60000, 60000), [(ispe(*size), False)], [(b"dimg", [1])], True)
        yield f"{kind}-canvas.{kind}", heif([tiles, large], 2, brands)
        uncovered = item(b"grid", grid(1, 1, 65, 64), [(ispe(65, 64), False)], [(b"dimg", [1])], True)
        yield f"{kind}-uncovered.{kind}", heif([tiles, uncovered], 2, brands)
        above = item(
            b"iovl", overlay(100, 80, [(0, -20)]), [(ispe(100, 80), False)], [(b"dimg", [1])], inside=True
        )
        yield f"{kind}-above.{kind}", heif([tiles, above], 2, brands)
        # As many pictures as stand one behind the other: libheif would decode them all.
        yield f"{kind}-pictures.{kind}", heif([item(code, data * 400, how)], brands=brands)
