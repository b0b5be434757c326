"""Ranks that act together: one value for all, one error for all. Threads stand for the processes."""

import threading
from typing import ClassVar

import pytest

from qwen_vl.evaluation.processes import Processes


class Rank(Processes):
    """A rank whose messages go through a list."""

    values: ClassVar[dict] = {}
    barrier: ClassVar[threading.Barrier]

    def gather(self, value):
        self.values[self.rank] = value
        self.barrier.wait(20)
        copied = [self.values[rank] for rank in range(self.size)]
        self.barrier.wait(20)
        return copied


def on_all_ranks(work, size=3):
    """Return what `work(rank)` returns or raises on each rank."""
    Rank.barrier, results = threading.Barrier(size), [None] * size

    def run(number):
        try:
            results[number] = work(Rank(number, size))
        except BaseException as error:
            results[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return results


def fails_on(*ranks):
    def work(rank):
        def action():
            if rank.rank in ranks:
                raise ValueError(f"of rank {rank.rank}")
            return rank.rank

        return rank.together(action)

    return work


def test_all_act_and_keep_their_own_value():
    assert on_all_ranks(lambda rank: rank.together(lambda: rank.rank)) == [0, 1, 2]
    assert on_all_ranks(lambda rank: rank.together(lambda: rank.rank, first_only=True)) == [0, 0, 0]
    assert Processes().together(lambda: None) is None and Processes.current() == Processes(0, 1)


@pytest.mark.parametrize("ranks, tells", [((0,), 0), ((2,), 2), ((1, 2), 1), ((0, 1, 2), 0)])
def test_one_rank_tells_what_is_wrong_and_all_end(ranks, tells):
    results = on_all_ranks(fails_on(*ranks))
    assert str(results.pop(tells)) == f"of rank {tells}"
    assert [type(error) for error in results] == [SystemExit, SystemExit] and results[0].code == 1


def test_only_the_first_rank_acts_and_its_error_ends_all():
    def work(rank):
        def action():
            raise OSError(f"of rank {rank.rank}")

        return rank.together(action, first_only=True)

    first, *others = on_all_ranks(work)
    assert isinstance(first, OSError) and str(first) == "of rank 0"
    assert [type(error) for error in others] == [SystemExit, SystemExit]


def test_a_rank_that_is_gone_is_said_in_one_line(monkeypatch):
    def gone(values, value):
        raise RuntimeError("Connection closed by peer\nand much more")

    monkeypatch.setattr("qwen_vl.evaluation.processes.distributed.all_gather_object", gone)
    with pytest.raises(ConnectionError, match=r"^rank 1: another process has ended; .*run the same command again$"):
        Processes(1, 2).gather(None)
    with pytest.raises(ConnectionError, match=r"^rank 1: another process has ended; pass --resume auto$"):
        Processes(1, 2, "pass --resume auto").together(lambda: None)
