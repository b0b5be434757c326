"""The registry: every entry is read from files of its format, asked, and compared with what was published."""

import pytest
from helpers.benchmark_files import IMAGE, write, write_layout, write_png, write_questions

from qwen_vl.evaluation import benchmarks, prompts
from qwen_vl.evaluation.benchmarks import BENCHMARKS
from qwen_vl.evaluation.benchmarks.files import HUB_SET
from qwen_vl.evaluation.benchmarks.loading import SHOTS, layouts_of
from qwen_vl.evaluation.metrics.result import Pair
from qwen_vl.evaluation.readers import video_frames
from qwen_vl.evaluation.records import Answer, Decoding, Ranking

BASE, CHAT = "Qwen-VL", "Qwen-VL-Chat"
PUBLISHED = {  # headline figure: Qwen-VL, Qwen-VL-Chat
    "nocaps": (121.4, 120.2),
    "flickr": (85.8, 81.0),
    "vqav2_testdev": (78.8, 78.2),
    "okvqa_val": (58.6, 56.6),
    "gqa_testdev": (59.3, 57.5),
    "scienceqa_test_img": (67.1, 68.2),
    "vizwiz_test": (35.2, 38.9),
    "textvqa_val": (63.8, 61.5),
    "docvqa_test": (65.1, 62.6),
    "chartqa_test": (65.7, 66.3),
    "refcoco_val": (89.36, 88.55),
    "refcoco_testA": (92.26, 92.27),
    "refcoco_testB": (85.34, 84.51),
    "refcoco+_val": (83.12, 82.82),
    "refcoco+_testA": (88.25, 88.59),
    "refcoco+_testB": (77.21, 76.79),
    "refcocog_val": (85.58, 85.96),
    "refcocog_test": (85.48, 86.32),
    "grit_test": (78.22, None),
    "seed_bench": (56.3, 58.2),
    "seed_bench_image": (62.3, 65.4),
    "seed_bench_video": (39.1, 37.8),
    "mme": (None, 1487.58),
    "touchstone_en": (None, 645.2),
    "touchstone_zh": (None, 401.2),
    "mmbench_dev": (38.2, 60.6),
    "mmbench_cn_dev": (7.4, 56.7),
    "ai2diagram_test": (62.3, 57.7),
    "ocrvqa_test": (75.7, 70.5),
    "hallusionbench": (57.6, 56.4),
}
NOT_OF_THE_AUTHORS = {"textvqa_val", "docvqa_test", "chartqa_test", "mmbench_dev", "mmbench_cn_dev", "ai2diagram_test"}
NOT_OF_THE_AUTHORS |= {"ocrvqa_test", "hallusionbench"}
SUBTASKS = {"existence": 158.33, "count": 150, "position": 128.33, "color": 170, "posters": 178.57, "celebrity": 120.59}
SUBTASKS |= {"scene": 152.25, "landmark": 164, "artwork": 125.5, "OCR": 140, "commonsense_reasoning": 130.71}
SUBTASKS |= {"numerical_calculation": 40, "text_translation": 147.5, "code_reasoning": 42.5, "cognition": 360.71}
PLAN = {  # template: benchmarks, their new tokens (None: ranked)
    "caption": (("nocaps", "flickr"), (8, 30)),
    "grounding": (tuple(name for name in BENCHMARKS if name.startswith(("refcoco", "grit"))), (10, 28)),
    "choice": (("scienceqa_test_img", "mmbench_dev", "mmbench_test", "mmbench_cn_dev", "ccbench", "mmstar"), None),
    "seed": (("seed_bench", "seed_bench_image", "seed_bench_video"), None),
    "vqa": (
        (
            *("vqav2_val", "vqav2_testdev", "okvqa_val", "textvqa_val", "vizwiz_val", "vizwiz_test", "gqa_testdev"),
            *("ai2diagram_test", "pope", "hallusionbench"),
        ),
        (1, 10),
    ),
}
LONG = (
    "docvqa_val",
    "docvqa_test",
    "infographicsvqa_val",
    "chartqa_test_human",
    "ocrvqa_val",
    "ocrvqa_test",
    "ocrbench",
)

LAYOUTS = [
    pytest.param(benchmark, number, id=f"{benchmark.name}-{layout.name}")
    for benchmark in BENCHMARKS.values()
    for number, layout in enumerate(layouts_of(benchmark))
]


