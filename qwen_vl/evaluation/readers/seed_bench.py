"""SEED-Bench as it is distributed: SEED-Bench.json, a folder of images, and clips or frames of them.

Types 1 to 9 ask about an image, 10 to 12 about a clip. Type 10 takes the whole clip, type 11 a segment in seconds,
type 12 one in frame numbers. Fields: `question_id`, `question_type_id`, `data_type`; the answer is a letter.
"""

import string
from collections.abc import Mapping
from pathlib import Path

from qwen_vl.evaluation.records import ImageSource, Record

from . import video_frames
from .reading import Images, Row, collect, json_rows

OPTIONS = ("choice_a", "choice_b", "choice_c", "choice_d")
CLIPS = {10: "clips_10", 11: "clips_11", 12: "clips_12"}  # role of the folder of clips, by type
IN_SECONDS = 11
SUFFIXES = ("", ".mp4", ".webm", ".avi", ".MP4")  # what a data_id may lack
KINDS = ("image", "video")


def read(
    files: Mapping[str, Path], *, kinds: tuple[str, ...] = KINDS, num_frames: int = video_frames.NUM_FRAMES
) -> list[Record]:
    """Return the questions of files["records"] of these kinds, "image" and "video".

    Frames are those of files["frames"], QUESTION_NUMBER.jpg, if the question has some there, else of its clip.
    Raise ValueError for a question without its image, its frames or its clip, and for clips that nothing can decode.
    """
    images = Images(files["images"], files["root"], files["records"].parent) if "images" in files else None
    frames = video_frames.extracted(files["frames"]) if "frames" in files and "video" in kinds else {}

    def make(row: Row) -> Record | None:
        kind, number = row.text("data_type"), row.number("question_type_id")
        if kind not in KINDS or (kind == "video") != (number in CLIPS):
            raise row.error(f"data_type, question_type_id: {kind!r}, {number}; image has 1 to 9, video 10 to 12")
        if kind not in kinds:
            return None
        name = row.id("question_id")
        if kind == "video":
            sources = _frames_of(row, files, frames.get(str(name), []), num_frames)
        elif images is None:
            raise row.error("images: there is no folder of images; unpack SEED-Bench-image")
        else:
            sources = (images.find(row, row.text("data_id")),)
        letter = row.text("answer", "")
        if letter and letter not in string.ascii_uppercase[: len(OPTIONS)]:
            raise row.error(f"answer: {letter!r}; use A, B, C or D")
        fields = {"question_id": name, "question_type_id": number, "data_type": kind}
        options = tuple(_text(row, key) for key in OPTIONS)
        return Record(str(name), row.text("question"), sources, (letter,) if letter else (), options, fields=fields)

    return collect(json_rows(files["records"], "questions"), make)


def _text(row: Row, key: str) -> str:
    """Return an option; a number, as counting questions have, becomes its text."""
    value = row.values.get(key)
    return str(value) if type(value) in (int, float) else row.text(key)


def _frames_of(row: Row, files: Mapping[str, Path], frames: list[Path], num_frames: int) -> tuple[ImageSource, ...]:
    """Return the frames of a question about a clip; raise ValueError if neither they nor the clip are there."""
    number, reference = int(row.number("question_type_id")), row.text("data_id")
    if frames:
        return video_frames.of_files(str(row.id("question_id")), frames, num_frames)
    folder = files.get(CLIPS[number])
    places = [folder / f"{reference}{suffix}" for suffix in SUFFIXES] if folder else []
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        looked = f"as {places[0]}" if places else "as there is no folder of clips of its type"
        raise row.error(f"data_id {reference!r}: no frames, and no clip {looked}; unpack one of both")
    if not video_frames.can_decode():
        raise row.error(f"data_id {reference!r}: nothing can decode clips; pip install {video_frames.DECODER}")
    segment = row.numbers("segment", 2) if number > min(CLIPS) else None
    return video_frames.of_clip(
        path, num_frames, (segment[0], segment[1]) if segment else None, is_seconds=number == IN_SECONDS
    )
