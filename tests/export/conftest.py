"""Fixtures of all export tests."""

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """Use one thread, since more only slow down so small a model."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
