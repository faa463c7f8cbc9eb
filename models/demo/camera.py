"""Pictures as a camera sees them: a scene that is printed or shown and fills part of the frame, and pictures without a scene.

    python camera.py sheet --emoji DIR --photos DIR -o sheet.png      examples to look at

`--photos` is a folder of photographs of anything but these scenes. All is a function of the random numbers that are given.
"""

import argparse
import dataclasses
import io
import pathlib

import numpy as np
import scenes
from PIL import Image, ImageFilter
from scenes import SIZE


def load_photos(folder):
    """Every photograph in a folder, in the order of names, at most 640 pixels wide."""
    paths = [path for path in sorted(pathlib.Path(folder).rglob("*")) if path.suffix in (".jpg", ".png")]
    photos = []
    for path in paths:
        photo = Image.open(path).convert("RGB")
        photo.thumbnail((640, 640))
        photos.append(photo)
    if not photos:
        raise SystemExit(f"error: no .jpg or .png found in {folder}")
    return photos


def crop(rng, photo, size=SIZE):
    """A square part of a photograph, mirrored, and of other colours half of the time."""
    side = int(min(photo.size) * rng.uniform(0.35, 1.0))
    left, top = (int(rng.uniform(0, extent - side + 1)) for extent in photo.size)
    part = photo.resize((size, size), Image.BICUBIC, box=(left, top, left + side, top + side))
    if rng.random() < 0.5:
        part = part.transpose(Image.FLIP_LEFT_RIGHT)
    if rng.random() < 0.25:
        part = part.transpose(Image.ROTATE_90)
    if rng.random() < 0.5:
        pixels = np.asarray(part, np.float32)
        pixels = pixels * rng.uniform(0.5, 1.4, 3) + rng.uniform(-30, 30, 3)
        if rng.random() < 0.3:
            pixels = pixels[..., rng.permutation(3)]
        part = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    return part


def cloud(rng, roughness):
    """Noise whose amplitude falls with the frequency to the power of `roughness`, `[SIZE, SIZE, 3]`: 0 is white, 1 is as in photographs."""
    frequency = np.hypot(np.fft.fftfreq(SIZE)[:, None], np.fft.rfftfreq(SIZE)[None])
    frequency[0, 0] = 1 / SIZE
    shared = rng.normal(size=(SIZE, SIZE, 1)) * np.ones(3)
    drawn = shared + rng.uniform(0, 1) * rng.normal(size=(SIZE, SIZE, 3))
    spectrum = np.fft.rfft2(drawn, axes=(0, 1)) * (frequency**-roughness)[..., None]
    pixels = np.fft.irfft2(spectrum, s=(SIZE, SIZE), axes=(0, 1))
    pixels = (pixels - pixels.mean()) / pixels.std()
    return pixels * rng.uniform(15, 60) + rng.uniform(40, 210, 3)


def ground(rng, photos):
    """What lies around a printed scene: a table, a wall, a part of a photograph."""
    kind = rng.random()
    if kind < 0.45:
        picture = crop(rng, photos[rng.integers(len(photos))])
        return picture.filter(ImageFilter.GaussianBlur(rng.uniform(0, 3)))
    if kind < 0.8:
        return Image.fromarray(np.clip(cloud(rng, rng.uniform(0.8, 2.0)), 0, 255).astype(np.uint8))
    return Image.new("RGB", (SIZE, SIZE), tuple(int(v) for v in rng.uniform(0, 255, 3)))


def homography(source, target):
    """The eight numbers of the projective map that takes four points to four: `x' = (a x + b y + c) / (g x + h y + 1)`."""
    rows, values = [], []
    for (x, y), (u, v) in zip(source, target):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    return np.linalg.solve(np.array(rows, np.float64), np.array(values, np.float64))


def project(numbers, x, y):
    a, b, c, d, e, f, g, h = numbers
    below = g * x + h * y + 1
    return (a * x + b * y + c) / below, (d * x + e * y + f) / below


