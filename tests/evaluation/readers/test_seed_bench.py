"""SEED-Bench and the frames of its clips."""

import json

import pytest
from PIL import Image

from qwen_vl.evaluation.readers import seed_bench, video_frames
from qwen_vl.model.image_loading_qwen import ImageError


@pytest.mark.parametrize(
    "available, wanted, expected",
    [
        (10, 4, [1, 3, 5, 8]),
        (100, 4, [12, 37, 62, 86]),
        (5, 4, [0, 1, 2, 3]),
        (4, 4, [0, 1, 2, 2]),
        (2, 4, [0, 1]),
        (0, 4, []),
    ],
)
def test_positions_are_uniform(available, wanted, expected):
    assert video_frames.positions(available, wanted) == expected


def question(**values):
    choices = {"choice_a": "None", "choice_b": 2, "choice_c": "c", "choice_d": "d"}
    row = {"question_id": "7", "question_type_id": 1, "data_type": "image", "data_id": "7.png", "question": "q?"}
    return row | choices | {"answer": "B"} | values


@pytest.fixture
def files(tmp_path):
    for folder in ("images", "frames", "clips"):
        (tmp_path / folder).mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "images" / "7.png")
    for number in range(8):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / "frames" / f"v_0_{number}.png")
    return {"root": tmp_path, "records": tmp_path / "SEED-Bench.json"} | {
        "images": tmp_path / "images",
        "frames": tmp_path / "frames",
        "clips_10": tmp_path / "clips",
        "clips_12": tmp_path / "clips",
    }


def read(files, *rows, **options):
    files["records"].write_text(json.dumps({"questions": list(rows)}))
    return seed_bench.read(files, **options)


CLIP = {"question_id": "v_0", "question_type_id": 10, "data_type": "video", "data_id": "0.webm"}


def test_images_and_frames_of_clips(files):
    records = read(files, question(), question(**CLIP))
    assert records[0].options == ("None", "2", "c", "d") and records[0].answers == ("B",)
    assert records[1].fields == {"question_id": "v_0", "question_type_id": 10, "data_type": "video"}
    assert [source.open().getpixel((0, 0))[0] for source in records[1].images] == [0, 2, 4, 5]
    names = [source.name for source in read(files, question(**CLIP), num_frames=8)[0].images]
    assert names == [f"v_0/v_0_{number}.png" for number in range(8)]
    assert [record.id for record in read(files, question(), question(**CLIP), kinds=("image",))] == ["7"]


@pytest.mark.parametrize(
    "values, message",
    [
        ({"answer": "E"}, "answer: 'E'; use A, B, C or D"),
        ({"data_id": "8.png"}, "image '8.png': not found"),
        ({"question_type_id": 10}, "image has 1 to 9, video 10 to 12"),
        (CLIP | {"question_id": "v_1"}, r"data_id '0.webm': no frames, and no clip as .*0.webm; unpack"),
        (CLIP | {"question_id": "v_1", "question_type_id": 11}, "there is no folder of clips of its type"),
    ],
)
def test_what_is_missing_is_named(files, values, message):
    with pytest.raises(ValueError, match=message):
        read(files, question(**values))


def test_clips_need_a_decoder(files, monkeypatch):
    (files["clips_10"] / "1.webm").write_bytes(b"no video")
    monkeypatch.setattr(video_frames, "can_decode", lambda: False)
    with pytest.raises(ValueError, match="pip install av"):
        read(files, question(**CLIP | {"question_id": "v_1", "data_id": "1"}))


def test_clips_are_decoded_when_they_are_asked(files):
    av = pytest.importorskip("av")
    path = files["clips_12"] / "1.mp4"
    with av.open(str(path), "w") as clip:
        stream = clip.add_stream("mpeg4", rate=5)
        stream.width = stream.height = 32
        for number in range(20):
            image = Image.new("RGB", (32, 32), (number * 12,) * 3)
            clip.mux(stream.encode(av.VideoFrame.from_image(image)))
        clip.mux(stream.encode())
    (files["clips_10"] / "2.webm").write_bytes(b"no video")
    values = CLIP | {"question_id": "v_1", "question_type_id": 12, "data_id": "1", "segment": [10, 20]}
    records = read(files, question(**values), question(**CLIP | {"question_id": "v_2", "data_id": "2"}))
    reds = [source.open().getpixel((9, 9))[0] for source in records[0].images]
    assert len(reds) == 4, reds
    assert all(abs(red - (10 + position) * 12) <= 5 for red, position in zip(reds, (1, 3, 5, 8), strict=True)), reds
    with pytest.raises(ImageError, match="cannot be decoded"):
        records[1].images[0].open()
