"""MME as it is distributed: a folder for each subtask, images beside or below it, two questions on each image."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from qwen_vl.evaluation.records import ImageSource, Record

from .problems import Problems

BESIDE = (  # images and .txt files in one folder
    *("existence", "count", "position", "color", "OCR"),
    *("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning"),
)
APART = ("artwork", "celebrity", "landmark", "posters", "scene")  # images/ and questions_answers_YN/
SUFFIXES = (".jpg", ".png", ".jpeg", ".JPG", ".PNG")
DEEPER = ("", "toy_dataset")  # where artwork has its images, below images/
QUESTIONS_AN_IMAGE = 2


def read(files: Mapping[str, Path]) -> list[Record]:
    """Return the questions of the folder files["records"], subtask by subtask and in the order of the file names.

    Fields: `category`, the subtask; `image_name`. The id of a record is SUBTASK/IMAGE/NUMBER.
    Raise ValueError for a subtask that is not there, a file of questions without its image, a line that is not
    QUESTION tab Yes|No, and an image without two questions.
    """
    folder, problems, records = files["records"], Problems(), list[Record]()
    for subtask in (*BESIDE, *APART):
        texts = folder / subtask / ("questions_answers_YN" if subtask in APART else "")
        paths = sorted(texts.glob("*.txt")) if texts.is_dir() else []
        if not paths:
            problems.add(f"{texts}: has no .txt file of questions; unpack the complete MME there")
        for path in paths:
            try:
                records += _of_image(path, subtask, _image_of(folder / subtask, path.stem, subtask in APART))
            except ValueError as error:
                problems.add(error)
    problems.raise_if_any()
    return records


def _image_of(folder: Path, stem: str, is_apart: bool) -> Path:
    """Return the image of a file of questions; raise ValueError if it is not there."""
    folders = [folder / "images" / deeper for deeper in DEEPER] if is_apart else [folder]
    for place in folders:
        for suffix in SUFFIXES:
            if (place / f"{stem}{suffix}").is_file():
                return place / f"{stem}{suffix}"
    looked = " and ".join(map(str, folders))
    raise ValueError(f"{folder}: {stem}.txt has no image {stem}{SUFFIXES[0]} or {SUFFIXES[1]} in {looked}; unpack it")


def _of_image(path: Path, subtask: str, image: Path) -> Iterator[Record]:
    """Yield the records of one image; raise ValueError for a file that does not have its two questions."""
    lines = [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    if len(lines) != QUESTIONS_AN_IMAGE:
        raise ValueError(f"{path}: has {len(lines)} questions, not {QUESTIONS_AN_IMAGE}; get the file again")
    source = ImageSource(f"{subtask}/{image.name}", image.read_bytes)
    for number, line in enumerate(lines, 1):
        question, tab, answer = line.rpartition("\t")
        answer = answer.strip()
        if not tab or answer not in ("Yes", "No"):
            raise ValueError(f"{path}:{number}: {line!r:.80}; use QUESTION, a tab, Yes or No")
        fields = {"category": subtask, "image_name": image.name}
        yield Record(f"{subtask}/{image.name}/{number}", question, (source,), (answer,), fields=fields)
