"""Rounds of post-hoc reduction: the prior's fixed point, what goes, and what stays zero."""

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from bayespare import trace
from bayespare.bayes.curvature import curvature
from bayespare.bayes.likelihood import Distilled, Likelihood, likelihood_for
from bayespare.data import Dataset
from bayespare.errors import BayespareError
from bayespare.posthoc import ReduceOptions, Rounds, Size, tune, up_to_summit
from bayespare.posthoc.priors import WeightPriors, evidence_precision
from bayespare.posthoc.removal import _affordable, _work, remove_units, remove_weights
from bayespare.posthoc.sizes import find_last, summits
from bayespare.structure.costs import unit_costs


def test_the_precision_has_the_highest_evidence() -> None:
    torch.manual_seed(0)
    w, h = torch.randn(50, dtype=torch.float64), 9 * torch.rand(50, dtype=torch.float64)
    there = torch.rand(50) > 0.3
    found = evidence_precision(w, h, there)
    assert found is not None
    # MacKay's condition: gamma = d sum w^2 on what is there.
    gamma = float((h / (h + found))[there].sum())
    assert found * float(w[there].square().sum()) == pytest.approx(gamma, rel=1e-6)


def test_there_is_no_precision_without_weights_or_curvature() -> None:
    one, there = torch.ones(3), torch.ones(3, dtype=torch.bool)
    assert evidence_precision(0 * one, one, there) is None
    assert evidence_precision(one, 0 * one, there) is None


def test_a_heavier_loss_never_chooses_a_larger_rise() -> None:
    steps = [(0.0, 0.0), (100.0, 5.0), (150.0, 30.0), (160.0, 500.0)]
    sizes = [Size(str(i), nn.Linear(1, 1), {}, {}, g, r) for i, (g, r) in enumerate(steps)]
    assert [size.name for size in summits(sizes)] == ["2", "1", "1"]
    assert [size.name for size in up_to_summit(sizes)] == ["0", "1", "2"]


def test_bad_options_are_refused() -> None:
    with pytest.raises(BayespareError, match="sparsity="):
        ReduceOptions(unit="weight", max_params=10)
    with pytest.raises(BayespareError, match="did you mean 'finetune'"):
        ReduceOptions.of(finetun=1)


