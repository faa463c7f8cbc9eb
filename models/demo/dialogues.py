"""Conversations about scenes, with exact answers: turns that follow on each other, two images, JSON, what is not there.

    python dialogues.py eval --emoji DIR --photos DIR -o eval/      200 questions of conversations, 200 of camera-like pictures

A dialogue is about one or two scenes. As everywhere in this world, answers follow fixed rules and exact match is a fair
measure: an ordinal says which of two images is meant, without one the newest is; numbers of JSON are digits; where something
is asked for that is not there, the answer is "None."; a picture without a scene has one answer to everything but JSON.
"""

import argparse
import json
import pathlib
from dataclasses import dataclass

import numpy as np
import scenes
from scenes import NAMES, NUMBERS, article, capital, plural

NOTHING = "I see no drawing here."
ORDINALS = ("first", "second")


@dataclass
class Turn:
    """What is asked and answered. `shows`: how many images come with the question, further ones of the dialogue in turn."""

    task: str
    question: str
    answer: str
    shows: int = 0


def pick(rng, *choices):
    return choices[rng.integers(len(choices))]


def distinct(scene):
    """The kinds of objects, from left to right, each once."""
    return list(dict.fromkeys(name for name, _, _ in scene.objects))


def absent(scene, rng):
    """A kind that is not in the scene."""
    names = distinct(scene)
    while True:
        name = NAMES[rng.integers(len(NAMES))]
        if name not in names:
            return name


def as_json(scene, rng, wanted=None):
    """One question for JSON: keys in any order, of which the answer has exactly these. `wanted`: a key that is among them."""
    facts = {
        "objects": [article(name) for name in distinct(scene)],
        "count": len(scene.objects),
        "background": scene.color or "none",
        "text": scene.text,
    }
    keys = [str(key) for key in rng.permutation(list(facts))[: rng.integers(1, 5)]]
    if wanted and wanted not in keys:
        keys[rng.integers(len(keys))] = wanted
    quoted = [f'"{key}"' for key in keys]
    listed = " and ".join(filter(None, [", ".join(quoted[:-1]), quoted[-1]]))
    noun = "key" if len(keys) == 1 else "keys"
    question = pick(
        rng,
        f"Describe the image as JSON with the {noun} {listed}.",
        f"Answer as JSON with the {noun} {listed}.",
    )
    return Turn("json", question, json.dumps({key: facts[key] for key in keys}))


def missing(scene, rng):
    """One question about what is not there."""
    if scene.kind == "text":
        return pick(
            rng,
            Turn("none", pick(rng, "What objects are there?", "Name the objects."), "None."),
            Turn("none", f"How many {plural(absent(scene, rng))} are there?", "None."),
        )
    return pick(
        rng,
        Turn("none", pick(rng, "What does it say?", "Read the text.", "What is written here?"), "None."),
        Turn("none", f"How many {plural(absent(scene, rng))} are there?", "None."),
    )


def single(scene, rng, count):
    """Questions that are each asked alone."""
    if scene.kind == "nothing":
        return [nothing(scene, rng) for _ in range(count)]
    found = [Turn(*item) for item in scenes.questions(scene, rng)]
    rng.shuffle(found)
    extra = [as_json(scene, rng), missing(scene, rng)]
    return (found[: max(count - 1, 1)] + [extra[rng.integers(2)]])[:count]


def harder(scene, rng, count):
    """What is learned slowly, each asked alone: names within JSON, and how many there are of what is there and what is not."""
    if scene.kind == "nothing":
        return []
    asked = [as_json(scene, rng, "objects"), missing(scene, rng)]
    names = [str(name) for name in rng.permutation(distinct(scene))[:3]] if scene.objects else []
    for name in names + [absent(scene, rng) for _ in range(max(len(names), 1))]:
        number = sum(other == name for other, _, _ in scene.objects)
        task, answer = ("count", capital(NUMBERS[number]) + ".") if number else ("none", "None.")
        asked.append(Turn(task, f"How many {plural(name)} are there?", answer))
    if scene.objects:
        question = pick(rng, "How many objects are there?", "How many things do you see?")
        asked.append(Turn("count", question, capital(NUMBERS[len(scene.objects)]) + "."))
        asked.append(names_of(scene, rng))
    return [asked[index] for index in rng.permutation(len(asked))[:count]]


