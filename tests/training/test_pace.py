"""How long an epoch takes, and times as people write them."""

import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_runs import Problem, dropping, small_mlp, table
from torch import Tensor, nn

from bayespare.errors import BayespareError
from bayespare.training.pace import Pace, measure_pace, seconds_in, spoken
from bayespare.training.schedule import Schedule, Settings


@pytest.mark.parametrize(
    ("text", "seconds"),
    [(90, 90), (0.5, 0.5), ("90", 90), ("90s", 90), ("10m", 600), ("2H", 7200), (" 1.5h ", 5400)],
)
def test_times_are_read_with_their_unit(text, seconds):
    assert seconds_in(text) == seconds


@pytest.mark.parametrize("text", ["", "abc", "0", "-3", "3d", "1m30s", "nan", "1e999", "1.2.3", 0])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(BayespareError, match="must be a time above 0, such as 90, 90s, 10m or 2h"):
        seconds_in(text)


@given(st.floats(0.1, 1e6))
def test_a_spoken_time_is_enough_and_not_much_more(seconds):
    again = seconds_in(spoken(seconds))
    assert seconds <= again + 1e-6
    assert again <= max(1.6 * seconds, seconds + 1)


class Slow(nn.Module):
    """A network whose step takes a known time."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(6, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(0.004)
        return self.out(self.hidden(x).relu())


@pytest.mark.parametrize(("batch", "steps"), [(10, 12), (60, 2), (120, 1)])
def test_an_epoch_is_its_steps(batch, steps):
    problem = Problem(Slow)
    pace = measure_pace(
        Slow(), table(), Settings(batch, torch.device("cpu")), lambda n, _: problem.start(n)
    )
    for seconds in (pace.dense, pace.noisy):
        assert 0.004 * steps < seconds < 0.03 * steps


def test_timing_leaves_nothing_behind():
    """Neither in the model nor in a random stream."""
    torch.manual_seed(0)
    model, problem = dropping(), Problem(dropping)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    measure_pace(model, table(), Settings(16, torch.device("cpu")), lambda n, _: problem.start(n))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert type(next(model.children())) is nn.Linear
    assert small_mlp().training


def test_a_run_is_as_long_as_its_phases():
    pace = Pace(dense=2.0, noisy=5.0)
    schedule = Schedule(warm=3, explore=4, cool=10, candidates=2)
    phases = 3 * 2.0 + 4 * 5.0 + 20 * 0.35 * 5.0
    assert pace.seconds(schedule, 0) == pytest.approx(1.25 * phases + 0.02 * schedule.total)
    more = pace.seconds(schedule, 7) - pace.seconds(schedule, 0)
    assert more == pytest.approx(1.25 * 7 * 2.0)
