"""What all tests share: one thread, no deadlines, the same examples everywhere in CI."""

import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)

settings.register_profile("local", deadline=None)
settings.register_profile("automatic", deadline=None, derandomize=True)
settings.load_profile("automatic" if os.environ.get("CI") else "local")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Every test starts from the same numbers, whatever ran before it in this process."""
    torch.manual_seed(0)


@pytest.fixture
def float64() -> Iterator[None]:
    """New tensors are float64 while the test runs."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)
