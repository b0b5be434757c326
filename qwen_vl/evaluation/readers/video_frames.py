"""Frames of video clips: which ones are taken, from a folder of extracted frames or by decoding the clip."""

import functools
import io
import re
from collections.abc import Iterable, Sequence
from importlib import util
from pathlib import Path

from qwen_vl.evaluation.records import ImageSource

NUM_FRAMES = 4  # of the published numbers
FRAME = re.compile(r"(.+)_(\d+)\.(?:jpe?g|png)", re.IGNORECASE)  # QUESTION_NUMBER.jpg, as in video_imgs_4
DECODER = "av"  # PyPI name and module of the library that decodes clips
Segment = tuple[float, float]


def positions(num_available: int, num_frames: int) -> list[int]:
    """Return the uniform positions of the frames that are taken: all of them if there are fewer than `num_frames`."""
    if num_available < num_frames:
        return list(range(num_available))
    step = (num_available - 1) / num_frames
    start = int(step / 2)
    return [start + round(step * number) for number in range(num_frames)]


def extracted(folder: Path) -> dict[str, list[Path]]:
    """Return {question: its frames in order} of a folder with files QUESTION_NUMBER.jpg or .png."""
    found: dict[str, list[tuple[int, Path]]] = {}
    for path in folder.iterdir():
        match = FRAME.fullmatch(path.name)
        if match:
            found.setdefault(match[1], []).append((int(match[2]), path))
    return {name: [path for _, path in sorted(frames)] for name, frames in found.items()}


def of_files(name: str, paths: Sequence[Path], num_frames: int) -> tuple[ImageSource, ...]:
    """Return the frames that are taken of the extracted ones of a clip: all of them if they are that many already."""
    are_taken = len(paths) <= num_frames
    taken = paths if are_taken else [paths[position] for position in positions(len(paths), num_frames)]
    return tuple(ImageSource(f"{name}/{path.name}", path.read_bytes) for path in taken)


def of_clip(path: Path, num_frames: int, segment: Segment | None, *, is_seconds: bool) -> tuple[ImageSource, ...]:
    """Return the frames that are taken of a clip, or of a segment in frame numbers or seconds.

    The clip is opened when its first frame is read. A frame of a clip that cannot be decoded, or that has fewer frames
    than `num_frames`, raises OSError then: the record counts as unanswered.
    """
    name = f"{path.name}:{segment[0]:g}-{segment[1]:g}" if segment else path.name
    read = [functools.partial(_frame, path, num_frames, segment, is_seconds, number) for number in range(num_frames)]
    return tuple(ImageSource(f"{name}#{number}", function) for number, function in enumerate(read))


def can_decode() -> bool:
    """Return whether the library that decodes clips is installed."""
    return util.find_spec(DECODER) is not None


def _frame(path: Path, num_frames: int, segment: Segment | None, is_seconds: bool, number: int) -> bytes:
    """Return one of the frames of a clip as PNG; raise OSError if there is none."""
    frames = _decoded(path, num_frames, segment, is_seconds)
    if len(frames) < num_frames:
        raise OSError(f"{path}: has {len(frames)} frames, {num_frames} are needed; extract its frames to a folder")
    return frames[number]


@functools.lru_cache(maxsize=8)  # clips: the frames of one are read one after the other
def _decoded(path: Path, num_frames: int, segment: Segment | None, is_seconds: bool) -> tuple[bytes, ...]:
    """Return the frames that are taken of a clip, as PNG; raise OSError if it cannot be decoded."""
    import av

    try:
        total, rate = _length(path)
        begin, end = (0, total) if segment is None else _in_frames(segment, rate if is_seconds else 1.0)
        end = min(end, total)
        wanted = {begin + position for position in positions(max(0, end - begin), num_frames)}
        with av.open(str(path)) as clip:
            taken = _taken(clip.decode(video=0), wanted)
    except (av.FFmpegError, IndexError, ZeroDivisionError) as error:
        raise OSError(f"{path}: cannot be decoded ({error}); get the clip again") from error
    return tuple(taken)


def _length(path: Path) -> tuple[int, float]:
    """Return (number of frames, frames a second) of a clip. Counting decodes all of it if the header does not say."""
    import av

    with av.open(str(path)) as clip:
        stream = clip.streams.video[0]
        rate = float(stream.average_rate or 0)
        return stream.frames or sum(1 for _ in clip.decode(video=0)), rate


def _in_frames(segment: Segment, rate: float) -> tuple[int, int]:
    """Return the frame numbers of a segment."""
    return int(segment[0] * rate), int(segment[1] * rate)


def _taken(frames: Iterable, wanted: set[int]) -> list[bytes]:
    """Return the wanted ones of decoded frames, as PNG."""
    taken, last = [], max(wanted, default=-1)
    for number, frame in enumerate(frames):
        if number in wanted:
            buffer = io.BytesIO()
            frame.to_image().save(buffer, "PNG")
            taken.append(buffer.getvalue())
        if number >= last:
            break
    return taken