@pytest.mark.parametrize("benchmark, number", LAYOUTS)
def test_every_layout_of_every_entry_is_read_and_asked(tmp_path, benchmark, number, monkeypatch):
    monkeypatch.setattr(video_frames, "can_decode", lambda: True)
    layout = layouts_of(benchmark)[number]
    write_layout(benchmark, layout, tmp_path)
    assert benchmarks.layout_in(benchmark, tmp_path).name == layout.name
    assert benchmarks.check(benchmark, tmp_path) == []
    records = benchmarks.load(benchmark, tmp_path)
    if benchmark.name == "seed_bench":
        assert [len(record.images) for record in records] == {"converted prompts": [1, 1], HUB_SET: [1]}.get(
            layout.name, [1, 4]
        )
    for record in records:
        built = prompts.build(record, template=benchmark.template, style=benchmark.style)
        assert built.images
        if layout.name != "clips":
            assert built.images[0].open().size == (8, 6)
        assert isinstance(benchmark.decoding, Decoding) or record.options
        assert record.answers or not benchmark.has_answers or "bbox" in record.fields or benchmark.metric.needs_judge
    used = benchmarks.files_used(benchmark, tmp_path)
    assert all(path.startswith(str(tmp_path)) for path in used.values()) and used


def answered(record, decoding, is_right):
    """Return an answer to a record that is right, or an empty one."""
    if isinstance(decoding, Ranking):
        right = "ABCDEFGHIJ".index(record.answers[0])
        choice = right if is_right else (right + 1) % len(record.options)
        losses = tuple(float(number != choice) for number in range(len(record.options)))
        return Answer(record.id, "key", losses=losses, choice=choice, finish="rank")
    if "bbox" in record.fields:
        sizes = (record.fields["width"], record.fields["height"]) * 2
        x1, y1, x2, y2 = (value * 999 / size for value, size in zip(record.fields["bbox"], sizes, strict=True))
        text = f"({x1},{y1}),({x2},{y2})"
    else:
        text = record.answers[0]
    return Answer(record.id, "key", text=text if is_right else "")


@pytest.mark.parametrize("benchmark, number", LAYOUTS)
def test_every_metric_reads_what_every_reader_writes(tmp_path, benchmark, number):
    layout = layouts_of(benchmark)[number]
    if layout.name == "clips" or benchmark.metric.needs_judge or not benchmark.has_answers:
        return
    write_layout(benchmark, layout, tmp_path)
    records = benchmarks.load(benchmark, tmp_path)
    for is_right in (True, False):
        pairs = [Pair(record, answered(record, benchmark.decoding, is_right)) for record in records]
        result = benchmark.metric.score(pairs)
        assert [sample.id for sample in result.samples] == [record.id for record in records]
        full = {"mme": 2000 if len(records) > 2 else 200, "ocrbench": len(records)}.get(benchmark.name, 100)
        # One image alone has a CIDEr of 0, and POPE takes an empty answer for yes.
        if benchmark.template != "caption" and (is_right or benchmark.name != "pope"):
            assert result.figures[result.headline].value == pytest.approx(full if is_right else 0)
        if number == 0:
            assert set(benchmark.published_figures) <= set(result.figures)


def test_every_layout_was_there():
    assert len(LAYOUTS) > len(BENCHMARKS) > 40
    assert len({param.id for param in LAYOUTS}) >= len(LAYOUTS) - 3  # some have a table under two names


@pytest.mark.parametrize("benchmark", BENCHMARKS.values(), ids=list(BENCHMARKS))
def test_what_is_missing_is_named_with_its_source(tmp_path, benchmark):
    problems = benchmarks.check(benchmark, tmp_path)
    if benchmark.parts:
        assert problems == [] and set(benchmark.parts) < set(BENCHMARKS)
        return
    needed = [file for file in benchmark.files.values() if not file.optional]
    assert len(problems) == len(needed) >= 1
    for file, problem in zip(needed, problems, strict=True):
        assert f"{benchmark.name}: {tmp_path / file.path} is missing; {file.source}" in problem
    with pytest.raises(ValueError, match="is missing"):
        benchmarks.load(benchmark, tmp_path)


def test_published_numbers():
    for name, benchmark in BENCHMARKS.items():
        base, chat = PUBLISHED.get(name, (None, None))
        assert (benchmark.published.get(BASE), benchmark.published.get(CHAT)) == (base, chat), name
        assert bool(benchmark.published_note) == (name in NOT_OF_THE_AUTHORS), name
    assert set(PUBLISHED) <= set(BENCHMARKS)
    assert BENCHMARKS["okvqa_val"].published_with_shots == {4: {BASE: 63.6, CHAT: 60.6}}
    assert BENCHMARKS["vizwiz_test"].published_with_shots == {4: {BASE: 39.1, CHAT: 44.45}}
    assert BENCHMARKS["mme"].published_figures == {name: {CHAT: value} for name, value in SUBTASKS.items()}
    assert BENCHMARKS["hallusionbench"].published_figures == {
        "fAcc": {BASE: 12.4, CHAT: 27.7},
        "qAcc": {BASE: 19.6, CHAT: 26.4},
    }
    others = [
        (benchmark.published[f"{CHAT} (later weights)"], benchmark.published[f"{CHAT}-Int4"])
        for benchmark in map(BENCHMARKS.get, ("touchstone_en", "touchstone_zh"))
    ]
    assert others == [(711.6, 651.4), (481.7, 386.6)]


