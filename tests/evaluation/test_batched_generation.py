"""Batched answers: the same as one at a time, in the order of the questions."""

import pytest
from PIL import Image

from qwen_vl.checkpoint import loading
from qwen_vl.evaluation import generation


def record(name, *texts):
    roles = ("user", "assistant")
    return {"id": name, "conversations": [{"from": roles[i % 2], "value": text} for i, text in enumerate(texts)]}


def test_batched_answers_equal_chat(make_checkpoint, tmp_path):
    folder = make_checkpoint()
    model, tokenizer = loading.load_model(folder).eval(), loading.load_tokenizer(folder)
    for name, color in (("a", "red"), ("b", "blue")):
        Image.new("RGB", (64, 64), color).save(tmp_path / f"{name}.png")
    questions = [
        ["Picture 1: <img>a.png</img>\nwhat is this?"],
        ["no image"],
        ["Picture 1: <img>b.png</img>\nPicture 2: <img>a.png</img>\nwhich one?"],
        ["Picture 1: <img>b.png</img>\nand now?", "something", "a second question"],
    ]
    records = [record(str(i), *texts, "right") for i, texts in enumerate(questions)]
    answers = generation.answer(model, tokenizer, records, search_dirs=[tmp_path], batch_size=3, max_new_tokens=6)
    for texts, answer in zip(questions, answers, strict=True):
        shown = [text.replace("<img>", f"<img>{tmp_path}/") for text in texts]
        history = [(shown[0], shown[1])] if len(shown) > 1 else None
        alone, _ = model.chat(tokenizer, shown[-1], history=history, do_sample=False, max_new_tokens=6)
        assert answer == alone


def test_a_record_without_a_last_answer_is_refused():
    with pytest.raises(ValueError, match="x: ends without an answer"):
        generation.split(record("x", "question"))
    assert generation.split(record("x", "q1", "a1", "q2", "a2")) == ([("q1", "a1")], "q2", "a2")


def test_weights_without_finite_logits_score_nothing(make_checkpoint):
    model, tokenizer = loading.load_model(make_checkpoint()).eval(), loading.load_tokenizer(make_checkpoint())
    model.transformer.ln_f.weight.data[0] = float("nan")
    with pytest.raises(ValueError, match="answering first, second: the logits are not finite"):
        generation.answer(model, tokenizer, [record("first", "q", "a"), record("second", "q", "a")])
