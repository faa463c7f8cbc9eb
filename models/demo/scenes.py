"""Scenes of emoji with questions and exact answers: the demo model's world, for training and for evaluation.

    python scenes.py eval --emoji DIR --seed 990001 --count 100 --questions 5 -o eval/
    python scenes.py scenes --emoji DIR --seed 880002 --count 8 -o scenes/

`--emoji` is the unpacked npm package `emoji-datasource-google` (Noto artwork, Apache-2.0). A scene is a function of
its seed alone. Answers follow fixed rules, so that exact match is a fair measure: objects are listed from left to
right, numbers are words, every answer is one short sentence.
"""

import argparse
import json
import pathlib
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

SIZE = 256
CELLS = 4  # image tokens per side

# name -> (short name in emoji-datasource, plural if not name + "s")
KINDS = {
    "dog": "dog",
    "cat": "cat",
    "mouse": ("mouse", "mice"),
    "rabbit": "rabbit",
    "fox": ("fox_face", "foxes"),
    "bear": "bear",
    "panda": "panda_face",
    "lion": "lion_face",
    "cow": "cow",
    "pig": "pig",
    "frog": "frog",
    "monkey": "monkey_face",
    "chicken": "chicken",
    "penguin": "penguin",
    "owl": "owl",
    "unicorn": "unicorn_face",
    "bee": "bee",
    "butterfly": ("butterfly", "butterflies"),
    "ladybug": "ladybug",
    "snail": "snail",
    "turtle": "turtle",
    "snake": "snake",
    "octopus": ("octopus", "octopuses"),
    "crab": "crab",
    "fish": ("tropical_fish", "fish"),
    "whale": "whale",
    "shark": "shark",
    "elephant": "elephant",
    "duck": "duck",
    "bat": "bat",
    "spider": "spider",
    "dinosaur": "sauropod",
    "cactus": ("cactus", "cactuses"),
    "tree": "evergreen_tree",
    "tulip": "tulip",
    "sunflower": "sunflower",
    "mushroom": "mushroom",
    "clover": "four_leaf_clover",
    "apple": "apple",
    "banana": "banana",
    "watermelon": "watermelon",
    "strawberry": ("strawberry", "strawberries"),
    "pineapple": "pineapple",
    "lemon": "lemon",
    "carrot": "carrot",
    "burger": "hamburger",
    "pizza": "pizza",
    "donut": "doughnut",
    "cookie": "cookie",
    "cake": "birthday",
    "corn cob": "corn",
    "broccoli": ("broccoli", "broccolis"),
    "soccer ball": "soccer",
    "basketball": "basketball",
    "car": "car",
    "bus": ("bus", "buses"),
    "bike": "bike",
    "airplane": "airplane",
    "rocket": "rocket",
    "sailboat": "boat",
    "train": "steam_locomotive",
    "tractor": "tractor",
    "balloon": "balloon",
    "umbrella": "umbrella",
    "key": "key",
    "hammer": "hammer",
    "guitar": "guitar",
    "trumpet": "trumpet",
    "drum": "drum_with_drumsticks",
    "camera": "camera",
    "phone": "telephone",
    "clock": "alarm_clock",
    "pencil": "pencil2",
    "light bulb": "bulb",
    "gift": "gift",
    "crown": "crown",
    "hat": "tophat",
    "heart": "heart",
    "star": "star",
    "sun": "sun_with_face",
    "moon": "crescent_moon",
    "snowman": ("snowman_without_snow", "snowmen"),
    "anchor": "anchor",
    "bell": "bell",
    "trophy": ("trophy", "trophies"),
    "diamond": "gem",
    "house": "house",
    "tent": "tent",
    "robot": "robot_face",
    "ghost": "ghost",
    "pumpkin": "jack_o_lantern",
    "rainbow": "rainbow",
    "magnet": "magnet",
    "teddy bear": "teddy_bear",
}
NAMES = list(KINDS)
NUMBERS = ["zero", "one", "two", "three", "four", "five", "six"]
COLORS = {
    "white": (244, 244, 244),
    "black": (18, 18, 18),
    "gray": (128, 128, 128),
    "red": (205, 30, 35),
    "orange": (250, 140, 20),
    "yellow": (248, 222, 50),
    "green": (40, 150, 60),
    "blue": (40, 90, 210),
    "purple": (125, 45, 170),
    "pink": (250, 150, 195),
}
COLOR_NAMES = list(COLORS)
WORDS = (
    "HELLO OPEN STOP EXIT SALE CAFE BANK TAXI FOOD PARK HOME LOVE JUMP FAST SLOW GOOD MILK FIRE RUST KIWI "
    "ZERO MOON BLUE SHOP FREE COLD WARM LEFT RIGHT PUSH PULL MENU TEA GOLD RAIN WIND KEYS BOOK YES NO"
).split()


