"""The processor for texts with images: ids, padding, images in the order of the spans, and its files."""

import base64
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from qwen_vl.model.configuration_qwen import QWenConfig
from qwen_vl.model.download_qwen import ImageError
from qwen_vl.model.image_processing_qwen import QWenImageProcessor, pixels
from qwen_vl.model.modeling_qwen import QWenLMHeadModel
from qwen_vl.model.processing_qwen import QWenProcessor
from qwen_vl.model.tokenization_qwen import QWenTokenizer

SPAN, SIZE = 16, 16
RED, BLUE = (Image.new("RGB", (9, 7), color) for color in ("red", "blue"))


@pytest.fixture(scope="module")
def vocab(published_vocab, tmp_path_factory):
    """Return a vocabulary of the first 300 published ranks."""
    path = tmp_path_factory.mktemp("vocab") / "qwen.tiktoken"
    path.write_bytes(b"".join(published_vocab.read_bytes().splitlines(keepends=True)[:300]))
    return str(path)


@pytest.fixture(scope="module")
def processor(vocab):
    return QWenProcessor(QWenImageProcessor(image_size=SIZE), QWenTokenizer(vocab, image_span_tokens=SPAN))


@pytest.fixture
def image_folder(tmp_path):
    """Return a folder with red.png and blue.png."""
    RED.save(tmp_path / "red.png")
    BLUE.save(tmp_path / "blue.png")
    return tmp_path


def tiny_config(tokenizer, **visual):
    """Return the config of the smallest model that reads the spans and images of this file's processor."""
    tower = {"image_size": SIZE, "patch_size": 4, "width": 16, "layers": 1, "heads": 2, "mlp_ratio": 2.0}
    tower |= {"output_dim": 32, "n_queries": SPAN, "image_start_id": tokenizer.img_start_id} | visual
    return QWenConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        kv_channels=16,
        intermediate_size=64,
        visual=tower,
    )


def test_images_come_in_the_order_of_the_spans(processor, image_folder):
    texts = ["Picture 1: <img>red.png</img>\n?", "Picture 1: <img>blue.png</img>\nPicture 2: <img>red.png</img>\n!"]
    expected = torch.stack([pixels(image, SIZE) for image in (RED, BLUE, RED)])
    opened = processor(text=texts, search_dirs=[image_folder])
    given = processor(text=texts, images=[[RED], [BLUE, RED]])
    assert opened.keys() == given.keys() == {"input_ids", "attention_mask", "pixel_values"}
    for batch in (opened, given, processor(text=texts, images=[RED, BLUE, RED])):
        assert torch.equal(batch.pixel_values, expected)
        for ids, mask, text in zip(batch.input_ids, batch.attention_mask, texts, strict=True):
            assert ids[mask.bool()].tolist() == processor.tokenizer(text).input_ids
    assert set(processor(text="no image")) == {"input_ids", "attention_mask"}
    assert set(processor(images=RED)) == {"pixel_values"}


def test_images_without_a_fitting_reference(processor):
    """Check an image in memory, a long path and a data URI: the span is padding, the image comes as pixel values."""
    stream = io.BytesIO()
    RED.save(stream, "PNG")
    uri = "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
    tokenizer = processor.tokenizer
    span = [tokenizer.img_start_id, *[tokenizer.img_pad_id] * SPAN, tokenizer.img_end_id]
    for batch in (processor(text="<img></img>", images=RED), processor(text=f"<img>{uri}</img>")):
        assert batch.input_ids.tolist() == [span]
        assert torch.equal(batch.pixel_values[0], pixels(RED, SIZE))


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_masks_by_length_and_not_by_id(processor, side):
    end, letter = processor.tokenizer.eod_id, processor.tokenizer.convert_tokens_to_ids(b"a")
    batch = processor(text=["a<|endoftext|>", "<|endoftext|>"], padding_side=side)
    assert batch.input_ids.tolist() == [[letter, end], [end, end]]
    assert batch.attention_mask.tolist() == [[1, 1], [0, 1] if side == "left" else [1, 0]]


def test_control_markers_are_plain_text_on_request(processor):
    start = processor.tokenizer.im_start_id
    assert start in processor(text="<|im_start|>user").input_ids
    assert start not in processor(text="<|im_start|>user", control_tokens=False).input_ids


@pytest.mark.parametrize(
    ("text", "images", "problem"),
    [
        ("<img></img>", [RED, BLUE], "the text has 1 <img>..</img>, images 2"),
        ("<img>red.png</img>", [], "the text has 1 <img>..</img>, images 0"),
        ("nothing", RED, "the text has 0 <img>..</img>, images 1"),
        (["<img></img>", "none"], [[], [RED]], r"text\[0\] has 1 <img>..</img>, images\[0\] 0"),
        (["<img></img>", "none"], [[RED]], "1 lists for 2 texts"),
        (["x", "<img>red.png</img><img></img>"], None, r"text\[1\]: image 2 has no reference"),
        ("<img>red.png", None, "unclosed <img>"),
        (["a", ""], None, "none of them empty"),
        ([["a"]], None, "use a string or a list of strings"),
        (None, None, "nothing to process"),
    ],
)
def test_what_does_not_fit_together_is_refused(processor, text, images, problem):
    with pytest.raises(ValueError, match=problem):
        processor(text=text, images=images)


