"""The JPEG matrix: files of every legal kind, most of which Pillow cannot write (`jpeg.py`)."""

import io
import itertools
import struct

import numpy as np
from PIL import Image, ImageCms

from .jpeg import Component, Options, Picture, Scan, segment, write

SIZES = [(70, 45), (33, 17), (64, 48), (8, 8), (1, 1), (17, 130), (131, 9)]


def scene(width, height, kind=0):
    """RGB `[height, width, 3]`, uint8: waves, a hard edge and some noise, so that a misplaced block shows."""
    y, x = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    waves = [127 + 100 * np.sin(x / (7 + 3 * c) + y / (11 - 2 * c) + c) for c in range(3)]
    rgb = np.stack(waves, axis=2)
    rgb[(x > width * 0.6) & (y > height * 0.3)] = [(230, 40, 60), (20, 200, 90)][kind % 2]
    rgb[: height // 4, : width // 4] = [40, 60, 220]
    random = np.random.default_rng(width * 1000 + height + kind)
    return np.clip(rgb + random.normal(0, 6, rgb.shape), 0, 255).astype(np.uint8)


def planes(rgb, space):
    """Components of `rgb`, float: `gray`, `ycc`, `rgb`, and Adobe's inverted `cmyk` and `ycck`."""
    rgb = rgb.astype(float)
    if space == "rgb":
        return [rgb[:, :, c] for c in range(3)]
    r, g, b = (rgb[:, :, c] for c in range(3))
    y = 0.299 * r + 0.587 * g + 0.114 * b
    cb, cr = 128 + (b - y) * 0.564, 128 + (r - y) * 0.713
    if space == "gray":
        return [y]
    if space == "ycc":
        return [y, cb, cr]
    black = 255 - (r + g + b) / 9
    return [r, g, b, black] if space == "cmyk" else [y, cb, cr, black]


def components(rgb, space, factors, names=None):
    names = names or range(1, 5)
    return [
        Component(plane, h, v, 0 if index in (0, 3) or space in ("rgb", "cmyk") else 1, name)
        for index, (plane, (h, v), name) in enumerate(zip(planes(rgb, space), factors, names))
    ]


def script(kind, count):
    """Scans of a progressive file with `count` components, from its first coarse bits to its last."""
    every = tuple(range(count))
    fine = {
        # Bits and bands of libjpeg's own script.
        "usual": [Scan(every, 0, 0, 0, 1)]
        + [Scan((0,), 1, 5, 0, 2)]
        + [Scan((c,), 1, 63, 0, 1) for c in reversed(every[1:])]
        + [Scan((0,), 6, 63, 0, 2), Scan((0,), 1, 63, 2, 1), Scan(every, 0, 0, 1, 0)]
        + [Scan((c,), 1, 63, 1, 0) for c in reversed(every)],
        "spectral": [Scan(every, 0, 0)]
        + [Scan((c,), first, last) for first, last in [(1, 2), (3, 9), (10, 63)] for c in every],
        "separate": [Scan((c,), 0, 0) for c in every] + [Scan((c,), 1, 63) for c in every],
        "backwards": [Scan((c,), 0, 0) for c in reversed(every)]
        + [Scan((c,), first, last) for first, last in [(40, 63), (1, 39)] for c in every],
        "bits": [Scan(every, 0, 0, 0, 3)]
        + [Scan(every, 0, 0, bit, bit - 1) for bit in (3, 2, 1)]
        + [Scan((c,), 1, 63, 0, 4) for c in every]
        + [Scan((c,), 1, 63, bit, bit - 1) for bit in (4, 3, 2, 1) for c in every],
        "single": [Scan(every, 0, 0)]
        + [Scan((c,), k, k, 0, 1) for k in range(1, 64) for c in every]
        + [Scan((c,), 1, 63, 1, 0) for c in every],
        "pairs": [Scan(every[:2], 0, 0, 0, 1), *(Scan((c,), 0, 0, 0, 1) for c in every[2:])]
        + [Scan((c,), 1, 63, 0, 1) for c in every]
        + [Scan((c,), 0, 0, 1, 0) for c in every]
        + [Scan((c,), 1, 63, 1, 0) for c in every],
    }
    return fine[kind]


def with_restarts(scans, intervals):
    return [
        Scan(s.components, s.first, s.last, s.high, s.low, interval)
        for s, interval in zip(scans, itertools.cycle(intervals))
    ]


FACTORS = {
    "444": [(1, 1)] * 3,
    "422": [(2, 1), (1, 1), (1, 1)],
    "440": [(1, 2), (1, 1), (1, 1)],
    "420": [(2, 2), (1, 1), (1, 1)],
    "411": [(4, 1), (1, 1), (1, 1)],
    "410": [(4, 2), (1, 1), (1, 1)],
    "441": [(1, 4), (1, 1), (1, 1)],
    "4x4": [(4, 4), (1, 1), (1, 1)],
    "3x1": [(3, 1), (1, 1), (1, 1)],
    "1x3": [(1, 3), (1, 1), (1, 1)],
    "3x2": [(3, 2), (1, 1), (1, 1)],
    "2x2-2x1": [(2, 2), (2, 1), (2, 1)],
    "2x2-1x2": [(2, 2), (1, 2), (1, 2)],
    "2x2-mixed": [(2, 2), (2, 1), (1, 2)],
    "2x1-mixed": [(2, 1), (1, 1), (2, 1)],
    "4x1-2x1": [(4, 1), (2, 1), (2, 1)],
    "4x2-2x1": [(4, 2), (2, 1), (1, 1)],
    "2x2-all": [(2, 2), (2, 2), (2, 2)],
    "3x1-2x1": [(3, 1), (2, 1), (1, 1)],
    "luma-small": [(1, 1), (2, 2), (2, 2)],
    "luma-half": [(1, 1), (2, 1), (1, 1)],
}


def written():
    """(name, bytes) of what `jpeg.py` writes."""
    count = itertools.count()

    def size():
        return SIZES[next(count) % len(SIZES)]

    def file(name, space, factors, scans, options=None, names=None, quality=85, shape=None, scale=1):
        width, height = shape or size()
        picture = Picture(components(scene(width, height), space, factors, names), quality, scale)
        yield f"{name}-{width}x{height}.jpg", write(picture, scans, options or Options())

    whole, apart = [Scan((0, 1, 2))], [Scan((0,)), Scan((1,)), Scan((2,))]
    orders = {
        "whole": whole,
        "apart": apart,
        "pair": [Scan((0, 1)), Scan((2,))],
        "pair-last": [Scan((0,)), Scan((1, 2))],
        "backwards": [Scan((2,)), Scan((1,)), Scan((0,))],
    }
    for name, factors in FACTORS.items():
        for order, scans in orders.items():
            if any(
                len(s.components) > 1 and sum(factors[c][0] * factors[c][1] for c in s.components) > 10
                for s in scans
            ):
                continue
            for restart in ([0], [1], [3, 5, 7]) if order in ("whole", "apart") else ([0],):
                kind = f"seq-{name}-{order}-r{'.'.join(map(str, restart))}"
                yield from file(kind, "ycc", factors, with_restarts(scans, restart), shape=(70, 45))
                yield from file(kind, "ycc", factors, with_restarts(scans, restart))
        for kind in ["usual", "spectral", "separate", "backwards", "bits", "pairs"]:
            scans = script(kind, 3)
            if any(
                len(s.components) > 1 and sum(factors[c][0] * factors[c][1] for c in s.components) > 10
                for s in scans
            ):
                continue
            restart = [[0], [2], [4, 0, 9]][next(count) % 3]
            options = Options(frame=0xC2, huffman=["flat", "steep"][next(count) % 2])
            yield from file(f"prog-{name}-{kind}", "ycc", factors, with_restarts(scans, restart), options)
    yield from file(
        "prog-single", "ycc", FACTORS["420"], script("single", 3), Options(frame=0xC2, huffman="flat")
    )
    # One component: its factors say nothing.
    for h, v in [(1, 1), (2, 1), (1, 2), (2, 2), (4, 1), (3, 2), (4, 4)]:
        for restart in (0, 4):
            yield from file(
                f"gray-{h}x{v}-r{restart}", "gray", [(h, v)], [Scan((0,), restart=restart)], shape=(70, 45)
            )
        yield from file(
            f"gray-{h}x{v}-prog", "gray", [(h, v)], script("usual", 1), Options(frame=0xC2, huffman="flat")
        )
    # Four components.
    for space, adobe in [("cmyk", 0), ("cmyk", None), ("ycck", 2), ("ycck", 1), ("ycck", None)]:
        for name, factors in {
            "1": [(1, 1)] * 4,
            "2x2": [(2, 2), (1, 1), (1, 1), (2, 2)],
            "2x1": [(2, 1), (1, 1), (1, 1), (2, 1)],
            "1x2": [(1, 2), (1, 1), (1, 1), (1, 2)],
            "2x2-k1": [(2, 2), (1, 1), (1, 1), (1, 1)],
        }.items():
            for order, scans in [
                ("whole", [Scan((0, 1, 2, 3))]),
                ("apart", [Scan((c,)) for c in range(4)]),
                ("restarts", [Scan((0, 1, 2, 3), restart=3)]),
            ]:
                if len(scans) == 1 and sum(h * v for h, v in factors) > 10:
                    continue
                options = Options(jfif=False, adobe=adobe)
                yield from file(f"four-{space}-{adobe}-{name}-{order}", space, factors, scans, options)
            if sum(h * v for h, v in factors) <= 10:
                options = Options(frame=0xC2, jfif=False, adobe=adobe, huffman="flat")
                yield from file(
                    f"four-{space}-{adobe}-{name}-prog", space, factors, script("usual", 4), options
                )
    # Which colour space three components are in: by JFIF, by Adobe, by their names.
    for jfif, adobe, names in itertools.product(
        [True, False], [None, 0, 1, 2], [(1, 2, 3), (0, 1, 2), (82, 71, 66), (34, 35, 36), (1, 34, 35)]
    ):
        space = "rgb" if (adobe == 0 or adobe is None and names == (82, 71, 66)) and not jfif else "ycc"
        options = Options(jfif=jfif, adobe=adobe)
        name = f"color-{'jfif' if jfif else 'bare'}-{adobe}-{'.'.join(map(str, names))}"
        for sampling in ("444", "420"):
            yield from file(
                f"{name}-{sampling}", space, FACTORS[sampling], whole, options, names, shape=(33, 17)
            )
    # No Huffman tables, as webcams send them.
    for name in ("422", "420", "444"):
        for restart in (0, 2):
            yield from file(
                f"camera-{name}-r{restart}",
                "ycc",
                FACTORS[name],
                with_restarts(whole, [restart]),
                Options(huffman="none"),
            )
        yield from file(
            f"camera-{name}-apart", "ycc", FACTORS[name], apart, Options(huffman="none", jfif=False)
        )
    # Tables.
    for frame, wide, huffman, scale, quality in itertools.product(
        [0xC0, 0xC1], [False, True], ["standard", "flat", "steep"], [1, 9], [50, 97]
    ):
        if scale > 1 and not wide:
            continue
        options = Options(frame=frame, wide_tables=wide, huffman=huffman)
        name = f"tables-{frame:x}-{16 if wide else 8}-{huffman}-{scale}-{quality}"
        yield from file(name, "ycc", FACTORS["420"], whole, options, quality=quality, scale=scale)
    for quality in (1, 5, 25, 60, 95, 100):
        for name in ("444", "422", "440", "420"):
            yield from file(
                f"quality-{quality}-{name}", "ycc", FACTORS[name], whole, quality=quality, shape=(70, 45)
            )
    # What may stand between.
    exif = segment(0xE1, b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0")
    comment = segment(0xFE, b"a comment with \xff\xd8 and \xff\xd9 and \xff\xc0\0\x0b in it")
    for name, options in {
        "fill": Options(fill=1),
        "fill-many": Options(fill=9),
        "comments": Options(between=comment * 3),
        "comment-first": Options(before=comment),
        "exif": Options(before=exif),
        "exif-late": Options(between=exif, jfif=False),
        "thumbnail": Options(before=segment(0xE1, b"Exif\0\0" + write_small())),
        "zeros-after": Options(after=b"\0" * 100),
        "image-after": Options(after=write_small()),
        "text-after": Options(after=b"<html>\xff\xff\xd8"),
        "apps": Options(between=b"".join(segment(0xE0 + n, b"x" * n) for n in range(16))),
        "long": Options(between=segment(0xEF, b"\xff\xd9" * 32000)),
    }.items():
        for order, scans in (("whole", whole), ("apart", apart)):
            yield from file(f"around-{name}-{order}", "ycc", FACTORS["420"], scans, options, shape=(33, 17))
    # Coarse at the end: scripts that leave bits or coefficients out.
    for name, scans in {
        "dc": [Scan((0, 1, 2), 0, 0)],
        "dc-coarse": [Scan((0, 1, 2), 0, 0, 0, 2)],
        "no-chroma": [Scan((0, 1, 2), 0, 0), Scan((0,), 1, 63)],
        "low": [Scan((0, 1, 2), 0, 0)] + [Scan((c,), 1, 5) for c in range(3)],
        "coarse": [Scan((0, 1, 2), 0, 0)] + [Scan((c,), 1, 63, 0, 2) for c in range(3)],
    }.items():
        for sampling in ("444", "420"):
            options = Options(frame=0xC2, huffman="flat")
            yield from file(
                f"unfinished-{name}-{sampling}", "ycc", FACTORS[sampling], scans, options, shape=(70, 45)
            )


def write_small():
    return write(Picture(components(scene(9, 9), "ycc", FACTORS["444"])), [Scan((0, 1, 2))], Options())


def saved():
    """(name, bytes) of what Pillow writes."""

    def save(image, **options):
        data = io.BytesIO()
        image.save(data, "JPEG", **options)
        return data.getvalue()

    for index, (width, height) in enumerate(
        [*SIZES, (2, 3), (15, 16), (16, 15), (50, 75), (97, 61), (256, 100)]
    ):
        rgb = Image.fromarray(scene(width, height, index))
        for subsampling, progressive in itertools.product([0, 1, 2], [False, True]):
            quality = [30, 75, 90, 95][(index + subsampling) % 4]
            name = f"pillow-{width}x{height}-{subsampling}-{'prog' if progressive else 'seq'}-q{quality}.jpg"
            yield name, save(rgb, quality=quality, subsampling=subsampling, progressive=progressive)
        yield f"pillow-{width}x{height}-gray.jpg", save(rgb.convert("L"))
        yield f"pillow-{width}x{height}-gray-prog.jpg", save(rgb.convert("L"), progressive=True)
        yield f"pillow-{width}x{height}-cmyk.jpg", save(rgb.convert("CMYK"), quality=90)
        yield f"pillow-{width}x{height}-rgb.jpg", save(rgb, keep_rgb=True)
        yield f"pillow-{width}x{height}-optimize.jpg", save(rgb, optimize=True, restart_marker_rows=1)
        yield f"pillow-{width}x{height}-restart.jpg", save(rgb, restart_marker_blocks=3, subsampling=2)
    rgb = Image.fromarray(scene(40, 30))
    for orientation in range(10):
        exif = Image.Exif()
        exif[0x0112] = orientation
        yield f"pillow-orientation-{orientation}.jpg", save(rgb, exif=exif)
        yield f"pillow-orientation-{orientation}-prog.jpg", save(rgb, exif=exif, progressive=True)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    yield "pillow-profile.jpg", save(rgb, icc_profile=profile, dpi=(300, 300), comment="a comment")
    data = io.BytesIO()
    rgb.save(data, "MPO", save_all=True, append_images=[Image.fromarray(scene(40, 30, 1))])
    yield "pillow-several.jpg", data.getvalue()


def files():
    for number, (name, data) in enumerate(itertools.chain(written(), saved())):
        yield f"{number:04}-{name}", data


def damaged():
    """(name, bytes) of what must be refused."""
    name, data = next((name, data) for name, data in written() if name.startswith("seq-420-whole-r0-70"))
    for share in (1, 2, 3, 4, 5, 7, 8, 9):
        yield f"cut-{share}0-{name}", data[: len(data) * share // 10]
    yield f"cut-end-{name}", data[:-2]
    yield f"cut-one-{name}", data[:-1]
    place = data.index(b"\xff\xc0")
    for marker in (0xC3, 0xC5, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCF):
        yield f"frame-{marker:x}-{name}", data[: place + 1] + bytes([marker]) + data[place + 2 :]
    yield f"bits-12-{name}", data[: place + 4] + b"\x0c" + data[place + 5 :]
    yield f"height-0-{name}", data[: place + 5] + b"\0\0" + data[place + 7 :]
    yield f"width-0-{name}", data[: place + 7] + b"\0\0" + data[place + 9 :]
    yield (
        f"two-{name}",
        data[: place + 2]
        + struct.pack(">H", 14)
        + data[place + 4 : place + 9]
        + b"\2"
        + data[place + 10 : place + 16]
        + data[place + 19 :],
    )