def show(rng, scene, photos):
    """The scene printed on paper or shown on a screen, seen at an angle: `objects` move along."""
    frame = ground(rng, photos)
    scale = rng.uniform(0.66, 0.98)
    half = SIZE * scale / 2
    room = SIZE / 2 - half
    middle = SIZE / 2 + rng.uniform(-room, room, 2)
    angle = np.deg2rad(rng.uniform(-9, 9))
    turned = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * half
    bent = corners @ turned.T * (1 + rng.uniform(-0.09, 0.09, (4, 1))) + middle
    square = [(0, 0), (SIZE, 0), (SIZE, SIZE), (0, SIZE)]
    picture, margin = scene.image, 0
    if rng.random() < 0.6:
        margin = int(rng.uniform(4, 16))
        edge = (250, 250, 248) if rng.random() < 0.6 else (15, 15, 18)
        picture = Image.new("RGB", (SIZE + 2 * margin,) * 2, edge)
        picture.paste(scene.image, (margin, margin))
    back = homography([tuple(point) for point in bent], square)
    back = np.array([*(back[:6] + margin * np.array([back[6], back[7], 1, back[6], back[7], 1])), *back[6:]])
    warped = picture.transform((SIZE, SIZE), Image.PERSPECTIVE, tuple(back), Image.BICUBIC)
    whole = Image.new("L", picture.size, 255)
    mask = whole.transform((SIZE, SIZE), Image.PERSPECTIVE, tuple(back), Image.BILINEAR)
    frame.paste(warped, (0, 0), mask)
    forward = homography(square, [tuple(point) for point in bent])
    objects = [(name, *project(forward, x, y)) for name, x, y in scene.objects]
    return dataclasses.replace(scene, image=frame, objects=objects)


def degrade(rng, image):
    """Light, blur, noise and compression of a camera."""
    pixels = np.asarray(image, np.float32)
    y, x = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32) / SIZE - 0.5
    angle = rng.uniform(0, 2 * np.pi)
    light = 1 + rng.uniform(0, 0.45) * (np.cos(angle) * x + np.sin(angle) * y)
    pixels = pixels * light[..., None] * rng.uniform(0.7, 1.2) * rng.uniform(0.93, 1.07, 3)
    if rng.random() < 0.2:
        glare = np.exp(-((x - rng.uniform(-0.5, 0.5)) ** 2 + (y - rng.uniform(-0.5, 0.5)) ** 2) / 0.02)
        pixels = pixels + rng.uniform(20, 80) * glare[..., None]
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    if rng.random() < 0.6:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.3)))
    if rng.random() < 0.2:
        small = int(SIZE * rng.uniform(0.5, 0.9))
        image = image.resize((small, small), Image.BILINEAR).resize((SIZE, SIZE), Image.BICUBIC)
    if rng.random() < 0.6:
        noisy = np.asarray(image, np.float32) + rng.normal(0, rng.uniform(1, 11), (SIZE, SIZE, 3))
        image = Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))
    if rng.random() < 0.8:
        held = io.BytesIO()
        image.save(held, "JPEG", quality=int(rng.uniform(40, 95)))
        image = Image.open(held).convert("RGB")
    return image


def seen(rng, scene, photos):
    """The scene as a camera sees it: three times of four on something that does not fill the frame."""
    if rng.random() < 0.75:
        scene = show(rng, scene, photos)
    return dataclasses.replace(scene, image=degrade(rng, scene.image))


def nothing(rng, photos):
    """A picture without a scene: a photograph, noise, or a background with nothing on it."""
    kind = rng.random()
    if kind < 0.6:
        image = crop(rng, photos[rng.integers(len(photos))])
        if rng.random() < 0.3:
            image = Image.blend(image, crop(rng, photos[rng.integers(len(photos))]), rng.uniform(0.2, 0.5))
    elif kind < 0.75:
        image = Image.fromarray(np.clip(cloud(rng, rng.uniform(0.5, 1.6)), 0, 255).astype(np.uint8))
    elif kind < 0.9:
        grain = int(2 ** rng.uniform(2, 8))
        drawn = rng.integers(0, 256, (grain, grain, 3 if rng.random() < 0.7 else 1)) * np.ones(3)
        method = Image.NEAREST if rng.random() < 0.5 else Image.BICUBIC
        image = Image.fromarray(drawn.astype(np.uint8)).resize((SIZE, SIZE), method)
    else:
        image = scenes.background(rng, scenes.COLOR_NAMES[rng.integers(len(scenes.COLOR_NAMES))])
    if rng.random() < 0.5:
        image = degrade(rng, image)
    return scenes.Scene(image=image, kind="nothing")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=["sheet"])
    parser.add_argument("--emoji", required=True, help="folder of the npm package emoji-datasource-google")
    parser.add_argument("--photos", required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("-o", "--output", type=pathlib.Path, required=True)
    arguments = parser.parse_args()
    pictures, fonts = scenes.load_emoji(arguments.emoji), scenes.find_fonts()
    photos = load_photos(arguments.photos)
    rng = np.random.default_rng(arguments.seed)
    sheet = Image.new("RGB", (6 * SIZE, 4 * SIZE))
    for index in range(24):
        scene = scenes.make_scene(int(rng.integers(2**40)), pictures, fonts)
        scene = nothing(rng, photos) if index >= 18 else seen(rng, scene, photos)
        for _, x, y in scene.objects:
            scene.image.putpixel((int(x), int(y)), (255, 0, 255))
        sheet.paste(scene.image, (index % 6 * SIZE, index // 6 * SIZE))
    sheet.save(arguments.output)


if __name__ == "__main__":
    main()
