"""Problems of a file, collected and raised together."""

MAX_SHOWN = 10


class Problems:
    """Collects what is wrong with the records of a file, so that one error can tell all of it."""

    def __init__(self) -> None:
        self.shown: list[str] = []
        self.num = 0

    def add(self, message: object) -> None:
        """Add a message that names file, row, field and what to do."""
        self.num += 1
        if len(self.shown) < MAX_SHOWN:
            self.shown.append(str(message))

    def raise_if_any(self) -> None:
        """Raise ValueError with the first messages and the number of the others, if there are any."""
        if self.num > len(self.shown):
            raise ValueError("\n".join([*self.shown, f"and {self.num - len(self.shown)} more problems like these"]))
        if self.num:
            raise ValueError("\n".join(self.shown))
