"""Questions with options, ranked by likelihood: ScienceQA, MMBench, CCBench, SEED-Bench, MMStar; MMMU by generation."""

import functools
from collections.abc import Mapping

from qwen_vl.evaluation import submissions
from qwen_vl.evaluation.metrics.choice import CHOICE, SEED_BENCH
from qwen_vl.evaluation.metrics.mmbench import MMBENCH
from qwen_vl.evaluation.readers import adapted, hugging_face, json_lines, seed_bench, tsv
from qwen_vl.evaluation.records import Decoding, Ranking, Record

from .benchmark import Benchmark, DataFile, Layout
from .files import TABLES, converted, hub, table
from .vqa import beside

ROTATION = 1_000_000  # rotation k of question i has the index i + k * ROTATION
MMBENCH_SITE = "https://mmbench.opencompass.org.cn"
THIRD_PARTY = "from the paper or a third party's table, not from the authors' repository"
SEED = "data/SEED-Bench/"
SEED_SITE = "see https://github.com/AILab-CVC/SEED-Bench/blob/main/DATASET.md"
SEED_CLIPS = {  # role: folder
    "clips_10": "SSV2/videos",
    "clips_11": "EPIC-KITCHENS/3h91syskeag572hl6tvuovwv4d/videos/test",
    "clips_12": "BreakfastII_15fps_qvga_sync",
}
SEED_PUBLISHED = {  # what: Qwen-VL, Qwen-VL-Chat
    "all": {"Qwen-VL": 56.3, "Qwen-VL-Chat": 58.2},
    "image": {"Qwen-VL": 62.3, "Qwen-VL-Chat": 65.4},
    "video": {"Qwen-VL": 39.1, "Qwen-VL-Chat": 37.8},
}


def question_of(record: Record) -> str:
    """Return what all rotations of a question of MMBench share."""
    return str(int(record.fields["index"]) % ROTATION)


def mmbench(
    name: str,
    title: str,
    table_name: str,
    official: str,
    *,
    published: Mapping[str, float] | None = None,
    hub_set: tuple[str, str],
    layouts: tuple[Layout, ...] = (),
    has_answers: bool = True,
) -> Benchmark:
    """Return an entry that is read from a table, the official one or that of VLMEvalKit, or from the hub.

    hub_set: config and split there.
    """
    of_hub = dict(zip(("config", "split"), hub_set, strict=True))
    return Benchmark(
        name=name,
        title=title,
        files={"records": DataFile(f"data/mmbench/{official}", f"download it from {MMBENCH_SITE} or {TABLES}")},
        reader=tsv.mmbench,
        template="choice",
        decoding=Ranking(),
        metric=MMBENCH,
        published=published or {},
        published_note=THIRD_PARTY if published else "",
        submission=submissions.mmbench,
        layouts=(*layouts, table(table_name, tsv.mmbench), hub("MMBench", hugging_face.mmbench, **of_hub)),
        group_of=question_of,
        has_answers=has_answers,
    )


def converted_mmbench(split: str) -> Layout:
    """Return the layout of the converted JSON lines of a split."""
    name = f"mmbench_{split}_20230712"
    path = DataFile(f"data/mmbench/{name}/{name}.jsonl", "convert the table")
    return Layout("converted JSON lines", {"records": path}, json_lines.mmbench)


def seed_files(*kinds: str, has_frames: bool = True) -> dict[str, DataFile]:
    """Return the files of SEED-Bench's image or video questions, or both, with extracted frames or with the clips."""
    files = {"records": DataFile(f"{SEED}SEED-Bench.json", f"download SEED-Bench.json, {SEED_SITE}")}
    if "image" in kinds:
        files["images"] = DataFile(f"{SEED}SEED-Bench-image", f"unpack SEED-Bench-image there, {SEED_SITE}")
    if "video" in kinds:
        source = "put the frames of the clips there as QUESTION_NUMBER.jpg"
        files["frames"] = DataFile(f"{SEED}video_imgs_4", source, optional=not has_frames)
        for role, folder in SEED_CLIPS.items():
            files[role] = DataFile(f"{SEED}{folder}", f"unpack the clips there, {SEED_SITE}", optional=has_frames)
    return files


