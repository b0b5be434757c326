"""The preview: the page shows what is encoded, data cannot break its markup, boxes are drawn."""

from helpers.pages import Page
from helpers.records import turns_of

from qwen_vl.data.chatml import IGNORE_INDEX, EncodeOptions, encode
from qwen_vl.data.preview import html_page, preview


def test_every_token_of_the_page_is_what_is_encoded(data, make_checkpoint):
    """Compare ids, targets and the cut at each position. An image span is one chip with its count."""
    page = preview.preview(data, make_checkpoint(), encoding=EncodeOptions(90))
    parsed = Page(html_page.render(page))
    tokenizer = preview.load_tokenizer(make_checkpoint())
    span = tokenizer.image_span_tokens + 2
    assert [sample.status for sample in page.samples] == ["dropped", "whole", "dropped"]
    assert [sample.length for sample in page.samples][1] <= 90
    for record, shown in zip(preview.read(data, check_images=False), parsed.samples, strict=True):
        sample = encode(record, tokenizer)
        position = 0
        for classes, title, text in shown:
            index, label = sample["input_ids"][position], sample["labels"][position]
            assert ("cut" in classes) == (record["id"] != "gone")
            if "p" in classes:
                assert index == tokenizer.img_start_id and title.startswith(f"{span} positions, 0 targets")
                position += span
                continue
            assert title == f"id {index}" and ("y" in classes) == (label != IGNORE_INDEX)
            assert "\n" not in text or "\u21b5\n" in text
            position += 1
        assert position == len(sample["input_ids"])
    text = "".join(text for classes, _, text in parsed.samples[1] if "s" not in classes and "p" not in classes)
    assert text.replace("\u21b5\n", "\n") == "system\nKurz & knapp.\nuser\n?\nassistant\nA b.\n"


def test_what_is_cut_follows_the_policy_of_training(write, tokenizer):
    """Show the tokens of the kept turns first, then the cut ones, whose targets do not count."""
    record = {"id": "x", "conversations": turns_of("one", "two", "three", "four", "five")}
    whole, kept = encode(record, tokenizer), encode(record, tokenizer, max_length=30)
    sample = preview.look(record, tokenizer, EncodeOptions(30))
    assert (sample.status, sample.length, sample.kept_length) == ("trimmed", len(whole["input_ids"]), 23)
    assert [token.id for token in sample.tokens] == whole["input_ids"]
    assert [token.id for token in sample.tokens if token.kept] == kept["input_ids"]
    assert sample.num_targets == sum(label != IGNORE_INDEX for label in kept["labels"])
    assert html_page.badges(sample)[0][0] == f"23 of {sample.length} tokens"
    answers = preview.look(record, tokenizer, EncodeOptions(loss_on="answers"))
    learned = "".join(token.text for token in answers.tokens if token.num_targets)
    assert learned == "two<|im_end|>\nfour<|im_end|>\n" and answers.status == "whole"