def plural(name):
    kind = KINDS[name]
    return kind[1] if isinstance(kind, tuple) else name + "s"


def article(name):
    return ("an " if name[0] in "aeiou" and name != "unicorn" else "a ") + name


def capital(text):
    return text[0].upper() + text[1:]


def load_emoji(folder):
    """RGBA pictures of every kind, from the unpacked package."""
    folder = pathlib.Path(folder)
    by_name = {}
    for entry in json.loads((folder / "emoji.json").read_text()):
        for short in entry["short_names"]:
            by_name[short] = entry["image"]
    pictures = {}
    for name, kind in KINDS.items():
        short = kind[0] if isinstance(kind, tuple) else kind
        pictures[name] = Image.open(folder / "img/google/64" / by_name[short]).convert("RGBA")
    return pictures


@dataclass
class Scene:
    """A picture and what is in it: `objects` are (name, x, y) with the centre in pixels, from left to right."""

    image: Image.Image = None
    kind: str = ""
    color: str = ""
    objects: list = field(default_factory=list)
    text: str = ""
    text_box: tuple = ()


def background(rng, color):
    base = np.array(COLORS[color], np.float32) + rng.uniform(-10, 10, 3)
    y, x = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32) / SIZE
    style = rng.integers(4)
    amount = {"white": 12.0, "black": 14.0, "gray": 20.0}.get(color, 26.0)
    if style == 0:
        field_ = np.zeros_like(x)
    elif style == 1:  # gradient
        angle = rng.uniform(0, 2 * np.pi)
        field_ = (np.cos(angle) * (x - 0.5) + np.sin(angle) * (y - 0.5)) * 2
    elif style == 2:  # soft clouds
        small = rng.uniform(-1, 1, (int(rng.integers(3, 12)),) * 2).astype(np.float32)
        field_ = np.asarray(Image.fromarray(small).resize((SIZE, SIZE), Image.BICUBIC))
    else:  # stripes or checks
        period = rng.uniform(10, 40) / SIZE
        angle = rng.uniform(0, np.pi)
        u, v = np.cos(angle) * x + np.sin(angle) * y, -np.sin(angle) * x + np.cos(angle) * y
        field_ = np.sign(np.sin(2 * np.pi * u / period))
        if rng.random() < 0.5:
            field_ = field_ * np.sign(np.sin(2 * np.pi * v / period))
        field_ = field_ * 0.5
    pixels = base + amount * field_[..., None]
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def place(rng, count, sizes):
    """Centres whose discs do not touch, or None."""
    for _ in range(60):
        centres = []
        for size in sizes:
            half = size / 2 + 3
            for _ in range(25):
                x, y = rng.uniform(half, SIZE - half, 2)
                if all(
                    (x - a) ** 2 + (y - b) ** 2 > ((size + other) / 2 * 1.08) ** 2 for a, b, other in centres
                ):
                    centres.append((x, y, size))
                    break
            else:
                break
        if len(centres) == count:
            return centres
    return None


def paste(rng, image, picture, x, y, size):
    picture = picture.resize((int(size), int(size)), Image.BICUBIC)
    picture = picture.rotate(rng.uniform(-20, 20), Image.BICUBIC, expand=True)
    image.paste(picture, (int(x - picture.width / 2), int(y - picture.height / 2)), picture)