def seed_layouts(*kinds: str) -> tuple[Layout, ...]:
    """Return the other layouts of SEED-Bench: clips instead of frames, converted prompts, a table of the images."""
    files = {"questions": DataFile(f"{SEED}SEED-Bench.json", "for figures by dimension", optional=True)}
    roles = {"image": ("records", "image_input.jsonl"), "video": ("video_records", "video_input_4.jsonl")}
    for kind in kinds:
        role, name = roles[kind]
        source = converted(f"seed_bench/{name}").source
        files[role] = DataFile(f"{SEED}{name}", f"{source}, and put images and frames where it says")
    prompts = Layout("converted prompts", files, json_lines.seed_bench)
    of_hub = hub("SEED-Bench", adapted.only(hugging_face.choice, "data_type", *kinds))
    if kinds == ("image",):
        return prompts, table("SEEDBench_IMG", adapted.seed_table), of_hub
    reader = functools.partial(seed_bench.read, kinds=kinds)
    return Layout("clips", seed_files(*kinds, has_frames=False), reader), prompts, of_hub


CHOICES = (
    Benchmark(
        name="scienceqa_test_img",
        title="ScienceQA (test, questions with an image)",
        files={
            "records": beside(
                converted("scienceqa/scienceqa_test_img.jsonl"),
                "images: unpack https://scienceqa.s3.us-west-1.amazonaws.com/images/test.zip in data/scienceqa/images",
            ),
            "problems": DataFile(
                "data/scienceqa/problems.json",
                "for figures by subject and grade: download problems.json from https://github.com/lupantech/ScienceQA",
                optional=True,
            ),
        },
        reader=json_lines.science_qa,
        template="choice",
        decoding=Ranking(),
        metric=CHOICE,
        size=2017,
        published={"Qwen-VL": 67.1, "Qwen-VL-Chat": 68.2},
        layouts=(
            table("ScienceQA_TEST"),
            hub("ScienceQA", hugging_face.choice, split="test", config="ScienceQA-IMG"),
        ),
    ),
    mmbench(
        "mmbench_dev",
        "MMBench (dev, English)",
        "MMBench_DEV_EN",
        "mmbench_dev_20230712.tsv",
        hub_set=("en", "dev"),
        published={"Qwen-VL": 38.2, "Qwen-VL-Chat": 60.6},
        layouts=(converted_mmbench("dev"),),
    ),
    mmbench(
        "mmbench_test",
        "MMBench (test, English)",
        "MMBench_TEST_EN",
        "mmbench_test_20230712.tsv",
        hub_set=("en", "test"),
        layouts=(converted_mmbench("test"),),
        has_answers=False,
    ),
    mmbench(
        "mmbench_cn_dev",
        "MMBench (dev, Chinese)",
        "MMBench_DEV_CN",
        "mmbench_dev_cn_20231003.tsv",
        hub_set=("cn", "dev"),
        published={"Qwen-VL": 7.4, "Qwen-VL-Chat": 56.7},
    ),
    mmbench(
        "mmbench_cn_test",
        "MMBench (test, Chinese)",
        "MMBench_TEST_CN",
        "mmbench_test_cn_20231003.tsv",
        hub_set=("cn", "test"),
        has_answers=False,
    ),
    mmbench("ccbench", "CCBench (Chinese culture)", "CCBench", "CCBench_legacy.tsv", hub_set=("cc", "test")),
    *(
        Benchmark(
            name=name,
            title=title,
            files=seed_files(*kinds),
            reader=functools.partial(seed_bench.read, kinds=kinds),
            template="seed",
            decoding=Ranking(num_options=len(seed_bench.OPTIONS)),
            metric=SEED_BENCH,
            size=size,
            published=SEED_PUBLISHED["all" if len(kinds) > 1 else kinds[0]],
            published_figures=SEED_PUBLISHED if len(kinds) > 1 else {},
            submission=submissions.seed_bench,
            layouts=seed_layouts(*kinds),
        )
        for name, title, kinds, size in (
            ("seed_bench", "SEED-Bench (images and videos)", ("image", "video"), 19_242),
            ("seed_bench_image", "SEED-Bench (images)", ("image",), 14_233),
            ("seed_bench_video", "SEED-Bench (videos)", ("video",), 5009),
        )
    ),
    Benchmark(
        name="mmstar",
        title="MMStar",
        files={"records": DataFile("data/mmstar/MMStar.tsv", f"download it from {TABLES}")},
        reader=tsv.read,
        template="choice",
        decoding=Ranking(),
        metric=CHOICE,
        size=1500,
        layouts=(table("MMStar"),),
    ),
    Benchmark(
        name="mmmu_val",
        title="MMMU (val)",
        files={"records": DataFile("data/mmmu/MMMU_DEV_VAL.tsv", f"download it from {TABLES}")},
        reader=adapted.only(tsv.read, "split", "validation"),
        template="exam",
        decoding=Decoding(max_new_tokens=10),
        metric=CHOICE,
        size=900,
        layouts=(
            table("MMMU_DEV_VAL", adapted.only(tsv.read, "split", "validation")),
            hub("MMMU", hugging_face.choice, split="validation"),
        ),
    ),
)
