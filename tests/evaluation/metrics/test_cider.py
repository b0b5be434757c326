"""CIDEr against the original tool's scores on 80 images of COCO, a published check, and invariants."""

import math
import random

import pytest
from helpers.answered import pair

from qwen_vl.evaluation import metrics
from qwen_vl.evaluation.metrics.cider import CAPTION_CIDER


@pytest.fixture
def coco(golden):
    return golden("cider_coco80.json")


def test_scores_of_the_original_tool(coco):
    images = coco["pictures"]
    score, scores = metrics.cider([image["prediction"] for image in images], [image["references"] for image in images])
    assert score == pytest.approx(coco["cider"], abs=1e-9)
    assert scores == pytest.approx([image["cider"] for image in images], abs=1e-9)
    by_id = metrics.cider(
        {image["id"]: image["prediction"] for image in images},
        {image["id"]: image["references"] for image in images[::-1]},
    )
    assert by_id == (score, scores)
    pairs = [pair(image["prediction"], image["references"], id=image["id"]) for image in images]
    figure = CAPTION_CIDER.score(pairs).figures["CIDEr"]
    assert (round(figure.value, 4), figure.count, figure.unit) == (95.4782, 80, "points")
    mean = sum(scores) / 80
    assert figure.standard_error == pytest.approx(100 * math.sqrt(sum((x - mean) ** 2 for x in scores)) / 80)


def test_the_published_check():
    said = ["abc", "abc", "Abc", "100%", "100%", "100%", "100%", "Don't"]
    accepted = [["abc"], ["Abc"], ["abc"], ["96%"], ["94%"], ["0.96"], ["0.94"], ["Won't"]]
    assert metrics.cider(said, accepted)[0] == pytest.approx(1.286, abs=5e-4)


def test_a_score_computed_by_hand():
    # Unigrams a, b with df 1 of 2: weight ln 2 each; c has df 1, too. One bigram less: exp(-1 / 72).
    score, scores = metrics.cider(["a b", "x"], [["a c d"], ["y"]])
    one_gram = 1 / (math.sqrt(2) * math.sqrt(3))
    assert scores == pytest.approx([10 * one_gram / 4 * math.exp(-1 / 72), 0.0])
    assert score == pytest.approx(sum(scores) / 2)


def test_one_image_alone_scores_nothing():
    assert metrics.cider(["a red car"], [["a red car"]]) == (0.0, [0.0])


def test_the_words_of_a_subset_weigh_what_they_do_in_the_whole(coco):
    images = coco["pictures"]
    pairs = [pair(image["prediction"], image["references"], id=image["id"]) for image in images]
    records = [one.record for one in pairs]
    for chosen in (pairs[7:12], pairs[3:4]):
        samples = CAPTION_CIDER.score(chosen, records).samples
        expected = {image["id"]: image["cider"] for image in images}
        assert [sample.score for sample in samples] == pytest.approx([expected[sample.id] for sample in samples])
    alone = CAPTION_CIDER.score(pairs[7:12])
    assert alone.samples[0].score != pytest.approx(images[7]["cider"], rel=1e-3)


def test_an_empty_caption_scores_nothing_and_shifts_nothing(coco):
    images = coco["pictures"][:9]
    said, accepted = [image["prediction"] for image in images], [image["references"] for image in images]
    before = metrics.cider(said, accepted)[1]
    for empty in ("", " ", "\n", "...", "😀"):
        after = metrics.cider([*said[:4], empty, *said[5:]], accepted)[1]
        assert after == [*before[:4], 0.0, *before[5:]]
    assert metrics.cider(["", "b"], [[""], ["b"]])[1][0] == 0.0


def test_a_reference_among_its_references_is_the_best(coco):
    accepted = [image["references"] for image in coco["pictures"][:20]]
    best = metrics.cider([references[0] for references in accepted], [references[:1] for references in accepted])[1]
    assert best == pytest.approx([10.0] * 20)
    own = metrics.cider([references[0] for references in accepted], accepted)[1]
    other = metrics.cider([accepted[i - 1][0] for i in range(20)], accepted)[1]
    assert all(mine > yours for mine, yours in zip(own, other, strict=True))


def test_the_order_of_records_changes_nothing(coco):
    images = coco["pictures"]
    pairs = [
        pair(image["prediction"], image["references"], id=image["id"], domain=("in", "near", "out")[i % 3])
        for i, image in enumerate(images)
    ]
    result = CAPTION_CIDER.score(pairs)
    shuffled = CAPTION_CIDER.score(random.Random(0).sample(pairs, len(pairs)))
    assert shuffled.figures == result.figures
    assert {sample.id: sample for sample in shuffled.samples} == {sample.id: sample for sample in result.samples}
    assert list(result.figures) == ["CIDEr", "CIDEr/in", "CIDEr/near", "CIDEr/out"]
    parts = [result.figures[f"CIDEr/{name}"] for name in ("in", "near", "out")]
    assert sum(part.value * part.count for part in parts) / 80 == pytest.approx(result.figures["CIDEr"].value)
    assert "all 80 images of the data files" in result.notes[0] and "subset" in result.notes[0]
    assert result.samples[0].scored == images[0]["prediction_tokens"]


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ([], [], "no captions"),
        (["a"], [["a"], ["b"]], "1 predictions, but references of 2"),
        ({"1": "a"}, {"2": ["a"]}, "ids that are not in both predictions and references: 1, 2"),
        ({"1": "a"}, [["a"]], "two lists"),
        (["a", "b"], [["a"], []], "references of 1"),
        (["a", "b"], ["a", "b"], "references of 0"),
        ([["a"]], [["a"]], "one string for each image"),
    ],
)
def test_wrong_arguments_are_refused(predictions, references, message):
    with pytest.raises(ValueError, match=message):
        metrics.cider(predictions, references)