def test_an_image_that_cannot_be_opened_is_named(processor, image_folder):
    with pytest.raises(ImageError, match=r"absent\.png"):
        processor(text="<img>absent.png</img>")
    with pytest.raises(ImageError, match="7 pixels, the limit is 6"):
        processor(text="<img>red.png</img>", search_dirs=[image_folder], images_kwargs={"max_pixels": 6})
    with pytest.raises(TypeError, match="truncation"):
        processor(text="a", truncation=True)


def test_the_model_reads_the_batch(processor, image_folder, monkeypatch):
    """Check that the processor's images give the same logits as references that the model opens itself."""
    monkeypatch.chdir(image_folder)
    torch.manual_seed(0)
    model = QWenLMHeadModel(tiny_config(processor.tokenizer)).eval()
    batch = processor(text=["<img>red.png</img> a <img>blue.png</img>", "long enough a text, without any"])
    with torch.no_grad():
        with_pixels = model(**batch).logits
        by_reference = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        swapped = model(**{**batch, "pixel_values": batch.pixel_values.flip(0)}).logits
    assert torch.equal(with_pixels, by_reference)
    assert not torch.allclose(with_pixels[0], swapped[0])


# ---- files ----


def test_a_saved_processor_loads_here(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    loaded = QWenProcessor.from_pretrained(tmp_path)
    assert (loaded.tokenizer.image_span_tokens, loaded.image_processor.image_size) == (SPAN, SIZE)
    texts = ["<img></img> a", "b"]
    ours, theirs = processor(text=texts, images=RED), loaded(text=texts, images=RED)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_checkpoint_without_processor_files_has_a_processor(processor, tmp_path):
    processor.tokenizer.save_pretrained(tmp_path)
    tiny_config(processor.tokenizer).save_pretrained(tmp_path)
    loaded = QWenProcessor.from_pretrained(tmp_path)
    assert (loaded.tokenizer.image_span_tokens, loaded.image_processor.image_size) == (SPAN, SIZE)


def test_numbers_that_differ_from_the_config_are_refused(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    tiny_config(processor.tokenizer, n_queries=4, image_size=32).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"image_span_tokens is 16, config.visual.n_queries 4.*image_size is 16"):
        QWenProcessor.from_pretrained(tmp_path)


def test_a_saved_processor_loads_where_this_package_is_unknown(processor, tmp_path):
    folder = tmp_path / "saved"
    processor.save_pretrained(folder)
    batch = processor(text=["<img></img> a", "b"], images=RED)
    torch.save(dict(batch), tmp_path / "expected.pt")
    script = f"""
import sys, torch
from PIL import Image
from transformers import AutoImageProcessor, AutoProcessor
processor = AutoProcessor.from_pretrained({str(folder)!r}, trust_remote_code=True)
batch = processor(text=["<img></img> a", "b"], images=Image.new("RGB", (9, 7), "red"))
expected = torch.load({str(tmp_path / "expected.pt")!r})
assert batch.keys() == expected.keys() and all(torch.equal(batch[key], expected[key]) for key in batch)
assert AutoImageProcessor.from_pretrained({str(folder)!r}, trust_remote_code=True).image_size == {SIZE}
processor.save_pretrained({str(tmp_path / "again")!r})
assert not any(name.split(".")[0] == "qwen_vl" for name in sys.modules)
"""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment["HF_MODULES_CACHE"] = str(tmp_path / "modules")
    ran = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert {path.name for path in folder.iterdir()} == {path.name for path in Path(tmp_path / "again").iterdir()}


def test_vllm_gets_the_span_of_an_image_and_where_it_is(processor):
    tokenizer, token = processor.tokenizer, processor.image_token
    span = [tokenizer.img_start_id, *[processor.image_token_id] * SPAN, tokenizer.img_end_id]
    assert tokenizer.encode(token) == span and processor.image_token_ids == [tokenizer.img_pad_id]
    sizes = processor._get_num_multimodal_tokens(image_sizes=[(10, 900), (448, 448)])
    assert sizes == {"num_image_tokens": [SPAN + 2] * 2, "num_image_patches": [1, 1]}
    texts = [f"a {token} b {token}", "none"]
    for tensors in ("pt", None):
        batch = processor(
            text=texts,
            images=[[RED, BLUE], []],
            return_text_replacement_offsets=True,
            return_tensors=tensors,
            videos=None,
            add_special_tokens=False,
        )
        assert batch["text_replacement_offsets"] == [[{"type": "image", "replacement": token}] * 2, []]
    assert "text_replacement_offsets" not in processor(text=texts, images=[[RED, BLUE], []])


@pytest.mark.parametrize("wrong", [{"image": RED}, {"videos": ["a.mp4"]}, {"truncation": True}, {"max_lenght": 3}])
def test_an_argument_of_another_processor_is_refused(processor, wrong):
    with pytest.raises(TypeError, match=next(iter(wrong))):
        processor(text="a", **wrong)