def taught(options: ReduceOptions) -> tuple[nn.Module, Dataset, Likelihood]:
    """A network that knows the sign of a sum of two of its twelve inputs."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(600, 12, generator=generator)
    data = Dataset(x, (x[:, 0] + x[:, 1] > 0).long(), "classification", classes=("0", "1"))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 2))
    likelihood = likelihood_for("classification")
    tune(model, {}, likelihood, data, 8, options, generator)
    return model, data, likelihood


@pytest.mark.parametrize("unit", ["weight", "unit"])
def test_rounds_remove_and_what_is_removed_stays_zero(unit: str) -> None:
    options = ReduceOptions(unit=unit, rounds=3, samples=400, lr=1e-2)
    model, data, likelihood = taught(options)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    plan = trace(model, data.x[:2]) if unit == "unit" else None
    rows: list[dict[str, float]] = []
    given = (model, plan, data, data, likelihood, options, lambda _: True, rows.append)
    sizes = Rounds(*given).run()
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    assert len(sizes) > 1
    assert rows[-1]["valid_score"] > 0.9
    for last, size in itertools.pairwise(sizes):
        parameters = dict(size.model.named_parameters())
        assert size.nonzeros < last.nonzeros
        for name, mask in size.masks.items():
            assert not parameters[name][~mask].any()
        there, left = (
            sum(int(s.masks[n].sum()) for n, p in model.named_parameters() if p.ndim > 1)
            for s in (last, size)
        )
        assert left >= (1 - options.share) * there - 1


@pytest.mark.parametrize("unit", ["weight", "unit"])
def test_two_halves_of_a_round_remove_what_a_round_does(unit: str) -> None:
    options = ReduceOptions(unit=unit, rounds=1, samples=400, lr=1e-2)
    model, data, likelihood = taught(options)
    plan = trace(model, data.x[:2]) if unit == "unit" else None
    given = (model, plan, data, data, likelihood, options, lambda _: True, lambda _: None)
    rounds = Rounds(*given)
    _, last = rounds.run()
    was = {name: mask.clone() for name, mask in last.masks.items()}

    def there(size: Size) -> int:
        return sum(int(size.masks[n].sum()) for n, p in model.named_parameters() if p.ndim > 1)

    half = rounds.between(last, 0.5)
    assert half is not None
    more = rounds.between(half, 0.5)
    assert more is not None
    assert [half.name, more.name] == ["r01.5", "r02"]
    assert all(torch.equal(last.masks[name], mask) for name, mask in was.items())
    assert not any(bool((half.masks[n] & ~last.masks[n]).any()) for n in half.masks)
    sizes = [there(size) for size in (last, half, more)]
    part = (1 - options.share) ** 0.5
    for before, after in itertools.pairwise(sizes):
        # A unit is twelve weights in and two out, of a hundred and more.
        assert part * before - 1 <= after < before
        assert after <= part * before + (15 if unit == "unit" else 1)


def test_what_another_aim_does_to_the_loss_is_no_rise() -> None:
    """Trained towards even odds, labels fit much worse; no removal is to blame for that."""
    options = ReduceOptions(rounds=2, samples=600, lr=1e-2)
    model, data, likelihood = taught(options)
    even = torch.full((600, 2), 0.5)
    soft = (Distilled(), replace(data, y=Distilled.targets(data.y, even, 0.5)))
    rows: list[dict[str, float]] = []
    plan = trace(model, data.x[:2])
    given = (model, plan, data, data, likelihood, options, lambda _: True, rows.append)
    _, first, second = Rounds(*given, soft).run()
    assert rows[1]["train_nll"] > rows[0]["train_nll"] + 0.1
    assert second.rise == pytest.approx(first.rise + rows[1]["realised_rise"])


def test_the_predicted_rise_of_units_is_what_they_cost_alone() -> None:
    model, data, likelihood = taught(ReduceOptions(lr=1e-2))
    plan = trace(model, data.x[:2])
    batches = [(data.x, data.y)]
    removal = remove_units(
        model, plan, plan.all_units, batches, likelihood, 600, 0.3,
        torch.Generator().manual_seed(0), trust=0.5,
    )  # fmt: skip
    assert removal is not None
    found = curvature(
        model,
        likelihood,
        batches,
        structure="kfac",
        generator=torch.Generator().manual_seed(0),
    )
    costs = unit_costs(model, plan, batches, curvature=found)
    wanted = sum(float(costs[n][~removal.keep[n]].sum()) for n in costs)
    assert removal.cost == pytest.approx(wanted * 600 / found.examples, rel=1e-5)
    assert removal.gain - removal.predicted > removal.cost


def test_the_predicted_rise_of_weights_is_the_loss_of_the_quadratic() -> None:
    """In a regression the loss is a parabola in each weight, so one weight's rise is exact."""
    torch.manual_seed(0)
    x = torch.linalg.qr(torch.randn(200, 4).double()).Q * torch.tensor([9.0, 6.0, 4.0, 0.0])
    y = x @ torch.tensor([[0.8], [0.1], [-0.6], [0.3]]).double() + 0.5 * torch.randn(200, 1)
    model = nn.Linear(4, 1, bias=False).double()
    model.weight.data[:, :3] = torch.linalg.lstsq(x[:, :3], y).solution.T
    model.weight.data[0, 3] = 0.3  # nothing depends on it
    likelihood = likelihood_for("regression").double()
    likelihood.log_noise.data.fill_(-0.7)
    masks = {"weight": torch.ones(1, 4, dtype=torch.bool)}
    batches = [(x, y)]
    removal = remove_weights(
        model, masks, batches, likelihood, 200, 0.5, torch.Generator().manual_seed(0), trust=0.4
    )
    assert removal is not None
    gone = ~removal.masks["weight"][0]
    assert gone.tolist() == [False, True, False, True]
    before = likelihood.nll(model(x), y).sum().item()
    model.weight.data *= removal.masks["weight"]
    realised = likelihood.nll(model(x), y).sum().item() - before
    assert removal.cost == pytest.approx(realised, rel=0.2)  # the labels are sampled
    assert removal.predicted == pytest.approx(removal.gain - removal.cost)


@pytest.mark.parametrize("unit", ["weight", "unit"])
def test_what_the_data_ignore_goes_at_once(unit: str) -> None:
    """Inputs that are always zero, and units that never fire."""
    model, data, likelihood = taught(ReduceOptions(lr=1e-2))
    with torch.no_grad():
        model[0].bias[:5] = -50
    x = data.x.clone()
    x[:, 8:] = 0
    batches, generator = [(x, data.y)], torch.Generator().manual_seed(0)
    if unit == "weight":
        masks = {n: torch.ones_like(p).bool() for n, p in model.named_parameters() if p.ndim > 1}
        removal = remove_weights(model, masks, batches, likelihood, 600, 0.6, generator)
        assert removal is not None
        assert not removal.masks["0.weight"][:, 8:].any()
        assert not removal.masks["2.weight"][:, :5].any()
    else:
        plan = trace(model, data.x[:2])
        removal = remove_units(
            model, plan, plan.all_units, batches, likelihood, 600, 0.6, generator
        )
        assert removal is not None
        assert not any(removal.keep[plan.groups[0].name][8:])
        assert not any(removal.keep[plan.groups[1].name][:5])
        assert removal.keep[plan.groups[0].name][:2].all()


class Unwilling:
    """A live network of which no prediction lets anything go."""

    def __init__(self) -> None:
        self.asked: list[bool] = []

    def decide(self, *_measured: object, trust: float, forced: bool) -> str | None:
        self.asked.append(forced)
        return "the cheapest" if forced else None

    def little(self, _removal: object) -> bool:
        return False


