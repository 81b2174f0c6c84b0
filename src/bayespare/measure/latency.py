"""Time per forward pass, measured so that two models can be compared."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from statistics import median
from time import perf_counter

import torch
from torch import Tensor, nn

from bayespare.errors import BayespareError
from bayespare.measure.predictions import device_of, evaluating

WARM_UP_CALLS = 3
LEAST_CALLS = 5


def latency(
    models: Mapping[str, nn.Module],
    example: Tensor,
    *,
    batches: tuple[int, ...] = (1, 256),
    repeats: int = 200,
    seconds: float = 2.0,
) -> dict[str, dict[str, float]]:
    """Median time per call of each model, on one CPU thread.

    The models take turns, call by call, so that whatever else the machine does meets all of them
    alike. The number of threads and the modes of the layers are as before afterwards.

    Args:
        models: Name to model.
        example: Rows of input, shape ``(rows, ...)``, repeated to fill each batch.
        batches: Batch sizes to time.
        repeats: Most timed calls per model and batch size.
        seconds: Time budget per batch size, warm-up included; at least five calls per model are
            timed whatever they cost.

    Returns:
        Model name to batch size (a string, as in ``metrics.json``) to milliseconds per call.

    Raises:
        BayespareError: If there is no model, no row of input, or an option below 1.
    """
    if not models or example.dim() < 1 or len(example) == 0:
        raise BayespareError("latency: needs at least one model and one row of input")
    if repeats < 1 or not batches or min(batches) < 1:
        raise BayespareError(
            f"latency: repeats ({repeats}) and batches {batches} must be at least 1"
        )
    times: dict[str, dict[str, float]] = {name: {} for name in models}
    with one_thread(), evaluating(*models.values()), torch.inference_mode():
        for batch in batches:
            calls = _interleaved(models, batch_of(example, batch), repeats, seconds)
            for name, milliseconds in calls.items():
                times[name][str(batch)] = median(milliseconds)
    return times


def batch_of(example: Tensor, rows: int) -> Tensor:
    """Repeat the rows of an example to a batch of the given size."""
    return example[torch.arange(rows, device=example.device) % len(example)].contiguous()


def load_average() -> float | None:
    """Processes that wanted a core in the last minute; above the number of cores, times mislead.

    None where the system does not tell.
    """
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return None


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one CPU thread; the number of threads comes back afterwards."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _interleaved(
    models: Mapping[str, nn.Module], inputs: Tensor, repeats: int, seconds: float
) -> dict[str, list[float]]:
    """Milliseconds of every timed call; the calls of a round differ by the model alone."""
    placed = {name: (model, inputs.to(device_of(model))) for name, model in models.items()}
    end = perf_counter() + seconds
    for model, x in placed.values():
        for _ in range(WARM_UP_CALLS):
            _timed(model, x)
    calls: dict[str, list[float]] = {name: [] for name in placed}
    for done in range(max(repeats, LEAST_CALLS)):
        if done >= LEAST_CALLS and perf_counter() > end:
            break
        for name, (model, x) in placed.items():
            calls[name].append(_timed(model, x))
    return calls


def _timed(model: nn.Module, x: Tensor) -> float:
    """Milliseconds of one call, waiting for the device where calls return before they end."""
    _wait(x.device)
    start = perf_counter()
    model(x)
    _wait(x.device)
    return 1000 * (perf_counter() - start)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