def names_of(scene, rng):
    """The question for names that says nothing of how many kinds there are."""
    described = next(answer for task, _, answer in scenes.questions(scene, rng) if task == "describe")
    answer = described[: described.index(" on a")] + "."
    return Turn("name", pick(rng, "Name the objects.", "What objects are there?"), answer)


def nothing(scene, rng):
    """Any question about a picture without a scene."""
    if rng.random() < 0.15:
        return as_json(scene, rng)
    asked = scenes.Scene(
        kind=str(rng.choice(["several", "text"])), color="red", text=str(rng.integers(100)), objects=[]
    )
    if asked.kind == "several":
        count = int(rng.integers(1, 4))
        asked.objects = [
            (NAMES[rng.integers(len(NAMES))], 80.0 * index, float(rng.uniform(0, 256)))
            for index in range(count)
        ]
        asked.text = ""
    found = scenes.questions(asked, rng)
    return Turn("nothing", found[rng.integers(len(found))][1], NOTHING)


def follow_ups(scene, rng):
    """Questions that lean on what was said before, as (task, question, answer) of the same scene."""
    found = []
    if scene.kind == "nothing":
        return found
    background = pick(
        rng, "And the background?", "What about the background?", "And what color is the background?"
    )
    found.append(Turn("color", background, capital(scene.color) + "."))
    if scene.objects:
        count = capital(NUMBERS[len(scene.objects)]) + "."
        found.append(Turn("count", pick(rng, "How many are there?", "And how many are there?"), count))
        other = absent(scene, rng)
        found.append(Turn("is there", f"And {article(other)}?", "No."))
        name = distinct(scene)[rng.integers(len(distinct(scene)))]
        found.append(Turn("is there", f"And {article(name)}?", "Yes."))
    return found


def dialogue(scene, rng, turns):
    """So many turns about one scene. What leans on a turn before comes after one that it can lean on."""
    if scene.kind == "nothing":
        return [nothing(scene, rng) for _ in range(turns)]
    plain = [Turn(*item) for item in scenes.questions(scene, rng)] + [
        as_json(scene, rng),
        missing(scene, rng),
    ]
    rng.shuffle(plain)
    told = [plain.pop()]
    while len(told) < turns:
        leaning = [
            turn
            for turn in follow_ups(scene, rng)
            if turn.task != "is there" or told[-1].task == "is there"
            if turn.task != "count" or told[-1].task in ("name", "describe")
        ]
        if leaning and rng.random() < 0.4:
            told.append(leaning[rng.integers(len(leaning))])
        elif plain:
            told.append(plain.pop())
        else:
            told.append(told[rng.integers(len(told))])
    return told


def of_pair(pair, rng):
    """One question about two images that are both there."""
    which = int(rng.integers(2))
    scene, ordinal = pair[which], ORDINALS[which]
    choice = rng.random()
    named = [name for other in pair for name in distinct(other)]
    if choice < 0.3 and named:
        name = named[rng.integers(len(named))] if rng.random() < 0.8 else NAMES[rng.integers(len(NAMES))]
        has = [name in distinct(other) for other in pair]
        answer = {
            (True, True): "Both images.",
            (True, False): "The first image.",
            (False, True): "The second image.",
            (False, False): "None.",
        }[tuple(has)]
        return Turn("which", f"Which image shows {article(name)}?", answer)
    if scene.kind == "nothing":
        question = pick(rng, f"Describe the {ordinal} image.", f"What is in the {ordinal} image?")
        return Turn("two images", question, NOTHING)
    if choice < 0.5:
        question = f"What color is the background of the {ordinal} image?"
        return Turn("two images", question, capital(scene.color) + ".")
    if choice < 0.65 and scene.objects:
        question = f"How many objects are in the {ordinal} image?"
        return Turn("two images", question, capital(NUMBERS[len(scene.objects)]) + ".")
    if choice < 0.75 and scene.text:
        return Turn("two images", f"What does the {ordinal} image say?", scene.text + ".")
    described = next(answer for task, _, answer in scenes.questions(scene, rng) if task == "describe")
    question = pick(rng, f"Describe the {ordinal} image.", f"What is in the {ordinal} image?")
    return Turn("two images", question, described)