def test_prompts_and_decoding_are_those_of_the_published_numbers():
    for template, (names, tokens) in PLAN.items():
        assert len(names) > 1
        for name in names:
            benchmark = BENCHMARKS[name]
            assert (benchmark.template, benchmark.style, benchmark.num_shots) == (template, "raw", 0), name
            if tokens is None:
                assert isinstance(benchmark.decoding, Ranking), name
            else:
                decoding = benchmark.decoding
                assert (decoding.min_new_tokens, decoding.max_new_tokens) == tokens, name
                assert decoding.end == "endoftext" and not decoding.keep_boxes, name
                assert decoding.strip == (template != "grounding"), name
    for name in LONG:
        decoding = BENCHMARKS[name].decoding
        assert (decoding.min_new_tokens, decoding.max_new_tokens, BENCHMARKS[name].template) == (1, 100, "vqa"), name
    assert BENCHMARKS["seed_bench"].decoding.num_options == 4 and BENCHMARKS["mmbench_dev"].decoding.num_options is None
    for name in ("mme", "touchstone_en"):
        assert BENCHMARKS[name].style == "chat" and BENCHMARKS[name].decoding.end == "im_end"
    assert BENCHMARKS["mme"].template == "mme"


def test_a_subset_keeps_what_is_scored_together():
    assert BENCHMARKS["mmbench_dev"].group_of is not None and BENCHMARKS["mme"].group_of is not None


@pytest.mark.parametrize(
    "name, near", [("refcoco_tesA", "refcoco_testA"), ("textvqa", "textvqa_val"), ("MMBENCH", "mmbench_dev")]
)
def test_unknown_names_get_near_ones(name, near):
    with pytest.raises(ValueError, match=f"'{name}' is not known; did you mean .*{near}"):
        benchmarks.get(name)
    with pytest.raises(ValueError, match="use one of nocaps, flickr"):
        benchmarks.get("zzzz")


def test_solved_examples_come_from_the_training_file_alone(tmp_path):
    benchmark = BENCHMARKS["okvqa_val"]
    with pytest.raises(ValueError, match=r"okvqa_train.jsonl is missing; download https"):
        benchmarks.load_shots(benchmark, tmp_path)
    write_png(tmp_path / IMAGE)
    write_questions({"shots": tmp_path / benchmark.files[SHOTS].path}, name="shots")
    (shot,) = benchmarks.load_shots(benchmark, tmp_path)
    assert shot.answers == ("red",)
    flickr = BENCHMARKS["flickr"]
    assert flickr.files[SHOTS].path != flickr.files["records"].path
    notes = [{"id": 1, "image_id": 42, "image": IMAGE, "caption": "a cat"}]
    write(tmp_path / flickr.files[SHOTS].path, {"images": [], "annotations": notes})
    assert benchmarks.load_shots(flickr, tmp_path)[0].answers == ("a cat",)
    with pytest.raises(ValueError, match="has no training split"):
        benchmarks.load_shots(BENCHMARKS["mme"], tmp_path)


def test_the_data_folder_itself_will_do(tmp_path):
    benchmark = BENCHMARKS["gqa_testdev"]
    write_layout(benchmark, layouts_of(benchmark)[0], tmp_path)
    assert len(benchmarks.load(benchmark, tmp_path / "data")) == 1
    (tmp_path / benchmark.files["records"].path).write_text("")
    assert "have no records" in benchmarks.check(benchmark, tmp_path)[0]


def test_the_number_of_frames_is_a_setting(tmp_path):
    benchmark = benchmarks.with_frames(BENCHMARKS["seed_bench_video"], 2)
    write_layout(benchmark, layouts_of(benchmark)[0], tmp_path)
    assert len(benchmarks.load(benchmark, tmp_path)[0].images) == 2
    with pytest.raises(ValueError, match="seed_bench_image: has no video clips"):
        benchmarks.with_frames(BENCHMARKS["seed_bench_image"], 2)
    with pytest.raises(ValueError, match="0 frames a clip"):
        benchmarks.with_frames(BENCHMARKS["seed_bench"], 0)


def test_what_the_vqav2_server_wants_beside_the_answers(tmp_path):
    benchmark = BENCHMARKS["vqav2_testdev"]
    write_layout(benchmark, layouts_of(benchmark)[0], tmp_path)
    assert benchmarks.load(benchmark, tmp_path)[0].fields == {"question_id": 7, "other_question_ids": [8]}
