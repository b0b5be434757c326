"""The collator: padded rows, images in the order of the rows, and errors that name the sample."""

import base64
import pickle
import shutil

import pytest
import torch
from torch.utils.data import DataLoader

from qwen_vl.data import conversations
from qwen_vl.data.chatml import IGNORE_INDEX, EncodeOptions
from qwen_vl.data.collator import ConversationCollator
from qwen_vl.data.dataset import ConversationDataset
from qwen_vl.model.download_qwen import ImageError
from qwen_vl.model.image_loading_qwen import read_image
from qwen_vl.model.image_processing_qwen import pixels

A = {"from": "assistant", "value": "A red box."}


def turns(*questions):
    return [turn for text in questions for turn in ({"from": "user", "value": text}, A)]


SHORT = {"id": "short", "conversations": turns("q")}


def test_a_batch_is_padded_to_its_longest_row(tokenizer):
    """Do not mask <|endoftext|>, the pad token, inside a text: the mask comes from lengths.

    Decided difference: docs/checkpoint_format.md section 8.
    """
    ending = {"id": "e", "conversations": turns("tell <|endoftext|> me")}
    dataset = ConversationDataset([SHORT, ending], tokenizer, EncodeOptions(control_tokens=True))
    batch = ConversationCollator(tokenizer, 28)(list(dataset))
    short, long = dataset.lengths
    assert set(batch) == {"ids", "lengths", "input_ids", "labels", "attention_mask", "target_index"}
    assert batch["input_ids"].shape == (2, long) and batch["attention_mask"].sum(1).tolist() == [short, long]
    for row, sample in enumerate(dataset):
        length = len(sample["input_ids"])
        assert batch["input_ids"][row].tolist() == sample["input_ids"] + [tokenizer.pad_token_id] * (long - length)
        assert batch["labels"][row].tolist() == sample["labels"] + [IGNORE_INDEX] * (long - length)
    assert tokenizer.pad_token_id in batch["input_ids"][1].tolist()


def test_images_come_from_the_data_folder_in_row_order(golden_images, write, tmp_path, tokenizer, monkeypatch):
    """Read from another working directory, batched in a worker process; no image, several, and repeated ones."""
    first, second = golden_images
    (tmp_path / "set").mkdir()
    shutil.copy(first, tmp_path / "set" / "a.png")
    shutil.copy(second, tmp_path / "set" / "b.png")
    uri = "data:image/png;base64," + base64.b64encode(second.read_bytes()).decode()
    texts = ["<img>a.png</img><img>b.png</img>", "no image", f"<img>{uri}</img>", "<img>a.png</img>"]
    records = [{"id": str(i), "conversations": turns(text)} for i, text in enumerate(texts)]
    path = write(records, "set/data.json")
    monkeypatch.chdir("/")
    dirs = conversations.search_dirs(path)
    dataset = ConversationDataset(conversations.read(path), tokenizer, EncodeOptions(), search_dirs=dirs)
    assert dataset[0]["images"] == [str(tmp_path / "set" / name) for name in ("a.png", "b.png")]
    loader = DataLoader(dataset, batch_size=4, num_workers=1, collate_fn=ConversationCollator(tokenizer, 28))
    batch = next(iter(loader))
    a, b = (pixels(read_image(str(image)), 28) for image in golden_images)
    assert batch["pixel_values"].dtype == torch.float32
    assert torch.equal(batch["pixel_values"], torch.stack([a, b, b]))  # the URI is an image of its own
    assert batch["image_index"].tolist() == [0, 1, 2, 0]
    assert (batch["input_ids"] == tokenizer.img_start_id).sum() == 4
    plain = ConversationDataset(conversations.read(path), tokenizer, EncodeOptions())
    assert plain[0]["images"] == ["a.png", "b.png"]
    assert pickle.loads(pickle.dumps(dataset))[0] == dataset[0]  # workers may be spawned


def test_a_broken_image_names_its_sample(tmp_path, tokenizer):
    (tmp_path / "broken.png").write_text("no image")
    record = {"id": "s7", "conversations": turns("<img>broken.png</img>")}
    dataset = ConversationDataset([record], tokenizer, EncodeOptions(), search_dirs=[tmp_path])
    collate = ConversationCollator(tokenizer, 28)
    with pytest.raises(ImageError, match=r"sample 's7': .*broken\.png"):
        collate([dataset[0]])
    loader = DataLoader(dataset, batch_size=1, num_workers=1, collate_fn=collate)
    with pytest.raises(ImageError, match="sample 's7'"):
        next(iter(loader))