def test_rounds_go_on_by_cost_where_predictions_end() -> None:
    options = ReduceOptions(samples=600, lr=1e-2)
    model, data, likelihood = taught(options)
    plan = trace(model, data.x[:2])
    rounds = Rounds(model, plan, data, data, likelihood, options, lambda _: True, lambda _: None)
    live = Unwilling()
    assert rounds._decided(live, 1) is None  # at first the evidence has a veto
    assert not any(live.asked)
    assert rounds._decided(live, 2) == "the cheapest"
    live.asked.clear()
    assert rounds._decided(live, 3) == "the cheapest"
    assert live.asked == [True]


@pytest.mark.parametrize("most", [0.0, 10.0, 25.0, 1e9])
def test_as_many_units_go_as_their_weights_allow(most: float) -> None:
    generator = torch.Generator().manual_seed(0)
    order = {n: torch.rand(8, generator=generator) for n in "ab"}
    sizes = {n: 1 + 9 * torch.rand(8, generator=generator) for n in "ab"}
    candidates = {n: torch.rand(8, generator=generator) > 0.3 for n in "ab"}
    pairs = [
        (float(order[n][i]), float(sizes[n][i])) for n in "ab" for i in range(8) if candidates[n][i]
    ]
    spent, wanted = 0.0, 0
    for _, size in sorted(pairs):
        spent += size
        wanted += spent <= most
    assert _affordable(order, candidates, sizes, most) == max(1, wanted)
    none = {n: torch.zeros(8, dtype=torch.bool) for n in "ab"}
    assert _affordable(order, none, sizes, most) == 0


def test_the_work_of_conditional_costs_is_small_where_most_is_there_or_most_is_gone() -> None:
    generator = torch.Generator().manual_seed(0)
    order = torch.rand(20, 3, 100, generator=generator)
    work = {d: _work(order < d) for d in (0.02, 0.5, 0.55, 0.98)}
    assert work[0.02] < 1e-3 * work[0.5]
    assert work[0.98] < 1e-2 * work[0.5]
    rows = (order < 0.55).flatten(1).sum(1).tolist()
    by_hand = [min(k**3, (300 - k) ** 3 / 3 + 300 * (300 - k) ** 2) for k in rows]
    assert work[0.55] == pytest.approx(sum(by_hand))


def test_the_penalty_is_the_density_of_the_priors() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4), nn.Linear(4, 2)).double()
    bends = {name: 20 * torch.rand_like(p) for name, p in model.named_parameters()}
    priors = WeightPriors(model, bends, 50)
    assert set(priors.precisions) == {"0.weight", "2.weight"}, "biases and scales have none"

    @torch.no_grad()
    def density() -> float:
        parts = []
        for name, precision in priors.precisions.items():
            weight = model.get_parameter(name)
            normal = torch.distributions.Normal(0.0, precision**-0.5)
            parts.append((normal.log_prob(weight) - normal.log_prob(0 * weight)).sum())
        return float(torch.stack(parts).sum())

    assert priors.penalty().item() == pytest.approx(-density() / 50, rel=1e-6)
    with torch.no_grad():
        model[0].weight.mul_(3)
    # It follows the weights, at the precisions they started with.
    assert priors.penalty().item() == pytest.approx(-density() / 50, rel=1e-6)


def test_training_under_priors_finds_the_ridge_solution() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 6, generator=generator)
    y = x @ torch.randn(6, generator=generator) + 2 * torch.randn(400, generator=generator)
    data = Dataset(x, y, "regression")
    model = nn.Linear(6, 1, bias=False)
    likelihood = likelihood_for("regression")
    # Of unit noise the curvature of the loss is that of least squares.
    priors = WeightPriors(model, {"weight": x.square().sum(0, keepdim=True)}, 400)
    priors.precisions["weight"] = 300.0
    options = ReduceOptions(lr=0.05)
    tune(model, {}, likelihood, data, 30, options, generator, priors=priors)
    ridge = torch.linalg.solve(x.T @ x + 300 * torch.eye(6), x.T @ y)
    least = torch.linalg.solve(x.T @ x, x.T @ y)
    assert (ridge - least).norm() > 0.3
    torch.testing.assert_close(model.weight.detach().flatten(), ridge, rtol=0.02, atol=0.02)


@given(st.integers(1, 40).flatmap(lambda n: st.tuples(st.just(n), *[st.integers(0, n - 1)] * 2)))
def test_both_sides_of_the_edge_are_tried_and_a_good_guess_saves_tries(drawn) -> None:
    count, start, edge = drawn
    tried: list[int] = []

    def good(place: int) -> bool:
        tried.append(place)
        return place < edge

    find_last(count, start, good)
    assert len(tried) == len(set(tried))
    assert {max(0, edge - 1), edge} <= set(tried)
    away = 1 + abs(start - edge)
    assert len(tried) <= 2 + 2 * away.bit_length()


def test_where_every_place_is_good_the_last_is_tried() -> None:
    tried: list[int] = []
    find_last(9, 6, lambda place: tried.append(place) is None)
    assert tried == [6, 7, 8]
