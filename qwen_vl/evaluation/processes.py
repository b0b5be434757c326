"""The processes of an evaluation: one, or the ranks that torchrun started. Each has a whole model of its own."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from torch import distributed

T = TypeVar("T")

RUN_AGAIN = "what is answered is on disk: run the same command again"


@dataclass(frozen=True)
class Processes:
    """This process among all of them."""

    rank: int = 0
    size: int = 1
    cure: str = RUN_AGAIN  # what to do if another process has ended

    @classmethod
    def current(cls, cure: str = RUN_AGAIN) -> "Processes":
        """Return the ranks of torch.distributed if it is initialized, else this process alone."""
        if distributed.is_available() and distributed.is_initialized():
            return cls(distributed.get_rank(), distributed.get_world_size(), cure)
        return cls(cure=cure)

    @property
    def is_first(self) -> bool:
        """Return whether this process reads, merges, scores and prints for all."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """Return the values of all ranks, in their order; raise ConnectionError if another one has ended."""
        if self.size == 1:
            return [value]
        values: list[T] = [value] * self.size
        try:
            distributed.all_gather_object(values, value)
        except RuntimeError as error:
            raise ConnectionError(f"rank {self.rank}: another process has ended; {self.cure}") from error
        return values

    def together(self, action: Callable[[], T], *, first_only: bool = False) -> T:
        """Return what `action` returns. If it fails on any rank all of them end here, and only one tells why.

        first_only: rank 0 alone runs it, and all ranks get its value, which must be picklable.
        """
        value: T | None = None
        failure: Exception | None = None
        if self.is_first or not first_only:
            try:
                value = action()
            except Exception as error:
                if self.size == 1:
                    raise
                failure = error
        if self.size == 1:
            return value  # type: ignore[return-value] # None only if the action returns it
        outcomes = self.gather((failure is not None, value if first_only else None))
        failed = [rank for rank, (has_failed, _) in enumerate(outcomes) if has_failed]
        if failed and failed[0] == self.rank and failure is not None:
            raise failure
        if failed:
            raise SystemExit(1)  # one error is enough
        return outcomes[0][1] if first_only else value  # type: ignore[return-value] # as above
