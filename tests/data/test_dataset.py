"""ConversationDataset: lengths, and the over-length policy."""

import pytest

from qwen_vl.data.chatml import EncodeOptions, OverlengthError, encode
from qwen_vl.data.dataset import ConversationDataset

A = {"from": "assistant", "value": "A red box."}


def turns(*questions):
    return [turn for text in questions for turn in ({"from": "user", "value": text}, A)]


SHORT = {"id": "short", "conversations": turns("q")}
LONG = {"id": "long", "conversations": turns("q", "word " * 200)}
HUGE = {"id": "huge", "conversations": turns("<img>a.png</img>", "q")}


@pytest.mark.parametrize("lazy", [True, False])
def test_every_length_is_known_and_nothing_is_lost_silently(lazy, tokenizer, caplog):
    dataset = ConversationDataset([LONG, HUGE, SHORT], tokenizer, EncodeOptions(100), lazy=lazy)
    short, long, huge = (encode(record, tokenizer) for record in (SHORT, LONG, HUGE))
    one = len(short["input_ids"])
    assert dataset.lengths == [len(sample["input_ids"]) for sample in dataset] == [one, one]
    assert dataset[0] == {"id": "long", **encode(LONG, tokenizer, max_length=100)}
    assert dataset[1] == dataset[-1] == {"id": "short", **short}
    assert dataset.overlength == [
        {"id": "long", "length": len(long["input_ids"]), "kept_length": one, "action": "trimmed"},
        {"id": "huge", "length": len(huge["input_ids"]), "kept_length": 0, "action": "dropped"},
    ]
    assert "2 of 3 conversations exceed 100 tokens" in caplog.text and "1 trimmed, 1 dropped" in caplog.text
    with pytest.raises(IndexError):
        dataset[2]


def test_the_other_policies(tokenizer):
    records = [LONG, HUGE, SHORT]
    dropping = ConversationDataset(records, tokenizer, EncodeOptions(100, "drop"))
    assert [sample["id"] for sample in dropping] == ["short"] and len(dropping.overlength) == 2
    with pytest.raises(OverlengthError, match=r"2 of 3 conversations exceed 100.*'huge'"):
        ConversationDataset(records, tokenizer, EncodeOptions(100, "error"))
    with pytest.raises(OverlengthError, match="raise --model_max_length"):
        ConversationDataset(records, tokenizer, EncodeOptions(10))
    with pytest.raises(ValueError, match="use one of trim, drop, error"):
        EncodeOptions(overlength="cut")
    assert ConversationDataset(records, tokenizer, EncodeOptions()).overlength == []
