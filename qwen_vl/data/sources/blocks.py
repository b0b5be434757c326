"""What the file objects of all kinds share: blocks of a file, places of records, and how rows become records."""

from collections.abc import Callable
from typing import NamedTuple

from .columns import ColumnMap

Block = tuple[int, int]  # from, to: bytes or rows
Placed = tuple[Callable[[], str], object]  # (function that returns the place, record)


class Recipe(NamedTuple):
    """How the rows of a file become records: by a map of columns, or as they are. base: see `locating.Located`."""

    base: str = ""
    columns: ColumnMap | None = None


AS_IT_IS = Recipe()


def ranges(total: int, size: int, num: int) -> list[Block]:
    """Return ranges that cover 0..total, none longer than `size`, at least `num` of them if the total allows."""
    size = max(1, min(size, -(-total // num)))
    return [(start, min(start + size, total)) for start in range(0, total, size)]
