"""Latency and memory: sane keys, the right order, exact bytes where they can be counted by hand."""

import gc

import pytest
import torch
from torch import Tensor, nn

from bayespare.errors import BayespareError
from bayespare.measure import latency, load_average, peak_memory
from bayespare.measure.latency import LEAST_CALLS, batch_of, one_thread


class Recorder(nn.Module):
    """Writes down who was called with how many rows, on how many threads."""

    def __init__(self, name: str, log: list[tuple[str, int, int]]) -> None:
        super().__init__()
        self.name, self.log = name, log
        self.training = True

    def forward(self, x: Tensor) -> Tensor:
        assert not self.training
        assert torch.is_inference_mode_enabled()
        self.log.append((self.name, len(x), torch.get_num_threads()))
        return x


def mlp(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))


def test_latency_has_the_keys_of_the_metrics_file_and_a_small_model_is_faster() -> None:
    models = {"dense": mlp(2000), "compact": mlp(4)}
    times = latency(models, torch.randn(3, 64), repeats=30, seconds=2)
    assert list(times) == ["dense", "compact"]
    assert all(list(t) == ["1", "256"] for t in times.values())
    assert 0 < times["compact"]["256"] < times["dense"]["256"]


def test_models_take_turns_on_one_thread_with_full_batches() -> None:
    log: list[tuple[str, int, int]] = []
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        models = {name: Recorder(name, log) for name in ("a", "b")}
        latency(models, torch.randn(3, 2), batches=(1, 7), repeats=10, seconds=5)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert {rows for _, rows, _ in log} == {1, 7}
    assert {count for _, _, count in log} == {1}
    timed = [name for name, rows, _ in log if rows == 7][-20:]
    assert timed == ["a", "b"] * 10
    assert all(model.training for model in models.values())


def test_a_spent_budget_still_times_a_few_calls() -> None:
    log: list[tuple[str, int, int]] = []
    latency({"a": Recorder("a", log)}, torch.randn(1, 2), batches=(1,), repeats=100, seconds=0)
    assert LEAST_CALLS <= len(log) < 20


def test_threads_come_back_after_an_error() -> None:
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError), one_thread():
        raise ZeroDivisionError
    assert torch.get_num_threads() == before


def test_batches_repeat_the_rows_of_the_example() -> None:
    assert batch_of(torch.tensor([1, 2, 3]), 7).tolist() == [1, 2, 3, 1, 2, 3, 1]
    assert batch_of(torch.tensor([[1], [2]]), 1).tolist() == [[1]]


def test_load_average_is_a_number_where_the_system_tells() -> None:
    load = load_average()
    assert load is None or load >= 0


@pytest.mark.parametrize(
    ("models", "rows", "options", "message"),
    [
        ({}, 1, {}, "at least one model"),
        ({"a": nn.Identity()}, 0, {}, "one row of input"),
        ({"a": nn.Identity()}, 1, {"repeats": 0}, "at least 1"),
        ({"a": nn.Identity()}, 1, {"batches": (1, 0)}, "at least 1"),
        ({"a": nn.Identity()}, 1, {"batches": ()}, "at least 1"),
    ],
)
def test_bad_latency_requests(
    models: dict[str, nn.Module], rows: int, options: dict[str, object], message: str
) -> None:
    with pytest.raises(BayespareError, match=message):
        latency(models, torch.zeros(rows, 2), **options)  # type: ignore[arg-type]


def test_peak_memory_of_a_chain_is_counted_by_hand() -> None:
    """Input, parameters, and the two neighbouring activations of the widest step are alive."""
    model = nn.Sequential(nn.Linear(10, 100), nn.ReLU(), nn.Linear(100, 20))
    parameters = 10 * 100 + 100 + 100 * 20 + 20
    peak = peak_memory(model, torch.randn(1, 10), batch=8)
    assert peak == 4 * (parameters + 8 * (10 + 100 + 100))


def test_views_and_in_place_operations_cost_nothing() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 50), nn.ReLU(inplace=True))
    peak = peak_memory(model, torch.randn(1, 3, 4), batch=5)
    assert peak == 4 * (12 * 50 + 50 + 5 * (12 + 50))


def test_memory_is_given_back_as_tensors_die_without_the_garbage_collector() -> None:
    gc.disable()
    try:
        deep = nn.Sequential(*[nn.ReLU() for _ in range(50)])
        assert peak_memory(deep, torch.randn(1, 1000), batch=1) == 3 * 4000
    finally:
        gc.enable()


def test_buffers_count_and_shared_parameters_count_once() -> None:
    norm = nn.BatchNorm1d(6)
    assert peak_memory(norm, torch.randn(1, 6), batch=1) >= 4 * (4 * 6 + 2 * 6) + 8
    one = nn.Linear(30, 30, bias=False)
    peak = peak_memory(nn.Sequential(one, one), torch.randn(1, 30), batch=1)
    assert peak == 4 * (900 + 3 * 30)


def test_bad_memory_requests() -> None:
    with pytest.raises(BayespareError, match="one row of input"):
        peak_memory(nn.Identity(), torch.zeros(0, 3))
    with pytest.raises(BayespareError, match="batch of 1"):
        peak_memory(nn.Identity(), torch.zeros(1, 3), batch=0)
