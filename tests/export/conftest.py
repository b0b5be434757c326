"""What all tests of exports share."""

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """So small a model only waits for others."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
