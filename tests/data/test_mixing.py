"""Several files in one run: the values of --data_path, and how often which samples come."""

from collections import Counter

import pytest
from torch.utils.data import DataLoader

from qwen_vl.data.mixing import MixedDataset, Source, parse_sources


class Numbers:
    """A data set of samples that are only their names."""

    def __init__(self, name, size, is_weighted=False):
        self.name, self.is_weighted = name, is_weighted
        self.lengths, self.num_images = list(range(size)), [len(name)] * size
        self.overlength = [{"id": 1, "action": "trimmed"}] if is_weighted else []

    def __len__(self):
        return len(self.lengths)

    def __getitem__(self, index):
        return {"id": (self.name, index)}


def mixed(mix, *parts, seed=0):
    """Return the mix of (name, size, weight), and the names of its samples in order."""
    sources = [Source(name, weight, name) for name, _, weight in parts]
    dataset = MixedDataset([Numbers(name, size) for name, size, _ in parts], sources, mix=mix, seed=seed)
    return dataset, [sample["id"] for sample in dataset]


def test_the_values_of_data_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "odd:3").write_text("")
    expected = {"x/a.json:3": ("x/a.json", 3), "b.jsonl:.5": ("b.jsonl", 0.5), "c.json": ("c.json", 1)}
    expected |= {"odd:3": ("odd:3", 1), "e:3:2.": ("e:3", 2), "C:\\d.json": ("C:\\d.json", 1)}
    assert [source[:2] for source in parse_sources(expected)] == list(expected.values())
    assert parse_sources(["odd:3:2"])[0][:2] == ("odd:3", 2)
    assert [source.name for source in parse_sources(["x/a.json:3", "b.jsonl"])] == ["a.json", "b.jsonl"]
    assert [source.name for source in parse_sources(["x/a.json:3", "y/a.json"])] == ["x/a.json", "y/a.json"]
    with pytest.raises(ValueError, match=r"a.json:0: use a weight above 0"):
        parse_sources(["a.json:0"])
    with pytest.raises(ValueError, match=r"a.json: given twice.*a.json:2"):
        parse_sources(["./a.json", "a.json"])


def test_concat_takes_all_times_the_weight():
    _, names = mixed("concat", ("a", 4, 1), ("b", 2, 1))
    assert names == [("a", 0), ("a", 1), ("a", 2), ("a", 3), ("b", 0), ("b", 1)]
    parts = ("a", 10, 2.3), ("b", 3, 1)
    _, names = mixed("concat", *parts)
    counts = Counter(names)
    assert sorted(counts[("a", index)] for index in range(10)) == [2] * 7 + [3] * 3
    assert [counts[("b", index)] for index in range(3)] == [1, 1, 1]
    assert names == mixed("concat", *parts)[1] != mixed("concat", *parts, seed=1)[1]


def test_interleave_takes_by_weight():
    dataset, names = mixed("interleave", ("a", 30, 3), ("b", 970, 1))
    assert len(names) == 1000 and dataset.counts() == [750, 250]
    counts = Counter(names)
    assert set(counts[("a", index)] for index in range(30)) == {25} and max(counts.values()) == 25
    assert len({name for name in names if name[0] == "b"}) == 250  # a choice, none twice
    for start in range(0, 1000, 100):
        assert sum(name == "a" for name, _ in names[start : start + 100]) == 75
    assert mixed("interleave", ("a", 1, 1), ("b", 99, 1e-9))[0].counts() == [100, 1]


def test_a_mix_knows_what_its_parts_know():
    sources = [Source("a", 1, "a"), Source("bb", 2, "bb")]
    dataset = MixedDataset([Numbers("a", 3), Numbers("bb", 2, is_weighted=True)], sources)
    assert dataset.lengths == [0, 1, 2, 0, 1, 0, 1] and dataset.num_images == [1, 1, 1, 2, 2, 2, 2]
    assert [sample["source"] for sample in dataset] == [0, 0, 0, 1, 1, 1, 1]
    assert dataset.is_weighted and dataset.overlength == [{"id": 1, "action": "trimmed", "source": "bb"}]
    with pytest.raises(ValueError, match="use one of concat, interleave"):
        MixedDataset([], [], mix="shuffle")


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(workers):
    dataset, names = mixed("interleave", ("a", 7, 2), ("b", 5, 1))
    loader = DataLoader(dataset, batch_size=2, num_workers=workers, collate_fn=list)
    assert [sample["id"] for batch in loader for sample in batch] == names
