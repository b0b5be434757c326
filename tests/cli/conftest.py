"""Fixtures of the tests of commands."""

from functools import partial

import pytest
from helpers.records import write_file


@pytest.fixture
def write(tmp_path):
    """Return a function that writes a data file, from records or from raw bytes, and returns its path."""
    return partial(write_file, tmp_path)
