"""The quickstart's conversations: easy-vqa's images and questions, with Chinese, boxes and comparisons added.

`python scripts/quickstart/make_data.py OUT` writes OUT/boxes.json, OUT/full.json and OUT/lora.json (one for each
training stage), OUT/test.json and their images. The category of a test record is its task and language, as in
"box-en", and its id starts with it: `qwen-vl evaluate MODEL --data OUT/test.json` has a score of each category.
The test file uses easy-vqa's test images alone, the others its training images alone.
"""

import argparse
import json
import random
import re
import shutil
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from qwen_vl.cli.run import run

SEED = 7
LANGUAGES = ("en", "zh")
NUM_TEST = 300  # questions of each task and language in the test file
QUESTIONS = {  # in training, about each image that has them; easy-vqa has four times as many absent colors as shapes
    "shown color": 2, "absent color": 2, "shown shape": 3, "absent shape": 3, "shape": 2, "color": 1, "where": 3,
}  # fmt: skip
SHORT_WEIGHT = 4  # of a conversation with a one-word answer, whose few tokens the many tokens of boxes would outweigh
NAMED = 0.7  # share of box questions that name the shape, as those of the test do
PAIRS = 0.5  # questions about two images, per image
CHINESE_SHARE = 0.65  # Chinese questions per English question
REPLAYED = 4  # every n-th English question is repeated with the Chinese ones
NEGATION = re.compile(r" not? ")
BIGGER = 1.3  # sizes are compared only where the areas differ by this factor
MOST_TRIES = 10_000  # to find two images that can be compared
PALETTE = {
    "black": (0, 0, 0), "blue": (0, 0, 255), "brown": (165, 42, 42), "gray": (128, 128, 128),
    "green": (0, 255, 0), "red": (255, 0, 0), "teal": (0, 128, 128), "yellow": (255, 255, 0),
}  # fmt: skip
CHINESE = {
    "black": "黑色", "blue": "蓝色", "brown": "棕色", "gray": "灰色", "green": "绿色", "red": "红色", "teal": "青色",
    "yellow": "黄色", "circle": "圆形", "rectangle": "矩形", "triangle": "三角形", "shape": "图形", "yes": "是",
    "no": "否", "Picture 1": "第一张", "Picture 2": "第二张",
}  # fmt: skip
THING = re.compile(rf"\b({'|'.join([*PALETTE, 'circle', 'rectangle', 'triangle'])})\b")
FORMS = {  # an easy-vqa question without its shape or color -> in Chinese, plain and negated
    "is there?": ("是否有{}？", "是否没有{}？"),
    "is there in the image?": ("图中是否有{}？", "图中是否没有{}？"),
    "is present?": ("是否存在{}？", "是否不存在{}？"),
    "does the image contain?": ("图片是否包含{}？", "图片是否不包含{}？"),
    "what color is the?": ("{}是什么颜色？",),
    "what is the color of the?": ("{}的颜色是什么？",),
    "what is the?": ("{}是什么形状？",),
    "what is present?": ("有什么形状？",),
    "what is in the image?": ("图中是什么形状？",),
    "what does the image contain?": ("图片包含什么形状？",),
}
COMPARISONS = {  # kind of comparison -> the question in each language
    "color": {"en": "do both pictures show the same color?", "zh": "两张图的颜色相同吗？"},
    "shape": {"en": "do both pictures show the same shape?", "zh": "两张图的形状相同吗？"},
    "size": {"en": "which picture shows the bigger shape?", "zh": "哪张图的图形更大？"},
}


class Scene(NamedTuple):
    """An image: its reference, content (box in thousandths of the sides) and easy-vqa questions."""

    reference: str
    color: str
    shape: str
    box: tuple[int, int, int, int]
    area: int  # pixels
    questions: list[tuple[str, str]]


def look(path):
    """Return (color, shape, box, area) of a plain shape on a plain background, computed from the pixels."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)  # [height, width, 3]
    codes, counts = np.unique(pixels @ (65536, 256, 1), return_counts=True)
    background = int(codes[counts.argmax()])
    distance = np.abs(pixels - (background >> 16, background >> 8 & 255, background & 255)).sum(-1)
    inside = distance * 2 > distance.max()  # an edge pixel counts if it is closer to the color of the shape
    rows, columns = np.where(inside.any(1))[0], np.where(inside.any(0))[0]
    left, top, right, bottom = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    middle = np.median(pixels[inside], axis=0)
    color = min(PALETTE, key=lambda name: np.abs(middle - PALETTE[name]).sum())
    filled = inside.sum() / ((bottom - top) * (right - left))
    shape = "rectangle" if filled > 0.94 else "circle" if filled > 0.69 else "triangle"
    height, width = inside.shape
    return color, shape, (grid(left, width), grid(top, height), grid(right, width), grid(bottom, height)), inside.sum()


def grid(edge, side):
    """Return a pixel edge in thousandths of the side, rounded to tens: finer than a pixel, and easier to learn."""
    return min(990, round(100 * int(edge) / int(side)) * 10)


def scenes(split, out, limit=None):
    """Copy the first `limit` images of easy-vqa's split ("train" or "test") to OUT/split; return them as Scenes."""
    import easy_vqa

    texts, answers, owners = getattr(easy_vqa, f"get_{split}_questions")()
    questions = defaultdict(list)
    for text, answer, owner in zip(texts, answers, owners, strict=True):
        questions[owner].append((text, answer))
    (out / split).mkdir(parents=True, exist_ok=True)
    found = []
    for number, path in sorted(getattr(easy_vqa, f"get_{split}_image_paths")().items())[:limit]:
        reference = f"{split}/{number}.png"
        shutil.copyfile(path, out / reference)
        found.append(Scene(reference, *look(path), questions[number]))
    return found


