"""Files of the other formats: PNG, TIFF, BMP, GIF and WebP of every kind, most of them written here byte by byte."""

import io
import itertools
import struct
import zlib

import numpy as np
from PIL import Image

from .jpegs import scene

WIDTH, HEIGHT = 37, 21


def random(*key):
    return np.random.default_rng([WIDTH, *key])


def save(image, format, **options):
    data = io.BytesIO()
    image.save(data, format, **options)
    return data.getvalue()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def packed(samples, bits):
    """Rows `[height, n]` of samples of `bits` bits as bytes; 16 bits are big-endian."""
    if bits == 16:
        return samples.astype(">u2").tobytes()
    out = []
    for row in samples:
        flat = (row[:, None] >> np.arange(bits - 1, -1, -1) & 1).astype(np.uint8).reshape(-1)
        out.append(np.packbits(flat).tobytes())
    return b"".join(out)


def png(samples, bits, color, interlaced=False, extra=b""):
    """`samples` are `[height, width, channels]`."""
    height, width, _ = samples.shape
    passes = [(0, 0, 1, 1)]
    if interlaced:
        passes = [
            (0, 0, 8, 8),
            (4, 0, 8, 8),
            (0, 4, 4, 8),
            (2, 0, 4, 4),
            (0, 2, 2, 4),
            (1, 0, 2, 2),
            (0, 1, 1, 2),
        ]
    rows = b""
    for x0, y0, dx, dy in passes:
        part = samples[y0::dy, x0::dx]
        if part.size:
            rows += b"".join(b"\0" + packed(row.reshape(1, -1), bits) for row in part)
    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, int(interlaced))
    data = zlib.compress(rows)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + extra
        + chunk(b"IDAT", data[: len(data) // 2])
        + chunk(b"IDAT", data[len(data) // 2 :])
        + chunk(b"IEND", b"")
    )


def pngs():
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
    depths = {0: [1, 2, 4, 8, 16], 2: [8, 16], 3: [1, 2, 4, 8], 4: [8, 16], 6: [8, 16]}
    for color, interlaced in itertools.product(channels, [False, True]):
        for bits in depths[color]:
            colors = random(color, bits).integers(
                0, 256, (2**bits, 3) if color == 3 else (0, 3), dtype=np.uint8
            )
            samples = random(color, bits, 1).integers(0, 2**bits, (HEIGHT, WIDTH, channels[color]))
            palette = chunk(b"PLTE", colors.tobytes()) if color == 3 else b""
            extras = {
                "plain": b"",
                "gamma": chunk(b"gAMA", struct.pack(">I", 45455)),
                "srgb": chunk(b"sRGB", b"\0"),
            }
            # Which of them stands before the palette.
            files = {name: extra + palette for name, extra in extras.items()}
            if color == 0:
                files["trns"] = chunk(b"tRNS", struct.pack(">H", 1))
            elif color == 2:
                files["trns"] = chunk(b"tRNS", struct.pack(">HHH", 1, 2, 3))
                # Of 16 bits, Pillow compares the upper bytes.
                samples[0, 0] = (1, 2, 3) if bits == 8 else (0x1FF, 0x200, 0x355)
            elif color == 3:
                files["trns"] = palette + chunk(b"tRNS", bytes(range(0, 2**bits))[:200])
            files["late"] = palette + chunk(
                b"bKGD", b"\0" * (1 if color == 3 else 2 if color in (0, 4) else 6)
            )
            for name, extra in files.items():
                kind = f"png-{color}-{bits}-{'adam7' if interlaced else 'rows'}-{name}.png"
                yield kind, png(samples, bits, color, interlaced, extra)
    for width, height in [(1, 1), (1, 9), (9, 1), (3, 5), (8, 8)]:
        samples = random(width, height).integers(0, 256, (height, width, 3))
        yield f"png-adam7-{width}x{height}.png", png(samples, 8, 2, True)


def tiff(tags, blocks, order="<", big=False, lengths=None):
    """A TIFF of `tags` {number: (type, values)} whose strips or tiles are `blocks`; it states so many of their lengths."""
    codes = {"B": 1, "H": 3, "I": 4, "Q": 16}
    sizes = {1: 1, 3: 2, 4: 4, 16: 8}
    tiles = 322 in tags
    out = bytearray()
    out += b"II" if order == "<" else b"MM"
    out += struct.pack(order + "HHHQ", 43, 8, 0, 0) if big else struct.pack(order + "HI", 42, 0)
    places = []
    for block in blocks:
        places.append(len(out))
        out += block + b"\0" * (len(block) % 2)
    tags = dict(tags)
    tags[324 if tiles else 273] = ("I", places)
    if lengths != 0:
        tags[325 if tiles else 279] = ("I", [len(block) for block in blocks][:lengths])
    inline = 8 if big else 4
    entries = []
    for number in sorted(tags):
        kind, values = tags[number]
        data = struct.pack(order + str(len(values)) + kind, *values)
        assert len(data) == len(values) * sizes[codes[kind]]
        if len(data) > inline:
            place = len(out)
            out += data + b"\0" * (len(data) % 2)
            data = struct.pack(order + ("Q" if big else "I"), place)
        entries.append(
            struct.pack(order + ("HHQ" if big else "HHI"), number, codes[kind], len(values))
            + data.ljust(inline, b"\0")
        )
    place = len(out)
    out += struct.pack(order + ("Q" if big else "H"), len(entries)) + b"".join(entries) + b"\0" * inline
    out[8 if big else 4 : 16 if big else 8] = struct.pack(order + ("Q" if big else "I"), place)
    return bytes(out)


def tiff_of(
    samples, bits, photometric, order="<", extra=None, planar=False, rows=None, tile=None, format=None, **more
):
    """`samples` are `[height, width, channels]`."""
    height, width, channels = samples.shape
    tags = {
        256: ("I", [width]),
        257: ("I", [height]),
        258: ("H", [bits] * channels),
        259: ("H", [more.get("compression", 1)]),
        262: ("H", [photometric]),
        277: ("H", [channels]),
        284: ("H", [2 if planar else 1]),
    }
    if extra is not None:
        tags[338] = ("H", extra)
    if format is not None:
        tags[339] = ("H", [format] * channels)
    tags |= more.get("tags", {})
    predictor = more.get("predictor", 1)
    if predictor != 1:
        tags[317] = ("H", [predictor])

    def coded(part):
        part = part.copy()
        if predictor == 2:
            part[:, 1:] = (part[:, 1:].astype(int) - part[:, :-1]) % 2**bits
        if bits in (16, 32):
            kind = {1: "u", 2: "i", 3: "f"}[format or 1] + str(bits // 8)
            data = part.astype(order + kind).tobytes()
        else:
            data = packed(part.reshape(part.shape[0], -1), bits)
        if more.get("fill") == 2:
            data = bytes(int(f"{byte:08b}"[::-1], 2) for byte in data)
        return zlib.compress(data) if more.get("compression", 1) in (8, 32946) else data

    parts = [samples[:, :, c : c + 1] for c in range(channels)] if planar else [samples]
    blocks = []
    for part in parts:
        if tile:
            tags |= {322: ("I", [tile]), 323: ("I", [tile])}
            for y, x in itertools.product(range(0, height, tile), range(0, width, tile)):
                piece = part[y : y + tile, x : x + tile]
                pad = ((0, tile - piece.shape[0]), (0, tile - piece.shape[1]), (0, 0))
                blocks.append(coded(np.pad(piece, pad, "edge")))
        else:
            rows = rows or height
            tags[278] = ("I", [rows])
            blocks += [coded(part[y : y + rows]) for y in range(0, height, rows)]
    return tiff(tags, blocks, order, more.get("big", False), more.get("lengths"))


def tiffs():
    def noise(bits, channels, *key):
        return random(bits, channels, *key).integers(0, 2**bits, (HEIGHT, WIDTH, channels))

    layouts = {
        "strips": {"rows": 5},
        "big-endian": {"order": ">"},
        "tiles": {"tile": 16},
        "deflate": {"compression": 8, "rows": 4},
        "deflate-tiles": {"compression": 8, "tile": 32, "order": ">"},
        "predictor": {"compression": 8, "predictor": 2},
        "bigtiff": {"big": True},
        "fill-order": {"fill": 2, "tags": {266: ("H", [2])}},
    }
    for layout, options in layouts.items():
        for bits in (1, 2, 4, 8):
            if options.get("predictor") and bits < 8 or options.get("fill") and bits == 16:
                continue
            colors = random(bits, 3).integers(0, 65536, 3 * 2**bits).tolist()
            tags = options.get("tags", {}) | {320: ("H", colors)}
            yield (
                f"tiff-palette-{bits}-{layout}.tif",
                tiff_of(noise(bits, 1), bits, 3, **options | {"tags": tags}),
            )
            for photometric in (0, 1):
                name = f"tiff-gray-{bits}-{'white' if photometric == 0 else 'black'}-{layout}.tif"
                yield name, tiff_of(noise(bits, 1), bits, photometric, **options)
        for bits in (8, 16):
            if options.get("fill"):
                continue
            name = f"{bits}-{layout}.tif"
            yield f"tiff-gray16-{name}", tiff_of(noise(bits, 1), bits, 1, **options)
            yield f"tiff-rgb-{name}", tiff_of(noise(bits, 3), bits, 2, **options)
            yield f"tiff-cmyk-{name}", tiff_of(noise(bits, 4), bits, 5, **options)
            for extra in (0, 1, 2):
                yield f"tiff-la-{extra}-{name}", tiff_of(noise(bits, 2), bits, 1, extra=[extra], **options)
                yield f"tiff-rgba-{extra}-{name}", tiff_of(noise(bits, 4), bits, 2, extra=[extra], **options)
    for bits, channels in itertools.product((8, 16), (3, 4)):
        for tile in (None, 16):
            options = {"planar": True, "tile": tile, "extra": [2] if channels == 4 else None}
            yield (
                f"tiff-planar-{bits}-{channels}-{tile}.tif",
                tiff_of(noise(bits, channels), bits, 2, **options),
            )
    yield "tiff-planar-cmyk.tif", tiff_of(noise(8, 4), 8, 5, planar=True)
    yield "tiff-planar-la.tif", tiff_of(noise(8, 2), 8, 1, planar=True, extra=[2])
    yield "tiff-white-16.tif", tiff_of(noise(16, 1), 16, 0)
    yield "tiff-la-white.tif", tiff_of(noise(8, 2), 8, 0, extra=[2])
    yield "tiff-la-bare.tif", tiff_of(noise(8, 2), 8, 1)
    yield "tiff-rgba-bare.tif", tiff_of(noise(8, 4), 8, 2)
    yield "tiff-rgbaa.tif", tiff_of(noise(8, 5), 8, 2, extra=[2, 0])
    yield "tiff-cmyka.tif", tiff_of(noise(8, 5), 8, 5, extra=[2])
    yield (
        "tiff-palette-alpha.tif",
        tiff_of(noise(8, 2), 8, 3, extra=[2], tags={320: ("H", random(9).integers(0, 65536, 768).tolist())}),
    )
    yield "tiff-lab.tif", tiff_of(noise(8, 3), 8, 8)
    yield "tiff-ycc.tif", tiff_of(noise(8, 3), 8, 6, tags={530: ("H", [1, 1])})
    for bits, format, channels in [
        (32, 3, 1),
        (32, 3, 3),
        (32, 1, 1),
        (16, 2, 1),
        (32, 2, 1),
        (8, 2, 1),
        (8, 2, 3),
    ]:
        samples = noise(min(bits, 16), channels)
        yield (
            f"tiff-format-{format}-{bits}-{channels}.tif",
            tiff_of(samples, bits, 1 if channels == 1 else 2, format=format),
        )
    for orientation in range(1, 9):
        yield (
            f"tiff-orientation-{orientation}.tif",
            tiff_of(noise(8, 3), 8, 2, tags={274: ("H", [orientation])}),
        )
    rgb = Image.fromarray(scene(WIDTH, HEIGHT))
    modes = ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "I;16", "F", "I"]
    for mode in modes:
        image = rgb.convert("L").convert(mode) if mode in ("I;16", "F", "I") else rgb.convert(mode)
        for compression in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "group3", "group4"):
            if (
                compression in ("group3", "group4")
                and mode != "1"
                or compression == "jpeg"
                and mode not in ("RGB", "L")
            ):
                continue
            name = f"tiff-pillow-{mode.replace(';', '')}-{compression}.tif"
            try:
                yield name, save(image, "TIFF", compression=compression)
            except (OSError, KeyError):
                continue
    yield "tiff-pillow-pages.tif", save(rgb, "TIFF", save_all=True, append_images=[rgb.convert("L")])


def twins():
    """Files that Pillow reads wrongly, and one with the same pixels that it reads rightly."""
    for channels in (3, 4):
        samples = random(16, channels).integers(0, 2**16, (HEIGHT, WIDTH, channels))
        twin = tiff_of(samples, 16, 2, extra=[2] if channels == 4 else None)
        # It takes the 16 bits of planes for two pixels.
        for tile in (None, 16):
            yield f"tiff-planar-16-{channels}-{tile}.tif", twin
    # It does not invert 16 bits.
    samples = random(16, 1).integers(0, 2**16, (HEIGHT, WIDTH, 1))
    yield "tiff-white-16.tif", tiff_of(2**16 - 1 - samples, 16, 1)


def bmp(
    rows, width, height, bits, header=40, compression=0, palette=b"", masks=b"", colors=0, top_down=False
):
    """`rows` are the bytes of the pixels."""
    if header == 12:
        info = struct.pack("<IHHHH", 12, width, height, 1, bits)
    else:
        signed = -height if top_down else height
        info = struct.pack(
            "<IiiHHIIiiII", header, width, signed, 1, bits, compression, len(rows), 2835, 2835, colors, 0
        )
        inside = masks.ljust(header - 40, b"\0")[: header - 40]
        if header >= 108:
            inside = masks[:16].ljust(16, b"\0") + b"BGRs" + bytes(header - 40 - 20)
        info += inside
        if header == 40:
            info += masks
    offset = 14 + len(info) + len(palette)
    return b"BM" + struct.pack("<IHHI", offset + len(rows), 0, 0, offset) + info + palette + rows


def bmp_rows(samples, bits, top_down=False):
    """Rows from the bottom, each padded to 4 bytes."""
    rows = samples if top_down else samples[::-1]
    out = b""
    for row in rows:
        row = row.reshape(-1)
        if bits <= 8:
            data = packed(row.reshape(1, -1), bits)
        else:
            data = row.astype({16: "<u2", 24: "u1", 32: "<u4"}[bits]).tobytes()
        out += data + b"\0" * (-len(data) % 4)
    return out


def rle(samples, bits, kind):
    """Run lengths: `runs`, `literal` pieces, or `jumps`, which leave pixels out."""
    out = b""
    for y, row in enumerate(samples[::-1]):
        x = 0
        while x < len(row):
            if kind == "jumps" and y % 3 == 1 and x == 4:
                out += b"\0\2\5\0"
                x += 5
                continue
            count = min(len(row) - x, 3 + (x * 7 + y) % 9)
            if kind == "literal" and count >= 3 and x % 2 == 0:
                piece = row[x : x + count]
                if bits == 8:
                    data = bytes(piece.tolist())
                else:
                    data = packed(piece.reshape(1, -1), 4)
                out += bytes([0, count]) + data + b"\0" * (len(data) % 2)
            elif bits == 8:
                out += bytes([count, int(row[x])])
                samples[len(samples) - 1 - y, x : x + count] = row[x]
            else:
                pair = [int(row[x]), int(row[min(x + 1, len(row) - 1)])]
                out += bytes([count, pair[0] << 4 | pair[1]])
            x += count
        out += b"\0\0"
    return out + b"\0\1"


def bmp_of_runs(samples, bits, kind, palette, colors=0):
    """With run lengths; of how many colours the header speaks."""
    rows, compression = rle(samples, bits, kind), 2 if bits == 4 else 1
    return bmp(rows, WIDTH, HEIGHT, bits, compression=compression, palette=palette.tobytes(), colors=colors)


def bmps():
    for bits, header in itertools.product((1, 4, 8), (12, 40, 108, 124)):
        samples = random(bits).integers(0, 2**bits, (HEIGHT, WIDTH))
        colors = random(bits, 1).integers(0, 256, (2**bits, 3 if header == 12 else 4), dtype=np.uint8)
        yield (
            f"bmp-{bits}-{header}.bmp",
            bmp(bmp_rows(samples, bits), WIDTH, HEIGHT, bits, header, palette=colors.tobytes()),
        )
        if header > 12:
            few = max(2, 2**bits // 3)
            used = bmp_rows(samples % few, bits)
            yield (
                f"bmp-{bits}-{header}-few.bmp",
                bmp(used, WIDTH, HEIGHT, bits, header, palette=colors[:few].tobytes(), colors=few),
            )
            yield (
                f"bmp-{bits}-{header}-down.bmp",
                bmp(
                    bmp_rows(samples, bits, True),
                    WIDTH,
                    HEIGHT,
                    bits,
                    header,
                    palette=colors.tobytes(),
                    top_down=True,
                ),
            )
    gray = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 4, axis=1)
    samples = random(77).integers(0, 256, (HEIGHT, WIDTH))
    yield "bmp-8-gray.bmp", bmp(bmp_rows(samples, 8), WIDTH, HEIGHT, 8, palette=gray.tobytes())
    for header in (12, 40, 108, 124):
        samples = random(24, header).integers(0, 256, (HEIGHT, WIDTH * 3))
        yield f"bmp-24-{header}.bmp", bmp(bmp_rows(samples, 24), WIDTH, HEIGHT, 24, header)
        samples = random(16, header).integers(0, 65536, (HEIGHT, WIDTH))
        yield f"bmp-16-{header}.bmp", bmp(bmp_rows(samples, 16), WIDTH, HEIGHT, 16, header)
        samples = random(32, header).integers(0, 2**32, (HEIGHT, WIDTH))
        yield f"bmp-32-{header}.bmp", bmp(bmp_rows(samples, 32), WIDTH, HEIGHT, 32, header)
    masks = {
        16: {
            "555": (0x7C00, 0x3E0, 0x1F, 0),
            "565": (0xF800, 0x7E0, 0x1F, 0),
            "1555": (0x7C00, 0x3E0, 0x1F, 0x8000),
            "444": (0xF00, 0xF0, 0xF, 0),
            "4444": (0xF00, 0xF0, 0xF, 0xF000),
            "bgr565": (0x1F, 0x7E0, 0xF800, 0),
            "332": (0xE0, 0x1C, 0x3, 0),
        },
        32: {
            "bgrx": (0xFF0000, 0xFF00, 0xFF, 0),
            "bgra": (0xFF0000, 0xFF00, 0xFF, 0xFF000000),
            "rgbx": (0xFF, 0xFF00, 0xFF0000, 0),
            "rgba": (0xFF, 0xFF00, 0xFF0000, 0xFF000000),
            "xrgb": (0xFF000000, 0xFF0000, 0xFF00, 0),
            "xbgr": (0xFF00, 0xFF0000, 0xFF000000, 0),
            "argb": (0xFF00, 0xFF0000, 0xFF000000, 0xFF),
            "101010": (0x3FF00000, 0xFFC00, 0x3FF, 0),
            "888-555": (0x7C00, 0x3E0, 0x1F, 0),
        },
    }
    for bits, kinds in masks.items():
        for (name, values), header in itertools.product(kinds.items(), (40, 52, 56, 108, 124)):
            samples = random(bits, header).integers(0, 2**bits, (HEIGHT, WIDTH))
            three = struct.pack("<4I", *values)[: 12 if header in (40, 52) else 16]
            yield (
                f"bmp-{bits}-{name}-{header}.bmp",
                bmp(bmp_rows(samples, bits), WIDTH, HEIGHT, bits, header, 3, masks=three),
            )
    for bits, kind in itertools.product((4, 8), ("runs", "literal", "jumps")):
        samples = random(bits, 5).integers(0, 2**bits, (HEIGHT, WIDTH))
        colors = random(bits, 6).integers(0, 256, (2**bits, 4), dtype=np.uint8)
        yield (
            f"bmp-rle{bits}-{kind}.bmp",
            bmp_of_runs(samples, bits, kind, colors),
        )
    for bits in (1, 4, 8, 24):
        samples = random(bits, 64).integers(0, 2 ** min(bits, 8), (HEIGHT, WIDTH * (3 if bits == 24 else 1)))
        colors = random(bits, 1).integers(0, 256, (2**bits if bits <= 8 else 0, 4), dtype=np.uint8).tobytes()
        yield f"bmp-{bits}-64.bmp", bmp(bmp_rows(samples, bits), WIDTH, HEIGHT, bits, 64, palette=colors)
        # The pixels are said to be where the palette is.
        early = bytearray(bmp(bmp_rows(samples, bits), WIDTH, HEIGHT, bits, 40, palette=colors))
        early[10:14] = struct.pack("<I", 54)
        yield f"bmp-{bits}-early.bmp", bytes(early)
    rgb = Image.fromarray(scene(WIDTH, HEIGHT))
    for mode in ("RGB", "L", "1", "P", "RGBA"):
        yield f"bmp-pillow-{mode}.bmp", save(rgb.convert(mode), "BMP")


def lzw(indices, bits):
    """Codes that never grow: a clear code before the table would."""
    size = max(2, bits)
    clear, end, width = 1 << size, (1 << size) + 1, size + 1
    out, value, count = bytearray(), 0, 0
    codes = []
    for at, index in enumerate(indices):
        if at % ((1 << size) - 2) == 0:
            codes.append(clear)
        codes.append(int(index))
    codes.append(end)
    for code in codes:
        value |= code << count
        count += width
        while count >= 8:
            out.append(value & 0xFF)
            value >>= 8
            count -= 8
    if count:
        out.append(value & 0xFF)
    blocks = b"".join(
        bytes([len(part)]) + part for part in (bytes(out[i : i + 255]) for i in range(0, len(out), 255))
    )
    return bytes([size]) + blocks + b"\0"


def gif(frames, width, height, colors=None, background=0, version=b"GIF89a"):
    """`frames` are (indices, left, top, own colours, transparent, interlaced, disposal)."""

    def bits(table):
        return max(1, (len(table) - 1).bit_length())

    def full(table):
        return table.tobytes().ljust(3 * 2 ** bits(table), b"\0")

    flags = 0x80 | 0x70 | bits(colors) - 1 if colors is not None else 0
    out = version + struct.pack("<HHBBB", width, height, flags, background, 0)
    out += full(colors) if colors is not None else b""
    for indices, left, top, own, transparent, interlaced, disposal in frames:
        table = own if own is not None else colors
        if transparent is not None or disposal:
            flags = disposal << 2 | (transparent is not None)
            out += b"\x21\xf9\x04" + struct.pack("<BHBB", flags, 10, transparent or 0, 0)
        rows, columns = indices.shape
        if interlaced:
            order = [y for start, step in ((0, 8), (4, 8), (2, 4), (1, 2)) for y in range(start, rows, step)]
            indices = indices[order]
        flags = (0x80 | bits(own) - 1 if own is not None else 0) | (0x40 if interlaced else 0)
        out += b"\x2c" + struct.pack("<HHHHB", left, top, columns, rows, flags)
        out += full(own) if own is not None else b""
        out += lzw(indices.reshape(-1), 8 if table is None else bits(table))
    return out + b"\x3b"


def gifs():
    for count in (2, 3, 16, 100, 256):
        colors = random(count).integers(0, 256, (count, 3), dtype=np.uint8)
        own = random(count, 1).integers(0, 256, (count, 3), dtype=np.uint8)
        whole = random(count, 2).integers(0, count, (HEIGHT, WIDTH))
        part = random(count, 3).integers(0, count, (9, 14))
        for interlaced in (False, True):
            name = f"gif-{count}-{'interlaced' if interlaced else 'rows'}"
            for transparent in dict.fromkeys((None, 0, 1, count - 1)):
                yield (
                    f"{name}-whole-{transparent}.gif",
                    gif([(whole, 0, 0, None, transparent, interlaced, 0)], WIDTH, HEIGHT, colors),
                )
                for left, top in [(5, 6), (0, 3), (23, 12), (23, 0)]:
                    for background in (0, 1):
                        yield (
                            f"{name}-part-{left}.{top}-{transparent}-{background}.gif",
                            gif(
                                [(part, left, top, None, transparent, interlaced, 0)],
                                WIDTH,
                                HEIGHT,
                                colors,
                                background,
                            ),
                        )
            yield f"{name}-own.gif", gif([(whole, 0, 0, own, None, interlaced, 0)], WIDTH, HEIGHT, colors)
            yield f"{name}-own-only.gif", gif([(whole, 0, 0, own, None, interlaced, 0)], WIDTH, HEIGHT)
            yield f"{name}-own-only-part.gif", gif([(part, 4, 4, own, None, interlaced, 0)], WIDTH, HEIGHT)
            yield f"{name}-own-only-part-clear.gif", gif([(part, 4, 4, own, 1, interlaced, 0)], WIDTH, HEIGHT)
            yield (
                f"{name}-own-part.gif",
                gif([(part, 4, 4, own, None, interlaced, 0)], WIDTH, HEIGHT, colors, 1),
            )
        for left, top in [(WIDTH - 5, 2), (3, HEIGHT - 4), (WIDTH - 2, HEIGHT - 2)]:
            yield (
                f"gif-{count}-outside-{left}.{top}.gif",
                gif([(part, left, top, None, None, False, 0)], WIDTH, HEIGHT, colors),
            )
        for disposal in range(4):
            frames = [(whole, 0, 0, None, None, False, disposal), (part, 3, 3, own, 0, False, disposal)]
            yield f"gif-{count}-animated-{disposal}.gif", gif(frames, WIDTH, HEIGHT, colors)
            frames = [(part, 3, 3, own, 0, False, disposal), (whole, 0, 0, None, None, False, disposal)]
            yield f"gif-{count}-animated-part-{disposal}.gif", gif(frames, WIDTH, HEIGHT, colors)
    whole = random(1, 2).integers(0, 256, (HEIGHT, WIDTH))
    gray = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    yield "gif-gray.gif", gif([(whole, 0, 0, None, None, False, 0)], WIDTH, HEIGHT, gray, version=b"GIF87a")
    yield "gif-no-colors.gif", gif([(whole, 0, 0, None, None, False, 0)], WIDTH, HEIGHT)
    rgb = Image.fromarray(scene(WIDTH, HEIGHT))
    yield "gif-pillow.gif", save(rgb.convert("P"), "GIF")
    yield "gif-pillow-l.gif", save(rgb.convert("L"), "GIF")
    yield "gif-pillow-rgba.gif", save(rgb.convert("RGBA"), "GIF")


def webps():
    for width, height in [(WIDTH, HEIGHT), (1, 1), (16, 16), (100, 3), (65, 130)]:
        rgb = Image.fromarray(scene(width, height))
        rgba = rgb.copy()
        rgba.putalpha(Image.fromarray(scene(width, height, 1)[:, :, 0]))
        for name, image in (("rgb", rgb), ("rgba", rgba), ("l", rgb.convert("L"))):
            size = f"{width}x{height}"
            yield f"webp-lossless-{name}-{size}.webp", save(image, "WEBP", lossless=True)
            yield f"webp-exact-{name}-{size}.webp", save(image, "WEBP", lossless=True, exact=True)
            for quality in (10, 80, 100):
                yield f"webp-{quality}-{name}-{size}.webp", save(image, "WEBP", quality=quality)
        frames = {"append_images": [rgb.rotate(180)], "save_all": True}
        yield f"webp-animated-{size}.webp", save(rgb, "WEBP", lossless=True, **frames)
        yield f"webp-animated-rgba-{size}.webp", save(rgba, "WEBP", lossless=True, **frames)
        yield f"webp-animated-lossy-{size}.webp", save(rgb, "WEBP", quality=80, **frames)


def webp_animations():
    """Animations whose first frame may be smaller than the canvas, with backgrounds and blending."""

    def part(kind, data):
        return kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)

    def still(image, **options):
        data, out = save(image, "WEBP", **options)[12:], b""
        while data:
            size = 8 + struct.unpack("<I", data[4:8])[0]
            size += size % 2
            if data[:4] in (b"VP8 ", b"VP8L", b"ALPH"):
                out += data[:size]
            data = data[size:]
        return out

    def small(value):
        return struct.pack("<I", value)[:3]

    rgb = Image.fromarray(scene(14, 9))
    rgba = rgb.copy()
    rgba.putalpha(Image.fromarray(scene(14, 9, 1)[:, :, 0]))
    bodies = {
        "lossless": still(rgb, lossless=True),
        "lossless-alpha": still(rgba, lossless=True, exact=True),
        "lossy": still(rgb, quality=80),
        "lossy-alpha": still(rgba, quality=80),
    }
    for (name, body), background, (x, y), blend, frames in itertools.product(
        bodies.items(), (0, 0xFF102030, 0x80FF8000), ((0, 0), (4, 6), (22, 12)), (0, 2), (1, 2)
    ):
        frame = small(x // 2) + small(y // 2) + small(13) + small(8) + small(100) + bytes([blend]) + body
        data = b"WEBP" + part(b"VP8X", b"\x12\0\0\0" + small(36) + small(20))
        data += part(b"ANIM", struct.pack("<IH", background, 0)) + part(b"ANMF", frame) * frames
        kind = f"webp-frames-{name}-{background:x}-{x}.{y}-{blend}-{frames}.webp"
        yield kind, b"RIFF" + struct.pack("<I", len(data)) + data


def oriented():
    """EXIF and XMP, wherever a format has them."""
    rgb = Image.fromarray(scene(WIDTH, HEIGHT))
    for value in range(10):
        exif = Image.Exif()
        exif[0x0112] = value
        named = exif.tobytes()
        bare = named.removeprefix(b"Exif\0\0")
        for form in ("attribute", "element"):
            tag = f'tiff:Orientation="{value}"' if form == "attribute" else ""
            body = f"<tiff:Orientation>{value}</tiff:Orientation>" if form == "element" else ""
            xmp = f"<x:xmpmeta><rdf:Description {tag}>{body}</rdf:Description></x:xmpmeta>".encode()
            text = b"XML:com.adobe.xmp\0\0\0\0\0" + xmp
            samples = scene(WIDTH, HEIGHT).astype(int)
            name = f"{form}-{value}"
            yield f"webp-xmp-{name}.webp", save(rgb, "WEBP", lossless=True, xmp=xmp)
            yield f"png-xmp-{name}.png", png(samples, 8, 2, extra=chunk(b"iTXt", text))
            yield f"tiff-xmp-{name}.tif", tiff_of(samples, 8, 2, tags={700: ("B", list(xmp))})
            yield f"jpeg-xmp-{name}.jpg", save(rgb, "JPEG", xmp=xmp)
            exif_too = {"exif": bare, "xmp": xmp}
            yield f"webp-both-{name}.webp", save(rgb, "WEBP", lossless=True, **exif_too)
        for kind, data in (("named", named), ("bare", bare)):
            yield f"webp-{kind}-{value}.webp", save(rgb, "WEBP", lossless=True, exif=data)
            yield f"png-{kind}-{value}.png", save(rgb, "PNG", exif=data)
            profile = f"\nexif\n{len(data):8}\n{data.hex()}\n".encode()
            raw = chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(profile))
            yield f"png-raw-{kind}-{value}.png", png(samples, 8, 2, extra=raw)


def exif_of(value, kind=3, count=1, order="<", magic=42, tag=274):
    """A segment with one tag, whose value has the type `kind`."""
    code = {3: "HH", 8: "hH", 4: "I", 9: "i", 13: "I", 11: "f"}.get(kind, "BBBB")
    values = (value, *[0] * (len(code) - 1))
    head = {"<": b"II", ">": b"MM"}[order] + struct.pack(order + "HI", magic, 8)
    return head + struct.pack(order + "HHHI" + code + "I", 1, tag, kind, count, *values, 0)


def raw_profile(exif, kind):
    text = f"\nexif\n{len(exif):8}\n{exif.hex()}\n".encode()
    between = {b"tEXt": b"\0", b"zTXt": b"\0\0", b"iTXt": b"\0\0\0\0\0"}[kind]
    return chunk(
        kind, b"Raw profile type exif" + between + (zlib.compress(text) if kind == b"zTXt" else text)
    )


def segment(data, marker=0xE1):
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


def oriented_oddly():
    """EXIF of other types than the standard's, in pieces, twice, late or not announced; XMP beside each."""
    rgb = Image.fromarray(scene(WIDTH, HEIGHT))
    samples = scene(WIDTH, HEIGHT).astype(int)
    name, xmp_name = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
    six, three, none = exif_of(6), exif_of(3, order=">"), exif_of(1, tag=256)

    def xmp(value):
        return f'<rdf:Description tiff:Orientation="{value}"/>'.encode()

    def text(value, head=b"\0\0\0\0"):
        return chunk(b"iTXt", b"XML:com.adobe.xmp\0" + head + xmp(value))

    jpeg = save(rgb, "JPEG")
    segments = {f"type-{kind}": exif_of(6, kind) for kind in (1, 2, 4, 6, 7, 8, 9, 11, 13, 99)}
    segments |= {f"value-{value}": exif_of(value) for value in (0, 9, 262)}
    segments |= {f"count-{count}": exif_of(6, count=count) for count in (0, 2)}
    segments |= {
        "big-endian": exif_of(6, 4, order=">"),
        "magic": exif_of(6, magic=0x5555),
        "none": none,
        "no-tiff": b"junk",
    }
    for kind, exif in segments.items():
        for value in (None, 8):
            end = f"{kind}-{value}"
            packet = segment(xmp_name + xmp(8)) if value else b""
            yield f"jpeg-odd-{end}.jpg", jpeg[:2] + segment(name + exif) + packet + jpeg[2:]
            extra = chunk(b"eXIf", exif) + (text(8) if value else b"")
            yield f"png-odd-{end}.png", png(samples, 8, 2, extra=extra)
            packet = {"xmp": xmp(8)} if value else {}
            yield f"webp-odd-{end}.webp", save(rgb, "WEBP", lossless=True, exif=exif, **packet)

    parts = {
        "two": [name + six, name + three],
        "split": [name + six[:12], name + six[12:]],
        "empty-first": [name, name + three],
        "xmp-two": [xmp_name + xmp(6), xmp_name + xmp(3)],
        "xmp-none-first": [xmp_name + b"<x/>", xmp_name + xmp(3)],
        "xmp-empty-last": [xmp_name + xmp(3), xmp_name],
    }
    for kind, segments in parts.items():
        yield f"jpeg-odd-{kind}.jpg", jpeg[:2] + b"".join(map(segment, segments)) + jpeg[2:]
    scans = save(rgb, "JPEG", progressive=True)
    second = scans.index(b"\xff\xda", scans.index(b"\xff\xda") + 2)
    yield "jpeg-odd-second-scan.jpg", scans[:second] + segment(name + six) + scans[second:]

    exif_six, exif_three = chunk(b"eXIf", six), chunk(b"eXIf", three)
    plain = xmp(6)
    chunks = {
        "late": (b"", exif_six),
        "around": (exif_three, exif_six),
        "two": (exif_six + exif_three, b""),
        "empty": (chunk(b"eXIf", b"") + raw_profile(six, b"tEXt"), b""),
        "late-and-raw": (raw_profile(three, b"zTXt"), exif_six),
        "raw-late": (b"", raw_profile(six, b"zTXt")),
        "raw-text": (raw_profile(six, b"tEXt"), b""),
        "raw-international": (raw_profile(six, b"iTXt"), b""),
        "raw-two": (raw_profile(six, b"zTXt") + raw_profile(three, b"tEXt"), b""),
        "xmp-late": (b"", text(6)),
        "xmp-two": (text(8) + text(3), b""),
        "xmp-text": (chunk(b"tEXt", b"XML:com.adobe.xmp\0" + plain), b""),
        "xmp-deflated": (chunk(b"zTXt", b"XML:com.adobe.xmp\0\0" + zlib.compress(plain)), b""),
        "xmp-no-text": (text(6, b"\0\0\0\0\xff"), b""),
        "xmp-method": (text(6, b"\1\1\0\0"), b""),
    }
    for kind, (before, behind) in chunks.items():
        image = png(samples, 8, 2, extra=before)
        yield f"png-odd-{kind}.png", image[:-12] + behind + image[-12:]

    def part(kind, data):
        return kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)

    def small(value):
        return struct.pack("<I", value)[:3]

    size = small(WIDTH - 1) + small(HEIGHT - 1)
    still = save(rgb, "WEBP", lossless=True)[12:]
    frame = part(b"ANMF", bytes(6) + size + small(100) + b"\0" + still)
    beside = {"both": part(b"EXIF", six) + part(b"XMP ", xmp(8)), "neither": b""}
    for flags, (kind, parts) in itertools.product((0, 4, 8, 12, 0x10, 0x20, 0x1C), beside.items()):
        for animated in (0, 2):
            body = part(b"ANIM", bytes(6)) + frame if animated else still
            data = b"WEBP" + part(b"VP8X", bytes([flags | animated, 0, 0, 0]) + size) + body + parts
            yield f"webp-odd-{flags}-{animated}-{kind}.webp", b"RIFF" + struct.pack("<I", len(data)) + data

    for (kind, value), packet in itertools.product(
        [("B", 6), ("H", 0), ("H", 9), ("H", 262), ("I", 0), ("I", 6), ("I", 9)], (None, 8)
    ):
        tags = {274: (kind, [value])} | ({700: ("B", list(xmp(8)))} if packet else {})
        yield f"tiff-odd-{kind}-{value}-{packet}.tif", tiff_of(samples, 8, 2, tags=tags)
    yield "tiff-odd-two.tif", tiff_of(samples, 8, 2, tags={274: ("H", [6, 3])})


