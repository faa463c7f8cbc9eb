"""Records `pixels.json` and `images/`: what Pillow and transformers make of images.

Run with Pillow 13.0.0, numpy 2.4.6, tifffile 2026.3.3 and transformers 5.24.0: `python record_pixels.py` in this
directory. Sources of the resize and preprocessing cases are not stored: both sides compute them (`picture`).
"""

import io
import json
import pathlib
import shutil
import struct
import zlib

import numpy as np
import tifffile
from PIL import Image, ImageOps
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

HERE = pathlib.Path(__file__).parent
FILTERS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
}


def picture(width, height, kind):
    """The source of a case, `[height, width, 3]`: noise, smooth waves, or hard edges."""
    y, x, c = np.meshgrid(np.arange(height), np.arange(width), np.arange(3), indexing="ij")
    if kind == "noise":
        z = ((y * width + x) * 3 + c).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(7)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        return ((z ^ (z >> np.uint64(27))) >> np.uint64(56)).astype(np.uint8)
    if kind == "waves":
        return ((x * (3 + c) + y * (5 - c) + x * y // 16) % 256).astype(np.uint8)
    return (((x // 3 + y // 5 + c) % 2) * 255).astype(np.uint8)


def fnv(data):
    """FNV-1a, 64 bits."""
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return f"{value:016x}"


def record_resizes():
    sizes = [
        # width, height, new width, new height
        (1, 1, 5, 3), (1, 1, 1, 1), (2, 2, 7, 7), (7, 5, 1, 1), (3, 100, 17, 40), (100, 3, 40, 17),
        (64, 48, 64, 48), (64, 48, 64, 31), (64, 48, 33, 48), (64, 48, 63, 49), (97, 61, 32, 32),
        (61, 97, 128, 200), (255, 255, 64, 64), (300, 200, 7, 150), (13, 1000, 9, 20), (1000, 13, 20, 9),
        (640, 427, 96, 64), (33, 17, 132, 68), (500, 375, 224, 168), (19, 23, 18, 22), (5, 2000, 3, 2),
    ]  # fmt: skip
    cases = []
    for index, (width, height, new_width, new_height) in enumerate(sizes):
        for name, resample in FILTERS.items():
            kind = ["noise", "waves", "edges"][(index + len(cases)) % 3]
            source = Image.fromarray(picture(width, height, kind))
            out = np.asarray(source.resize((new_width, new_height), resample)).tobytes()
            cases.append(
                {
                    "source": [width, height, kind],
                    "target": [new_width, new_height],
                    "filter": name,
                    "fnv": fnv(out),
                    "first": list(out[:12]),
                    "last": list(out[-12:]),
                }
            )
    return cases


def expand2square(image, color):
    """Apple's `llava/mm_utils.py`."""
    width, height = image.size
    if width == height:
        return image
    if width > height:
        result = Image.new(image.mode, (width, width), color)
        result.paste(image, (0, (width - height) // 2))
        return result
    result = Image.new(image.mode, (height, height), color)
    result.paste(image, ((height - width) // 2, 0))
    return result


def record_preprocessing():
    clip_mean, clip_std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    plain = {"mean": [0.0] * 3, "std": [1.0] * 3}
    clip = {"mean": clip_mean, "std": clip_std}
    cases = []
    for width, height, kind, recipe in [
        # width, height, kind of source, (aspect, height, width, shortest edge, filter, numbers)
        (64, 64, "noise", ("crop", 64, 64, 64, "bicubic", plain)),
        (120, 80, "noise", ("crop", 64, 64, 64, "bicubic", plain)),
        (80, 121, "waves", ("crop", 64, 64, 64, "bicubic", clip)),
        (1, 1, "noise", ("crop", 32, 32, 32, "bicubic", plain)),
        (3, 1000, "noise", ("crop", 32, 32, 32, "bicubic", plain)),
        (1000, 3, "noise", ("crop", 32, 32, 32, "bicubic", clip)),
        (333, 500, "noise", ("crop", 48, 40, 48, "bicubic", clip)),
        (50, 31, "edges", ("crop", 64, 64, 40, "bicubic", clip)),
        (31, 50, "edges", ("crop", 65, 63, 40, "bicubic", clip)),
        (31, 50, "noise", ("crop", 65, 30, 40, "lanczos", clip)),
        (50, 31, "waves", ("crop", 40, 65, 40, "bilinear", clip)),
        (64, 64, "noise", ("pad", 64, 64, 64, "bicubic", plain)),
        (120, 80, "noise", ("pad", 64, 64, 64, "bicubic", plain)),
        (80, 121, "noise", ("pad", 64, 64, 64, "bicubic", clip)),
        (1, 1, "noise", ("pad", 32, 32, 32, "bicubic", clip)),
        (3, 1000, "noise", ("pad", 32, 32, 32, "bicubic", plain)),
        (1000, 3, "noise", ("pad", 32, 32, 32, "bicubic", clip)),
        (17, 19, "noise", ("pad", 96, 96, 96, "bicubic", clip)),
        (200, 30, "noise", ("pad", 64, 64, 64, "lanczos", clip)),
        (30, 200, "edges", ("pad", 64, 64, 64, "bilinear", clip)),
        (411, 300, "waves", ("pad", 64, 64, 80, "bicubic", clip)),
    ]:
        aspect, crop_height, crop_width, shortest_edge, name, numbers = recipe
        image = Image.fromarray(picture(width, height, kind))
        color = tuple(int(value * 255) for value in numbers["mean"])
        if aspect == "pad":
            image = expand2square(image, color)
        processor = CLIPImageProcessorPil(
            size={"shortest_edge": shortest_edge},
            crop_size={"height": crop_height, "width": crop_width},
            resample=FILTERS[name],
            image_mean=numbers["mean"],
            image_std=numbers["std"],
        )
        values = np.asarray(processor(image, return_tensors="np")["pixel_values"][0], dtype="<f4")
        assert values.shape == (3, crop_height, crop_width), values.shape
        places = [index * 7919 % values.size for index in range(24)]
        cases.append(
            {
                "source": [width, height, kind],
                "pad": list(color) if aspect == "pad" else None,
                "height": crop_height,
                "width": crop_width,
                "shortest_edge": shortest_edge,
                "filter": name,
                **numbers,
                "fnv": fnv(values.tobytes()),
                "places": places,
                "values": [float(values.flat[place]) for place in places],
            }
        )
    return cases


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, bits, color, rows, extra=b""):
    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def record_files():
    folder = HERE / "images"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    width, height = 19, 14
    rgb = Image.fromarray(picture(width, height, "waves"))
    alpha = Image.fromarray(picture(width, height, "edges")[:, :, 0])
    rgba = rgb.copy()
    rgba.putalpha(alpha)
    cases = []

    def add(name, data, expected=None, tolerance=0, note=None):
        (folder / name).write_bytes(data)
        if expected is None:
            expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
        case = {"file": name, "size": [expected.shape[1], expected.shape[0]]}
        if tolerance:
            reference = name.replace(".", "_") + "_reference.png"
            Image.fromarray(expected).save(folder / reference, optimize=True)
            case |= {"reference": reference, "tolerance": tolerance}
        else:
            case["fnv"] = fnv(expected.tobytes())
        if note:
            case["note"] = note
        cases.append(case)

    def save(image, format, **options):
        data = io.BytesIO()
        image.save(data, format, **options)
        return data.getvalue()

    # PNG
    for mode in ["RGB", "L", "1", "P"]:
        add(f"png_{mode.lower()}.png", save(rgb.convert(mode), "PNG"))
    add("png_rgba.png", save(rgba, "PNG"))
    add("png_la.png", save(rgba.convert("LA"), "PNG"))
    add("png_palette_transparent.png", save(rgb.convert("P"), "PNG", transparency=3))
    add("png_gray_transparent.png", save(rgb.convert("L"), "PNG", transparency=0))
    add("png_gray_2_bits.png", png(4, 1, 2, 0, [b"\x1b"]))
    add("png_gray_4_bits.png", png(2, 1, 4, 0, [b"\x5a"]))
    samples = np.array([0, 1, 127, 128, 255, 256, 383, 384, 32767, 32896, 65407, 65408, 65535], dtype=">u2")
    count = len(samples)
    add("png_rgb_16_bits.png", png(count, 1, 16, 2, [np.repeat(samples, 3).tobytes()]))
    add("png_rgba_16_bits.png", png(count, 1, 16, 6, [np.repeat(samples, 4).tobytes()]))
    add("png_la_16_bits.png", png(count, 1, 16, 4, [np.repeat(samples, 2).tobytes()]))
    upper = np.repeat((samples >> 8).astype(np.uint8)[None, :, None], 3, axis=2)
    note = "Pillow clips plain 16-bit gray at 255; the upper byte is expected instead"
    add("png_gray_16_bits.png", png(count, 1, 16, 0, [samples.tobytes()]), upper, note=note)
    exif = Image.Exif()
    exif[0x0112] = 6
    add("png_oriented.png", save(rgb, "PNG", exif=exif))
    # Adam7, which Pillow does not write: passes of (x0, y0, dx, dy).
    pixels = np.asarray(rgb)
    rows = []
    for x0, y0, dx, dy in [
        (0, 0, 8, 8),
        (4, 0, 8, 8),
        (0, 4, 4, 8),
        (2, 0, 4, 4),
        (0, 2, 2, 4),
        (1, 0, 2, 2),
        (0, 1, 1, 2),
    ]:
        rows += [row.tobytes() for row in pixels[y0::dy, x0::dx] if row.size]
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 1)
    data = zlib.compress(b"".join(b"\0" + row for row in rows), 9)
    add(
        "png_interlaced.png",
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b""),
    )

    # JPEG
    for subsampling, name in [(0, "444"), (1, "422"), (2, "420")]:
        add(f"jpeg_{name}.jpg", save(rgb, "JPEG", quality=90, subsampling=subsampling))
    add("jpeg_progressive.jpg", save(rgb, "JPEG", quality=90, progressive=True))
    add("jpeg_gray.jpg", save(rgb.convert("L"), "JPEG", quality=90))
    cmyk = save(rgb.convert("CMYK"), "JPEG", quality=95)
    add("jpeg_cmyk.jpg", cmyk)
    adobe = cmyk.index(b"Adobe\0")
    ycck = bytearray(cmyk)
    ycck[adobe + 11] = 2
    add("jpeg_ycck.jpg", bytes(ycck))
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        add(
            f"jpeg_orientation_{orientation}.jpg",
            save(rgb, "JPEG", quality=90, subsampling=0, exif=exif),
        )

    # WebP, GIF, BMP, TIFF
    add("webp_lossless.webp", save(rgb, "WEBP", lossless=True))
    add("webp_alpha.webp", save(rgba, "WEBP", lossless=True, exact=True))
    add("webp_lossy.webp", save(rgb, "WEBP", quality=90), tolerance=3)
    frames = [rgb, ImageOps.invert(rgb)]
    add("webp_animated.webp", save(frames[0], "WEBP", lossless=True, save_all=True, append_images=frames[1:]))
    exif = Image.Exif()
    exif[0x0112] = 8
    add("webp_oriented.webp", save(rgb, "WEBP", lossless=True, exif=exif))
    add("gif.gif", save(rgb.convert("P"), "GIF"))
    add(
        "gif_animated.gif",
        save(frames[0].convert("P"), "GIF", save_all=True, append_images=[frames[1].convert("P")]),
    )
    add("gif_transparent.gif", save(rgb.convert("P"), "GIF", transparency=5))
    for mode in ["RGB", "L", "1", "P"]:
        add(f"bmp_{mode.lower()}.bmp", save(rgb.convert(mode), "BMP"))
    add("tiff_rgb.tiff", save(rgb, "TIFF"))
    add("tiff_gray.tiff", save(rgb.convert("L"), "TIFF"))
    add("tiff_bilevel.tiff", save(rgb.convert("1"), "TIFF"))
    add("tiff_rgba.tiff", save(rgba, "TIFF"))
    add("tiff_lzw.tiff", save(rgb, "TIFF", compression="tiff_lzw"))
    add("tiff_deflate.tiff", save(rgb, "TIFF", compression="tiff_adobe_deflate"))
    add("tiff_packbits.tiff", save(rgb, "TIFF", compression="packbits"))
    add("tiff_oriented.tiff", save(rgb, "TIFF", tiffinfo={274: 3}))
    data = io.BytesIO()
    tifffile.imwrite(
        data, np.repeat(samples, 3).reshape(1, -1, 3), photometric="rgb", byteorder=">", metadata=None
    )
    add("tiff_rgb_16_bits.tiff", data.getvalue())
    data = io.BytesIO()
    tifffile.imwrite(data, samples.astype("<u2").reshape(1, -1), photometric="minisblack", metadata=None)
    add("tiff_gray_16_bits.tiff", data.getvalue(), upper, note=note)
    return cases


document = {
    "versions": "Pillow 13.0.0, numpy 2.4.6, tifffile 2026.3.3, transformers 5.24.0",
    "resize": record_resizes(),
    "preprocess": record_preprocessing(),
    "files": record_files(),
}
body = ",\n".join(
    json.dumps(name) + ": [\n" + ",\n".join(json.dumps(case) for case in cases) + "\n]"
    for name, cases in document.items()
    if isinstance(cases, list)
)
(HERE / "pixels.json").write_text('{"versions": ' + json.dumps(document["versions"]) + ",\n" + body + "\n}\n")
