"""The state of a fit: what a copy shares, what is saved, and what comes back."""

import copy
from dataclasses import replace

import pytest
import torch
from small_runs import FITS, Problem, assert_identical, table, train
from torch import Tensor

from bayespare import nets
from bayespare.bayes.likelihood import likelihood_for
from bayespare.errors import BayespareError
from bayespare.training.fit import Fit, Sample

EVERY = pytest.mark.parametrize("problem", FITS.values(), ids=FITS)


def worn(problem: Problem) -> Fit:
    """Trained, shrunk and trained again."""
    fit = problem.start()
    train(fit, problem)
    fit.update()
    odds = fit.method.log_odds()
    random = torch.Generator().manual_seed(0)
    fit.remove({n: torch.rand(len(v), generator=random) < 0.7 for n, v in odds.items()})
    train(fit, problem)
    fit.epoch = 2
    return fit


def snapshot(fit: Fit) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in fit.state()[0].items()}


# ------------------------------------------------------------------------ copy


@EVERY
def test_a_copy_is_independent_of_what_it_was_copied_from(problem):
    fit = worn(problem)
    before, state = snapshot(fit), fit.generator.get_state()
    copied = fit.copy()
    assert copied.generator is fit.generator
    assert copied.method.generator is fit.generator
    assert copied.method.network[0] is copied.network
    train(copied, problem)
    copied.decide()
    assert_identical(snapshot(fit), before)
    # And it is a faithful one: from the same noise both go the same way.
    other = fit.copy()
    for one in (fit, other):
        fit.generator.set_state(state)
        train(one, problem)
    assert_identical(snapshot(fit), snapshot(other))


# --------------------------------------------------------------- state, restore


@EVERY
@pytest.mark.parametrize("decided", [False, True])
def test_a_restored_fit_is_the_saved_one_bit_for_bit(problem, decided):
    fit = worn(problem)
    if decided:
        fit.decide()
        train(fit, problem)
    fit.method.tempering = 0.37
    tensors, meta = fit.state()
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    noise = fit.generator.get_state()
    fresh = problem.start(seed=99)
    fresh.restore(tensors, meta)
    assert fresh.state()[1] == meta
    assert_identical(snapshot(fresh), tensors)
    assert fresh.parameters() == fit.parameters()
    assert fresh.method.plan.to_json() == fit.method.plan.to_json()
    data = table(problem.task, problem.inputs)
    with torch.no_grad():
        assert torch.equal(fresh.network.eval()(data.x), fit.network.eval()(data.x))
    for one in (fit, fresh):
        one.generator.set_state(noise)
        one.method.begin_epoch()
        train(one, problem, 2)
        one.update()
    assert_identical(snapshot(fresh), snapshot(fit))


def test_a_decided_fit_comes_back_whatever_its_gates_started_at():
    problem = Problem(method="ss-ig", settings={"start_inclusion": 0.3})
    fit = problem.start()
    with torch.no_grad():
        fit.method.gates.fill_(2.0)
    fit.decide()
    tensors, meta = fit.state()
    fresh = problem.start()
    fresh.restore(tensors, meta)
    assert_identical(snapshot(fresh), tensors)


OTHERS = [
    Problem(make=lambda: nets.build("mlp:16,9", inputs=(6,), outputs=3)),
    Problem(make=lambda: nets.build("mlp:16", inputs=(6,), outputs=3)),
    Problem(make=lambda: nets.build("mlp:17,8", inputs=(6,), outputs=3)),
    Problem(method="ss-ig"),
]


@pytest.mark.parametrize("other", OTHERS, ids=range(4))
def test_the_state_of_another_run_is_refused(other):
    tensors, meta = worn(Problem()).state()
    with pytest.raises(BayespareError, match="does not fit") as caught:
        other.start().restore(tensors, meta)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "missing", ["keep/fc1", "network/fc1.weight", "method/gates", "epoch", "price"]
)
def test_a_state_that_lacks_something_is_refused(missing):
    tensors, meta = worn(Problem()).state()
    tensors, meta = ({k: v for k, v in d.items() if k != missing} for d in (tensors, meta))
    with pytest.raises(BayespareError, match="does not fit") as caught:
        Problem().start().restore(tensors, meta)
    assert "\n" not in str(caught.value)


# ----------------------------------------------------------------------- rates


@EVERY
def test_every_rate_keeps_its_proportion(problem):
    """At the start, after the decision, and in a fit that comes back."""
    network = problem.make()
    likelihood = likelihood_for(problem.task)

    def start(rate: float) -> Fit:
        fit = problem.start(copy.deepcopy(network))
        generator = torch.Generator().manual_seed(3)
        return Fit.start(fit.network, fit.method, likelihood, generator, 512, rate)

    def rates(fit: Fit) -> list[float]:
        groups = fit.optimizer.param_groups
        assert all(group["lr"] == group["base_lr"] for group in groups)
        return [group["lr"] for group in groups]

    usual, tenfold = start(1.0), start(10.0)
    assert rates(tenfold) == pytest.approx([10 * rate for rate in rates(usual)])
    usual.decide()
    tenfold.decide()
    assert rates(tenfold) == pytest.approx([10 * rate for rate in rates(usual)])
    back = start(10.0)
    back.restore(*tenfold.state())
    assert rates(back) == rates(tenfold)


# ---------------------------------------------------------------------- samples


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_the_loss_that_removals_raise_has_the_scale_of_the_weights(scale):
    """It is compared with what a method foretells of the loss that is minimised."""
    fit, data = Problem().start(), table()
    data = replace(data, weight=scale * torch.linspace(0.5, 2, len(data)))
    fit.network.eval()
    fit.method.looking = True
    with torch.no_grad():
        losses = fit.likelihood.nll(fit.network(data.x), data.y)
    found = fit._loss(Sample.of(data, len(data)))
    assert found == pytest.approx(float((losses * data.weight).sum()), rel=1e-5)


# --------------------------------------------------------------------- verdicts


def test_odds_are_kept_for_units_that_are_gone():
    problem = Problem(method="ss-ig")
    fit = problem.start()
    with torch.no_grad():
        fit.method.gates.copy_(torch.linspace(-8, 4, len(fit.method.gates)))
    odds = torch.cat(list(fit.method.log_odds().values()))
    fit.update()
    with torch.no_grad():
        fit.method.gates.add_(1)
    fit.decide()
    noted = torch.cat(list(fit.odds.values()))
    gone = torch.cat(list(fit.method.keep.values())).logical_not() & (odds < -4.6)
    assert gone.any()
    assert torch.equal(noted[gone], odds[gone])
    assert (noted[odds > 0] == odds[odds > 0] + 1).all()


@EVERY
def test_the_verdict_now_is_the_decision_later(problem):
    fit = worn(problem)
    with torch.no_grad():
        fit.method.gates.normal_(generator=torch.Generator().manual_seed(1))
    verdict, parameters = fit.verdict(), fit.parameters()
    fit.decide()
    for group in fit.method.whole.groups:
        assert torch.equal(verdict.of(group), fit.method.keep[group.name])
    assert sum(p.numel() for p in fit.network.parameters()) == parameters == fit.parameters()