def make_scene(seed, pictures, fonts):
    """The scene of a seed. Kinds: `single`, `several` (2-3 different objects), `count` (1-6 alike), `text`."""
    rng = np.random.default_rng(seed)
    scene = Scene(kind=str(rng.choice(["single", "several", "count", "text"], p=[0.2, 0.36, 0.24, 0.2])))
    scene.color = COLOR_NAMES[rng.integers(len(COLOR_NAMES))]
    image = background(rng, scene.color)
    if scene.kind == "text":
        scene.text = str(rng.integers(100)) if rng.random() < 0.5 else WORDS[rng.integers(len(WORDS))]
        font = ImageFont.truetype(str(fonts[rng.integers(len(fonts))]), int(rng.uniform(54, 68)))
        left, top, right, bottom = font.getbbox(scene.text)
        width, height = right - left, bottom - top
        x, y = rng.uniform(4, max(5, SIZE - width - 4)), rng.uniform(8, SIZE - height - 8)
        dark = sum(COLORS[scene.color]) < 360
        ink = tuple(int(v) for v in (rng.uniform(225, 255, 3) if dark else rng.uniform(0, 35, 3)))
        ImageDraw.Draw(image).text((x - left, y - top), scene.text, font=font, fill=ink)
        scene.text_box = (x, y, width, height)
    else:
        if scene.kind == "single":
            names, sizes = [NAMES[rng.integers(len(NAMES))]], [rng.uniform(72, 130)]
        elif scene.kind == "several":
            count = int(rng.integers(2, 4))
            names = [NAMES[i] for i in rng.choice(len(NAMES), count, replace=False)]
            sizes = list(rng.uniform(64, 96, count))
        else:
            count = int(rng.integers(1, 7))
            names, sizes = [NAMES[rng.integers(len(NAMES))]] * count, [rng.uniform(52, 70)] * count
        centres = place(rng, len(names), sizes)
        if centres is None:
            return make_scene(seed + 10**12, pictures, fonts)
        for name, (x, y, size) in zip(names, centres):
            paste(rng, image, pictures[name], x, y, size)
            scene.objects.append((name, x, y))
        scene.objects.sort(key=lambda item: item[1])
        if scene.kind == "several" and min(np.diff([x for _, x, _ in scene.objects])) < 18:
            return make_scene(seed + 10**12, pictures, fonts)
    if rng.random() < 0.15:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 0.8)))
    scene.image = image
    return scene


def extreme(scene, axis, sign):
    """The object furthest in one direction, if it is clear of the next by 30 pixels."""
    order = sorted(scene.objects, key=lambda item: -sign * item[axis])
    if len(order) < 2 or abs(order[0][axis] - order[1][axis]) < 30:
        return None
    return order[0][0]


def questions(scene, rng):
    """Every question this scene can be asked, one phrasing each: (task, question, answer)."""

    def pick(*choices):
        return choices[rng.integers(len(choices))]

    on = f"on a{'n' if scene.color == 'orange' else ''} {scene.color} background."
    names = [name for name, _, _ in scene.objects]
    found = []
    if scene.kind == "text":
        what = "number" if scene.text.isdigit() else "word"
        described = f"The {what} {scene.text} {on}"
        found.append(
            ("read", pick("What does it say?", "Read the text.", f"What {what} is this?"), scene.text + ".")
        )
        found.append(("read", pick("What is written here?", "What does the picture say?"), scene.text + "."))
        absent = NAMES[rng.integers(len(NAMES))]
        found.append(("is there", f"Is there {article(absent)}?", "No."))
    else:
        count = len(names)
        if scene.kind == "count" and count > 1:
            listed = f"{NUMBERS[count]} {plural(names[0])}"
        else:
            listed = " and ".join(
                filter(None, [", ".join(article(n) for n in names[:-1]), article(names[-1])])
            )
        described = f"{capital(listed)} {on}"
        if len(set(names)) == 1:
            question = (
                pick("What is this?", "What object is this?", "What do you see?")
                if count == 1
                else pick("What are these?", "What objects are these?")
            )
            answer = article(names[0]) if count == 1 else plural(names[0])
            found.append(("name", question, capital(answer) + "."))
            found.append(
                ("name", pick("Name the object.", "What kind of object is shown?"), capital(names[0]) + ".")
            )
            found.append(("count", f"How many {plural(names[0])} are there?", capital(NUMBERS[count]) + "."))
        elif rng.random() < 0.5:
            found.append(
                ("name", pick("Name the objects.", "What objects are there?"), capital(listed) + ".")
            )
        found.append(
            (
                "count",
                pick("How many objects are there?", "How many things do you see?"),
                capital(NUMBERS[count]) + ".",
            )
        )
        present = names[rng.integers(count)]
        absent = NAMES[rng.integers(len(NAMES))]
        found.append(("is there", f"Is there {article(present)}?", "Yes."))
        if absent not in names:
            found.append(("is there", f"Is there {article(absent)}?", "No."))
        if scene.kind == "several":
            for side, axis, sign in (
                ("on the left", 1, -1),
                ("on the right", 1, 1),
                ("at the top", 2, -1),
                ("at the bottom", 2, 1),
            ):
                name = extreme(scene, axis, sign)
                if name:
                    found.append(("place", f"What is {side}?", capital(article(name)) + "."))
    found.append(
        (
            "describe",
            pick(
                "Describe the image.",
                "Describe the image.",
                "Describe this picture.",
                "What is in the image?",
            ),
            described,
        )
    )
    found.append(
        (
            "color",
            pick("What color is the background?", "Which color is the background?"),
            capital(scene.color) + ".",
        )
    )
    return found