def translate(question):
    """Translate an easy-vqa question into Chinese. Raise ValueError if its form is unknown."""
    thing = THING.search(question)
    form = question.replace(f" {thing[1]}", "") if thing else question  # "is there a red shape?": "is there a shape?"
    negative = NEGATION.search(form) is not None
    form = re.sub(r" (?:a|not|no)(?= |\?)", "", form).replace(" shape", "")
    if form not in FORMS:
        raise ValueError(f"{question!r}: not a question of easy-vqa 1.0; install easy-vqa==1.0")
    name = phrase(thing[1], "zh") if thing else CHINESE["shape"]
    return FORMS[form][negative].format(name)


def phrase(thing, language):
    """ "red circle" or "circle" or "red" as a noun in the language: "红色圆形", "圆形", "红色图形"."""
    if language == "en":
        return f"{thing} shape" if thing in PALETTE else thing
    return "".join(CHINESE[word] for word in thing.split()) + (CHINESE["shape"] if thing in PALETTE else "")


def vqa(question, answer, language):
    """Return a (question, answer) of easy-vqa in the language."""
    return (question, answer) if language == "en" else (translate(question), CHINESE[answer])


def locate(scene, language, named=True):
    """Return (question, answer) for the scene's box; the answer names the shape if the question does not."""
    name = phrase(f"{scene.color} {scene.shape}", language)
    x1, y1, x2, y2 = scene.box
    if language == "en":
        question = f"where is the {name if named else 'shape'}?"
    else:
        question = f"{name if named else CHINESE['shape']}在哪里？"
    return question, f"<ref>{name}</ref><box>({x1},{y1}),({x2},{y2})</box>"


def compare(kind, one, other, language):
    """Return (question, answer) about two scenes; kind: a key of COMPARISONS."""
    if kind == "size":
        answer = "Picture 1" if one.area > other.area else "Picture 2"
    else:
        answer = "yes" if getattr(one, kind) == getattr(other, kind) else "no"
    return COMPARISONS[kind][language], answer if language == "en" else CHINESE[answer]


def pick_pair(all_scenes, rng):
    """Return (kind, scene, scene) for two comparable scenes; same and different are equally likely."""
    kind, same = rng.choice(list(COMPARISONS)), rng.random() < 0.5
    for _ in range(MOST_TRIES):
        one, other = rng.sample(all_scenes, 2)
        if kind == "size" and max(one.area, other.area) >= BIGGER * min(one.area, other.area):
            return kind, one, other
        if kind != "size" and (getattr(one, kind) == getattr(other, kind)) == same:
            return kind, one, other
    raise ValueError(f"{len(all_scenes)} pictures have too few pairs to compare; use a higher --limit")


def record(name, images, question, answer):
    """Return a conversation of one question about images (Scenes) and its answer."""
    shown = "".join(f"Picture {i}: <img>{scene.reference}</img>\n" for i, scene in enumerate(images, start=1))
    turns = [{"from": "user", "value": shown + question}, {"from": "assistant", "value": answer}]
    return {"id": name, "conversations": turns}


def build_boxes(train, language, rng):
    """Return records of the first stage, one question each: the box of every image, and its shape.

    If the question does not name the shape, the answer does. So position, color and shape are learned before negations.
    Shape is the hardest to see and only one word of a long answer, so it also has a question of its own.
    """
    exchanges = [([scene], locate(scene, language, named=named)) for scene in train for named in (True, False, False)]
    shapes = [(scene, by_kind(scene)["shape"]) for scene in train]
    exchanges += [([scene], vqa(*rng.choice(questions), language)) for scene, questions in shapes if questions]
    return numbered(exchanges, language, rng)


