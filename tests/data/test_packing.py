"""Packing: rows hold every sample once, are full, and keep their limits; also those of an endless stream."""

import random
from itertools import count, islice

import pytest

from qwen_vl.data.chatml import Sample
from qwen_vl.data.packing import STREAM_WINDOW, PackOptions, fill_rate, pack, packed_stream


def test_every_sample_once_in_rows_that_are_full_and_repeatable():
    generator = random.Random(1)
    lengths = [min(2048, max(20, int(generator.lognormvariate(5.9, 0.5)))) for _ in range(20_000)]
    rows = pack(lengths, max_length=2048, seed=5)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert max(sum(lengths[index] for index in row) for row in rows) <= 2048
    assert fill_rate(rows, lengths, 2048) >= 0.98
    assert rows == pack(lengths, max_length=2048, seed=5) != pack(lengths, max_length=2048, seed=6)


def test_images_of_a_row_are_capped():
    generator = random.Random(2)
    lengths = [generator.randint(20, 300) for _ in range(2000)]
    images = [generator.choice([0, 1, 3]) for _ in lengths]
    rows = pack(lengths, max_length=2048, num_images=images, max_images=4)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert max(sum(images[index] for index in row) for row in rows) == 4
    with pytest.raises(ValueError, match="sample 1 has 3000 tokens"):
        pack([5, 3000], max_length=2048)


def test_an_endless_stream_is_packed_window_by_window():
    samples = (Sample(id=number, input_ids=[0] * (20 + number * 37 % 100), images=[]) for number in count())
    stream = packed_stream(samples, PackOptions(400), seed="s", sample_of=lambda sample: sample)
    rows = list(islice(stream, 300))
    ids = [sample["id"] for row in rows for sample in row]
    assert len(set(ids)) == len(ids) and set(range(STREAM_WINDOW)) <= set(ids) <= set(range(2 * STREAM_WINDOW))
    assert max(sum(len(sample.input_ids) for sample in row) for row in rows) <= 400