def find_fonts():
    """Bold sans fonts that matplotlib ships (DejaVu, Bitstream Vera licence)."""
    import matplotlib

    folder = pathlib.Path(matplotlib.get_data_path()) / "fonts/ttf"
    return [folder / "DejaVuSans-Bold.ttf", folder / "DejaVuSans.ttf", folder / "DejaVuSansMono-Bold.ttf"]


def write_eval(emoji, seed, count, per_scene, output):
    """`count` scenes with `per_scene` questions each, tasks balanced over the whole set."""
    output.mkdir(parents=True, exist_ok=True)
    pictures, fonts = load_emoji(emoji), find_fonts()
    rng = np.random.default_rng(seed)
    asked, entries, index = {}, [], 0
    while index < count:
        scene_seed = int(rng.integers(2**40, 2**41))
        scene = make_scene(scene_seed, pictures, fonts)
        found = questions(scene, rng)
        if len(found) < per_scene:
            continue
        name = f"{index:03}.png"
        scene.image.quantize(256, dither=Image.Dither.NONE).convert("RGB").quantize(256).save(
            output / name, optimize=True
        )
        rng.shuffle(found)
        for task, question, answer in sorted(found, key=lambda item: asked.get(item[0], 0))[:per_scene]:
            asked[task] = asked.get(task, 0) + 1
            entries.append({"image": name, "task": task, "question": question, "answer": answer})
        index += 1
    (output / "questions.json").write_text(json.dumps(entries, indent=1, ensure_ascii=False) + "\n")
    print(asked)


def write_scenes(emoji, seed, count, output):
    """`count` varied scenes for people to look at, with what the rules say about each."""
    output.mkdir(parents=True, exist_ok=True)
    pictures, fonts = load_emoji(emoji), find_fonts()
    rng = np.random.default_rng(seed)
    wanted = ["several", "single", "count", "text"] * count
    entries, colors = [], set()
    while len(entries) < count:
        scene = make_scene(int(rng.integers(2**41, 2**42)), pictures, fonts)
        if (
            scene.kind != wanted[len(entries)]
            or scene.color in colors
            or scene.kind == "count"
            and len(scene.objects) < 3
        ):
            continue
        colors.add(scene.color)
        name = f"scene_{len(entries) + 1}.png"
        scene.image.save(output / name, optimize=True)
        found = [item for item in questions(scene, rng) if item[0] not in ("describe", "color")]
        described = next(answer for task, _, answer in questions(scene, rng) if task == "describe")
        entries.append(
            {
                "image": name,
                "questions": [
                    {"question": "Describe the image.", "answer": described},
                    {"question": found[0][1], "answer": found[0][2]},
                    {"question": "What color is the background?", "answer": capital(scene.color) + "."},
                ],
            }
        )
    (output / "scenes.json").write_text(json.dumps(entries, indent=1, ensure_ascii=False) + "\n")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=["eval", "scenes"])
    parser.add_argument("--emoji", required=True, help="folder of the npm package emoji-datasource-google")
    parser.add_argument("--seed", type=int, default=990001)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--questions", type=int, default=5)
    parser.add_argument("-o", "--output", type=pathlib.Path, required=True)
    arguments = parser.parse_args()
    if arguments.command == "scenes":
        return write_scenes(arguments.emoji, arguments.seed, arguments.count, arguments.output)
    write_eval(arguments.emoji, arguments.seed, arguments.count, arguments.questions, arguments.output)


if __name__ == "__main__":
    main()
