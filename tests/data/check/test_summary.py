"""The summary of the check: the table of files, examples of problems, and the histogram of lengths."""

from qwen_vl.data.check.inspect_record import Inspected
from qwen_vl.data.check.summary import MAX_BINS, FileSummary, files_table, histogram, kinds_lines, lengths_lines
from qwen_vl.data.markup import Images
from qwen_vl.data.validation import Problem


def summary(name, lengths):
    """Return the FileSummary of records with these lengths, half of each of them targets."""
    found = FileSummary(name)
    for index, length in enumerate(lengths):
        found.add(Inspected(f"[{index}]", None, [], b"", length, length // 2, [], {}, Images(False, ()), None))
    return found


def test_the_table_has_a_sum_only_for_several_files():
    first, second = summary("a.json", [10, 20]), summary("b.json", [])
    second.add_problem(Problem("[3]", 7, "id", "wrong type", "a list"), 7)
    rows = [line.split() for line in files_table([first, second])]
    assert rows[1:] == [
        ["a.json", "2", "0", "0", "0", "30", "15"],
        ["b.json", "0", "1", "0", "0", "-", "-"],
        ["together", "2", "1", "0", "0", "30", "15"],
    ]
    assert len(files_table([first])) == 2
    lines = kinds_lines([first, second], {"wrong type"}, "errors")
    assert lines == ["", "errors", "        1  wrong type", "           b.json[3] (id 7).id: a list"]
    assert second.bad == {"[3]": (7, ["wrong type: id: a list"])}


def test_the_histogram_counts_every_length_in_few_bins():
    lengths = sorted([3, 9, 10, 25, *range(100, 130), 159])
    lines = histogram(lengths)
    assert lines[0].split()[:4] == ["0", "..", "9", "2"]
    assert len(lines) <= MAX_BINS and sum(int(line.split()[3]) for line in lines) == len(lengths)
    assert max(line.count("#") for line in lines) == 40
    (text, *_) = lengths_lines([summary("a.json", lengths)], 120)
    assert "longest 159 at [34]; 10 over the limit of 120" in text
    assert histogram([160])[0].split()[:3] == ["160", "..", "179"]
