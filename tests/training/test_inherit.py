"""What a smaller network takes over from a larger one: shared units, refitted, and no less."""

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from small_runs import SHORT, Problem, small_conv, small_mlp, table, train
from torch import Tensor, nn

from bayespare.data import Dataset
from bayespare.training.fit import Fit
from bayespare.training.inherit import inherited

CONV = Problem(small_conv, inputs=(1, 6, 6))
PROBLEMS = {
    "mlp": Problem(),
    "conv": CONV,
    "scales": replace(CONV, method="ss-gl", settings={"centred": False}),
    "rows": Problem(method="tiered-ff"),
    "bmr": Problem(method="bmr"),
}
EVERY = pytest.mark.parametrize("name", PROBLEMS)


def fitted(problem: Problem, lines: Mapping[str, Tensor]) -> Fit:
    """A trained fit with these units of some groups, taken as decided."""
    fit = problem.start()
    train(fit, problem, 5)
    fit.odds |= {name: odds.float() for name, odds in fit.method.log_odds().items()}
    fit.remove(lines)
    fit.method.settle()
    fit.restart()
    return fit


def halves(fit: Fit) -> dict[str, Tensor]:
    """Every second unit of each group that is not the input."""
    return {
        name: torch.arange(len(line)) % 2 == 0
        for name, line in fit.method.keep.items()
        if name != "input"
    }


def outputs(network: nn.Module, data: Dataset) -> Tensor:
    with torch.no_grad():
        return network.eval()(data.x)


@EVERY
def test_what_survives_says_what_the_larger_one_said(name):
    problem = PROBLEMS[name]
    data = table(inputs=problem.inputs)
    larger = fitted(problem, {})
    smaller = fitted(problem, halves(larger))
    said = outputs(larger.network, data)
    fit = inherited(larger, smaller, problem.make(), data)
    assert fit is not smaller
    cut = inherited(larger, smaller, problem.make(), None)
    refitted, plain = (
        float((outputs(network, data) - said).square().mean())
        for network in (fit.network, cut.network)
    )
    assert refitted < 0.8 * plain
    for group, line in fit.method.keep.items():
        assert torch.equal(line, smaller.method.keep[group])
        assert torch.equal(fit.odds[group], smaller.odds[group])
    assert fit.epoch == smaller.epoch
    assert not fit.optimizer.state
    torch.testing.assert_close(outputs(larger.network, data), said)


def test_without_a_refit_the_weights_are_those_of_the_larger_one():
    """Row by row and column by column."""
    problem = Problem()
    larger, smaller = (fitted(problem, {"fc1": torch.arange(16) < n}) for n in (12, 5))
    fit = inherited(larger, smaller, small_mlp(), None)
    assert fit.verdict().kept == smaller.verdict().kept
    for name in ("fc1.weight", "fc1.bias"):
        theirs = larger.network.get_parameter(name)[:5]
        assert torch.equal(fit.network.get_parameter(name), theirs)
    second = larger.network.get_parameter("fc2.weight")[:, :5]
    assert torch.equal(fit.network.get_parameter("fc2.weight"), second)
    assert larger.parameters() > fit.parameters() == smaller.parameters()


def test_units_that_only_the_smaller_one_has_are_not_taken_up_again():
    larger = fitted(CONV, {"hidden": torch.arange(8) < 6})
    smaller = fitted(CONV, {"hidden": torch.arange(8) > 3})
    fit = inherited(larger, smaller, small_conv(), table(inputs=CONV.inputs))
    assert fit.method.keep["hidden"].nonzero().squeeze(1).tolist() == [4, 5]
    assert torch.equal(fit.odds["hidden"][6:], larger.odds["hidden"][6:])
    assert torch.equal(fit.odds["hidden"][:6], smaller.odds["hidden"][:6])


def test_where_no_unit_is_shared_the_smaller_one_goes_on_by_itself():
    larger = fitted(CONV, {"hidden": torch.arange(8) < 4})
    smaller = fitted(CONV, {"hidden": torch.arange(8) >= 4})
    assert inherited(larger, smaller, small_conv(), table(inputs=CONV.inputs)) is smaller


def test_single_weights_that_are_gone_do_not_come_back():
    problem = Problem(
        small_mlp, "bmr", {"unit": "weight", "warm_up": 3, "every": 3, "tie": 1.0}, schedule=SHORT
    )
    larger, smaller = problem.start(), problem.start()
    larger.method.settle()
    train(smaller, problem, 5)
    smaller.decide()
    assert smaller.parameters() < larger.parameters()
    assert inherited(larger, smaller, small_mlp(), table()) is smaller