def odd():
    """What few writers do: palettes that are too short, in half colours or gray, pixels nowhere, tags for nothing."""
    for bits in (1, 2, 4, 8):
        samples = random(bits, 90).integers(0, 2, (HEIGHT, WIDTH, 1))
        yield f"png-odd-palette-{bits}.png", png(samples, bits, 3, extra=chunk(b"PLTE", bytes(range(7))))
    gray = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 4, axis=1)
    two = bytes([0, 0, 0, 0, 255, 255, 255, 0])
    for bits in (1, 4, 8, 16, 24, 32):
        depth = min(bits, 8)
        samples = random(bits, 91).integers(0, 2**depth, (HEIGHT, WIDTH * (3 if bits == 24 else 1)))
        colors = random(bits, 92).integers(0, 256, (2**bits if bits <= 8 else 0, 4), dtype=np.uint8)
        rows = bmp_rows(samples, bits)
        for header in (12, 40, 124):
            # No more bytes a colour than its header has.
            palette = colors[:, : 3 if header == 12 else 4].tobytes()
            nowhere = bytearray(bmp(rows, WIDTH, HEIGHT, bits, header, palette=palette))
            nowhere[10:14] = bytes(4)
            yield f"bmp-odd-{bits}-{header}-nowhere.bmp", bytes(nowhere)
        if bits <= 8:
            for kind, palette in {"few": colors[:1], "gray": gray[: 2**bits], "gray-few": gray[:3]}.items():
                file = bmp(rows, WIDTH, HEIGHT, bits, palette=palette.tobytes(), colors=len(palette))
                yield f"bmp-odd-{bits}-{kind}.bmp", file
            yield f"bmp-odd-{bits}-two.bmp", bmp(rows, WIDTH, HEIGHT, bits, palette=two, colors=2)
    for bits, kind in itertools.product((4, 8), ("runs", "literal", "jumps")):
        samples = random(bits, 93).integers(0, 2**bits, (HEIGHT, WIDTH))
        colors = random(bits, 94).integers(0, 256, (3, 4), dtype=np.uint8)
        for name, palette in {"few": colors, "gray-few": gray[:3]}.items():
            file = bmp_of_runs(samples, bits, kind, palette, colors=3)
            yield f"bmp-odd-rle{bits}-{kind}-{name}.bmp", file
            yield f"bmp-odd-rle{bits}-{kind}-{name}-nowhere.bmp", file[:10] + bytes(4) + file[14:]

    colors = random(95).integers(0, 256, (16, 3), dtype=np.uint8)
    whole, part = random(96).integers(0, 16, (HEIGHT, WIDTH)), random(97).integers(0, 16, (9, 14))
    start = 13 + 3 * 16
    blocks = {
        "stray": b"\0\0\x55",
        "unknown": b"!\x77\x03abc\0",
        "empty-comment": b"!\xfe\0",
        "twice": b"!\xf9\x04\x01\0\0\x03\0!\xf9\x04\x01\0\0\x05\0",
        "then-none": b"!\xf9\x04\x01\0\0\x03\0!\xf9\x04\0\0\0\x05\0",
    }
    for kind, block in blocks.items():
        file = gif([(part, 3, 4, None, None, False, 0)], WIDTH, HEIGHT, colors)
        yield f"gif-odd-{kind}.gif", file[:start] + block + file[start:]
    for width, height in ((0, 0), (WIDTH, 0), (5, 5)):
        file = gif([(whole, 0, 0, None, None, False, 0)], width, height, colors)
        yield f"gif-odd-canvas-{width}x{height}.gif", file
    for count in (2, 4, 16):
        indices = random(98).integers(0, max(4, count), (HEIGHT, WIDTH))
        few = gray[:count, :3]
        for name, frame, table in (
            ("file", (indices, 0, 0, None, None, False, 0), few),
            ("frame", (indices, 0, 0, few, None, False, 0), None),
            ("frame-of-gray", (indices, 0, 0, few, None, False, 0), gray[:16, :3]),
            ("frame-of-colors", (indices, 0, 0, few, None, False, 0), colors),
        ):
            yield f"gif-odd-gray-{count}-{name}.gif", gif([frame], WIDTH, HEIGHT, table)

    samples = random(99).integers(0, 256, (HEIGHT, WIDTH, 3))
    for lengths in (0, 1):
        yield f"tiff-odd-lengths-{lengths}.tif", tiff_of(samples, 8, 2, rows=5, lengths=lengths)
    for planar, extra in itertools.product((False, True), ([0], [1], [2], [1, 0])):
        kind = f"{'planes' if planar else 'pixels'}-{'.'.join(map(str, extra))}"
        yield f"tiff-odd-extra-{kind}.tif", tiff_of(samples, 8, 2, planar=planar, extra=extra)

    jpeg = save(Image.fromarray(scene(WIDTH, HEIGHT)), "JPEG", subsampling=0)
    adobe = segment(b"Adobe\0\x64\0\0\0\0\0", 0xEE)
    for length in (13, 14):
        jfif = segment(b"JFIF\0\1\1\0\0\1\0\1\0\0"[:length], 0xE0)
        yield f"jpeg-odd-jfif-{length}.jpg", jpeg[:2] + jfif + adobe + jpeg[20:]


def files():
    yield from oriented()
    yield from oriented_oddly()
    yield from odd()
    yield from pngs()
    yield from tiffs()
    yield from bmps()
    yield from gifs()
    yield from webps()
    yield from webp_animations()
