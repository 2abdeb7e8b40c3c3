"""The fixture that tests of modules have besides those of all tests."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread():
    """Tensors here are so small that several threads mostly wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