def pair_dialogue(pair, rng, turns):
    """Turns about two images: shown together, or the second one with a later turn, about which questions then are."""
    if rng.random() < 0.6:
        told = [of_pair(pair, rng) for _ in range(turns)]
        told[0].shows = 2
        return told
    before = max(1, turns // 2)
    told = dialogue(pair[0], rng, before)
    told[0].shows = 1
    after = dialogue(pair[1], rng, 1)
    after[0].shows = 1
    told += after
    while len(told) < turns:
        told.append(of_pair(pair, rng))
    return told


def write_eval(emoji, photos, seed, output):
    """Conversations about the pictures of `scenes.py eval`'s seeds, and camera-like pictures with questions of their own."""
    import camera

    pictures, fonts, photos = scenes.load_emoji(emoji), scenes.find_fonts(), camera.load_photos(photos)
    rng = np.random.default_rng(seed)
    folder = output / "conversations"
    folder.mkdir(parents=True, exist_ok=True)
    entries, asked, index = [], 0, 0
    while asked < 200:
        shown = [scenes.make_scene(int(rng.integers(2**40, 2**41)), pictures, fonts) for _ in range(2)]
        together = len(entries) % 2 == 1
        turns = int(rng.integers(2, 5))
        told = pair_dialogue(shown, rng, turns) if together else dialogue(shown[0], rng, turns)
        if not together:
            told[0].shows = 1
        files = []
        for scene in shown[: sum(turn.shows for turn in told)]:
            files.append(f"{index:03}.png")
            scene.image.quantize(128).save(folder / files[-1], optimize=True)
            index += 1
        told = told[: 200 - asked]
        asked += len(told)
        rest = iter(files)
        entries.append(
            [
                {
                    "images": [next(rest) for _ in range(turn.shows)],
                    "task": turn.task,
                    "question": turn.question,
                    "answer": turn.answer,
                }
                for turn in told
            ]
        )
    (folder / "questions.json").write_text(json.dumps(entries, indent=1) + "\n")
    folder = output / "camera"
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for index in range(50):
        scene = scenes.make_scene(int(rng.integers(2**40, 2**41)), pictures, fonts)
        scene = camera.nothing(rng, photos) if index % 10 == 9 else camera.seen(rng, scene, photos)
        name = f"{index:03}.jpg"
        scene.image.save(folder / name, quality=85)
        for turn in single(scene, rng, 4):
            entries.append(
                {"image": name, "task": turn.task, "question": turn.question, "answer": turn.answer}
            )
    (folder / "questions.json").write_text(json.dumps(entries, indent=1) + "\n")
    print(asked, "questions of conversations,", len(entries), "of camera-like pictures")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=["eval"])
    parser.add_argument("--emoji", required=True, help="folder of the npm package emoji-datasource-google")
    parser.add_argument("--photos", required=True, help="folder of photographs that training does not have")
    parser.add_argument("--seed", type=int, default=990003)
    parser.add_argument("-o", "--output", type=pathlib.Path, required=True)
    arguments = parser.parse_args()
    write_eval(arguments.emoji, arguments.photos, arguments.seed, arguments.output)


if __name__ == "__main__":
    main()
