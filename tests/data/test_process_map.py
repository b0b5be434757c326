"""The parallel map keeps the order, and takes chunks as they are needed."""

import pytest

from qwen_vl.data.process_map import process_map


def _halve(numbers):
    if 13 in numbers:
        raise ValueError("13 is not even")
    return [number // 2 for number in numbers]


def test_process_map_keeps_the_order_and_takes_chunks_as_it_goes():
    taken = []

    def chunks():
        for number in range(100):
            taken.append(number)
            yield [2 * number]

    results = process_map(_halve, chunks(), workers=2)
    assert next(results) == [0] and len(taken) < 20
    results.close()
    assert list(process_map(_halve, ([2 * i] for i in range(50)), workers=2)) == [[i] for i in range(50)]
    with pytest.raises(ValueError, match="13 is not even"):
        list(process_map(_halve, ([i] for i in range(50)), workers=2))
