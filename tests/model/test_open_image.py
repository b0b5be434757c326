"""The caller decides who opens an image: every entry of the model takes an opener, and passes it down."""

import pytest
import torch
from PIL import Image

from qwen_vl.model import (
    QWenImageProcessor,
    QWenLMHeadModel,
    QWenProcessor,
    QWenTokenizer,
    image_loading_qwen,
    image_processing_qwen,
)
from qwen_vl.model.download_qwen import ImageError
from qwen_vl.model.image_loading_qwen import refuse_images

GREEDY = {"do_sample": False, "max_new_tokens": 2}
QUERY = "<img>/etc/passwd</img>What is it?"
RED = Image.new("RGB", (64, 64), "red")


@pytest.fixture(scope="module")
def tokenizer(make_checkpoint):
    return QWenTokenizer.from_pretrained(make_checkpoint())


@pytest.fixture(scope="module")
def model(make_checkpoint):
    return QWenLMHeadModel.from_pretrained(make_checkpoint()).eval()


@pytest.fixture
def processor(model, tokenizer):
    return QWenProcessor(QWenImageProcessor(model.config.visual["image_size"]), tokenizer)


@pytest.fixture
def opened(monkeypatch):
    """Return the references that reached the default opener, which reads no file in these tests."""
    names = []

    def nothing(reference, **options):
        names.extend([reference] if isinstance(reference, str) else [])
        return RED

    for module in (image_loading_qwen, image_processing_qwen):
        monkeypatch.setattr(module, "read_image", nothing)
    return names


def ids_of(tokenizer, text=QUERY):
    return torch.tensor([tokenizer.encode_message(text)[0]])


WAYS = {
    "chat": lambda m, t, p, o: m.chat(t, QUERY, open_image=o, **GREEDY),
    "an image of an earlier turn": lambda m, t, p, o: m.chat(t, "And?", [(QUERY, "Red.")], open_image=o, **GREEDY),
    "chat_stream": lambda m, t, p, o: list(m.chat_stream(t, QUERY, open_image=o, **GREEDY)),
    "chat with a memory": lambda m, t, p, o: m.chat(t, QUERY, memory=m.new_memory(), open_image=o, **GREEDY),
    "memory": lambda m, t, p, o: m.chat(t, QUERY, memory=m.new_memory(open_image=o), **GREEDY),
    "stream with a memory": lambda m, t, p, o: list(
        m.chat_stream(t, QUERY, memory=m.new_memory(open_image=o), **GREEDY)
    ),
    "forward": lambda m, t, p, o: m(input_ids=ids_of(t), open_image=o),
    "forward without a head": lambda m, t, p, o: m.transformer(input_ids=ids_of(t), open_image=o),
    "generate": lambda m, t, p, o: m.generate(ids_of(t), open_image=o, **GREEDY),
    "beams": lambda m, t, p, o: m.generate(ids_of(t), open_image=o, num_beams=2, **GREEDY),
    "processor": lambda m, t, p, o: p(text=QUERY, open_image=o),
    "image processor": lambda m, t, p, o: p.image_processor(["/etc/passwd"], open_image=o),
    "drawing": lambda m, t, p, o: t.draw_bbox_on_latest_picture(
        "<box>(1,1),(9,9)</box>", [(QUERY, "Red.")], open_image=o
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_opener_of_the_caller_is_the_only_one(way, model, tokenizer, processor, opened):
    seen = []

    def mine(reference):
        seen.append(reference)
        return RED

    with torch.no_grad():
        with pytest.raises(ImageError, match="'/etc/passwd': images named in a text are not opened here"):
            WAYS[way](model, tokenizer, processor, refuse_images)
        assert opened == []
        WAYS[way](model, tokenizer, processor, mine)
        assert seen == ["/etc/passwd"] and opened == []
        WAYS[way](model, tokenizer, processor, None)
        assert opened == ["/etc/passwd"] and len(seen) == 1


def test_an_image_is_the_same_whoever_opens_it(model, tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    RED.save("red.png")
    text = "<img>red.png</img>What?"
    with torch.no_grad():
        plain = model(input_ids=ids_of(tokenizer, text)).logits
        assert torch.equal(model(input_ids=ids_of(tokenizer, text), open_image=lambda name: RED).logits, plain)
        blue = model(input_ids=ids_of(tokenizer, text), open_image=lambda name: Image.new("RGB", (9, 9), "blue")).logits
        assert not torch.equal(blue, plain)


def test_what_is_passed_needs_no_opener(model, tokenizer, processor, opened):
    """Check that pixels, PIL images and text alone are accepted when nothing may be opened."""
    ids, size = ids_of(tokenizer), model.config.visual["image_size"]
    pixels = torch.zeros(1, 3, size, size)
    model(input_ids=ids, pixel_values=pixels, open_image=refuse_images)
    model.generate(ids, pixel_values=pixels, open_image=refuse_images, **GREEDY)
    model.chat(tokenizer, "hi", open_image=refuse_images, **GREEDY)
    model.chat(tokenizer, "and?", [("hi", "see <img>/etc/passwd</img>")], open_image=refuse_images, **GREEDY)
    batch = processor(text="<img></img>What?", images=[RED], open_image=refuse_images)
    assert batch.pixel_values.shape == (1, 3, size, size) and opened == []


def test_a_known_image_is_opened_again_by_the_opener_of_each_call(model, tokenizer):
    """Check it because a memory must not answer about an image that this request may not read."""
    memory = model.new_memory(open_image=lambda name: RED)
    model.chat(tokenizer, QUERY, memory=memory, **GREEDY)
    assert len(memory.features) == 1
    with pytest.raises(ImageError):
        model.chat(tokenizer, QUERY, memory=memory, open_image=refuse_images, **GREEDY)


def test_an_image_that_the_model_reads_later_meets_the_same_opener(model, tokenizer, opened, monkeypatch):
    """Check it with candidate tokens of an assisted generation, which may hold a whole span."""
    seen = []
    forward = type(model.transformer).forward

    def spied(self, *args, **kwargs):
        seen.append(kwargs["open_image"])
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(type(model.transformer), "forward", spied)
    model.chat(tokenizer, "hi", open_image=refuse_images, **GREEDY)
    assert seen and set(seen) == {refuse_images}


@pytest.mark.parametrize(
    "opener, problem", [("images/", "open_image is a str"), (lambda name: b"png", "open_image returned a bytes")]
)
def test_a_wrong_opener_is_refused(opener, problem, model, tokenizer, processor):
    for way in ("chat", "memory", "forward", "processor"):
        with pytest.raises(ValueError, match=problem):
            WAYS[way](model, tokenizer, processor, opener)
    with pytest.raises(ValueError, match="open_image is a str"):
        model.chat_stream(tokenizer, "hi", open_image="images/")


def test_an_opener_and_search_dirs_exclude_each_other(processor):
    with pytest.raises(ValueError, match="search_dirs: open_image decides"):
        processor(text=QUERY, search_dirs=["images"], open_image=refuse_images)