def build_questions(train, language, rng, *, share=1.0):
    """Return records of all tasks in a language: QUESTIONS times `share` about each image, and comparisons.

    A record has one question, since earlier answers in a conversation reveal what the image shows.
    """
    exchanges = []
    for scene in train:
        kinds = by_kind(scene)
        for kind, count in QUESTIONS.items():
            for _ in range(int(count * share + rng.random())):
                if kind == "where":
                    exchanges.append(([scene], locate(scene, language, named=rng.random() < NAMED)))
                elif kinds[kind]:
                    exchanges.append(([scene], vqa(*rng.choice(kinds[kind]), language)))
    for _ in range(int(len(train) * share * PAIRS)):
        kind, one, other = pick_pair(train, rng)
        exchanges.append(([one, other], compare(kind, one, other, language)))
    return numbered(exchanges, language, rng)


def with_follow_ups(records):
    """Return the records, with the first two about each image joined into one conversation with two turns."""
    kept, first = [], {}
    for entry in records:
        asked, answered = entry["conversations"]
        images, _, question = asked["value"].rpartition("\n")
        if images not in first:
            first[images] = entry | {"conversations": [asked, answered]}  # a copy, since the full training uses it too
            kept.append(first[images])
        elif len(first[images]["conversations"]) > 2:
            kept.append(entry)
        else:
            first[images]["conversations"] += [asked | {"value": question}, answered]
            if "weight" not in entry:
                first[images].pop("weight", None)
    return kept


def numbered(exchanges, language, rng):
    """Return a record for each (image or images, (question, answer)) in random order; short answers weigh more."""
    rng.shuffle(exchanges)
    records = [record(f"{language}/{i}", images, *exchange) for i, (images, exchange) in enumerate(exchanges)]
    return [entry if "<box>" in exchange[1] else entry | {"weight": SHORT_WEIGHT}
            for entry, (_, exchange) in zip(records, exchanges, strict=True)]  # fmt: skip


def by_kind(scene):
    """Return {kind: [(question, answer)]} of the scene's easy-vqa questions; kinds: QUESTIONS without "where"."""
    kinds = {kind: [] for kind in QUESTIONS if kind != "where"}
    for question, answer in scene.questions:
        if answer in ("yes", "no"):
            is_shown = (answer == "yes") != (NEGATION.search(question) is not None)
            subject = "color" if THING.search(question)[1] in PALETTE else "shape"
            kind = f"{'shown' if is_shown else 'absent'} {subject}"
        else:
            kind = "color" if answer in PALETTE else "shape"
        kinds[kind].append((question, answer))
    return kinds


def build_test(test, rng):
    """Return test records: NUM_TEST questions of each task and language, the same in both languages."""
    kept = {"vqa": [], "box": [], "compare": []}
    questions = [(scene, *pair) for scene in test for pair in scene.questions]
    for scene, question, answer in rng.sample(questions, min(NUM_TEST, len(questions))):
        kept["vqa"].append(([scene], {language: vqa(question, answer, language) for language in LANGUAGES}))
    for scene in rng.sample(test, min(NUM_TEST, len(test))):
        kept["box"].append(([scene], {language: locate(scene, language) for language in LANGUAGES}))
    for _ in range(min(NUM_TEST, len(test))):
        kind, one, other = pick_pair(test, rng)
        kept["compare"].append(
            ([one, other], {language: compare(kind, one, other, language) for language in LANGUAGES})
        )
    return [
        record(f"{task}-{language}/{number}", images, *exchange[language]) | {"category": f"{task}-{language}"}
        for task, entries in kept.items()
        for language in LANGUAGES
        for number, (images, exchange) in enumerate(entries)
    ]


def build(out, limit=None):
    """Write the files and the images into the folder `out`; return {file name: number of records}.

    limit: number of images of each split, by default all.
    """
    out, rng = Path(out), random.Random(SEED)
    train, test = scenes("train", out, limit), scenes("test", out, limit)
    files = {
        "test": build_test(test, rng),  # first, so it does not depend on the training questions
        "boxes": build_boxes(train, "en", rng),
        "full": build_questions(train, "en", rng),
        "lora": build_questions(train, "zh", rng, share=CHINESE_SHARE),
    }
    files["lora"] += files["full"][::REPLAYED]  # so the last stage does not unlearn the one before
    rng.shuffle(files["lora"])
    files["lora"] = with_follow_ups(files["lora"])
    for name, records in files.items():
        text = json.dumps(records, ensure_ascii=False, indent=1) + "\n"
        (out / f"{name}.json").write_text(text, encoding="utf-8")
    return {f"{name}.json": len(records) for name, records in files.items()}


def main(argv=None):
    """Build the data as the command line says."""
    parser = argparse.ArgumentParser(prog="python scripts/quickstart/make_data.py", description=__doc__.splitlines()[0])
    parser.add_argument("output", help="folder to write")
    parser.add_argument("--limit", type=int, help="number of images of each split (default: all)")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(argv)
    counts = build(args.output, args.limit)
    print(f"{args.output}: " + ", ".join(f"{count:,} conversations in {name}" for name, count in counts.items()))


if __name__ == "__main__":
    run(main)
