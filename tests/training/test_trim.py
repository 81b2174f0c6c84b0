"""Cutting down to a budget: just enough goes, the cheapest evidence per parameter first."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_runs import Problem, small_conv, small_mlp, table

from bayespare import count, nets
from bayespare.training.budget import Budget
from bayespare.training.finish import finish
from bayespare.training.schedule import Schedule
from bayespare.training.shrink import remaining_parameters
from bayespare.training.trim import REFILLED, trim, unit_sizes

NETS = {
    "mlp": (small_mlp, (6,)),
    "conv": (small_conv, (1, 6, 6)),
    "lenet5": (lambda: nets.build("lenet5", inputs=(1, 20, 20), outputs=3, seed=0), (1, 20, 20)),
}


def undecided(name: str, seed: int):
    make, inputs = NETS[name]
    fit = Problem(make, inputs=inputs).start()
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        fit.method.gates.normal_(1.0, 2.0, generator=random)
    return fit


@pytest.mark.parametrize("name", NETS)
def test_the_size_of_a_unit_is_what_the_network_loses_with_it(name):
    fit = undecided(name, 0)
    plan = fit.method.plan
    whole = {g.name: torch.ones(g.size, dtype=torch.bool) for g in plan.groups}
    total = remaining_parameters(fit.network, plan, whole)
    for group, sizes in unit_sizes(fit.network, plan).items():
        for unit in {0, len(sizes) // 2, len(sizes) - 1}:
            without = {**whole, group: whole[group].clone()}
            without[group][unit] = False
            assert total - remaining_parameters(fit.network, plan, without) == sizes[unit]


@settings(max_examples=15, deadline=None)
@given(name=st.sampled_from(["mlp", "conv"]), seed=st.integers(0, 99), share=st.floats(0.1, 0.95))
def test_it_stops_at_the_first_price_that_is_enough_or_spares_a_large_unit_and_fills_up(
    name, seed, share
):
    """The slow twin tries every price in turn, twice, then every unit that went."""
    fit = undecided(name, seed)
    plan, odds = fit.method.plan, fit.method.log_odds()
    limit = share * fit.parameters()
    sizes = unit_sizes(fit.network, plan)
    worth = {n: line / sizes[n] for n, line in odds.items()}
    prices = [0.0, *sorted(float(v) for line in worth.values() for v in line if v > 0)]

    def met(stay):
        return fit.parameters(stay) <= limit

    options, spared = [], -1.0
    for _ in range(2):
        for price in prices:
            stay = {n: (line > price) | (line == spared) for n, line in worth.items()}
            stay = plan.surviving(stay, odds)
            if met(stay):
                options.append(filled(stay, worth, met))
                spared = price
                break
    gains = [sum(float(odds[n][u]) for n, u in every(stay)) for stay in options]
    expected = options[gains.index(max(gains))] if options else None
    expected = None if expected is None else fit.verdict(plan.surviving(expected, odds))
    cost = trim(fit, fit.parameters, lambda cost: cost <= limit)
    assert (cost is not None) is (expected is not None)
    if expected is not None:
        assert fit.parameters() == cost <= limit
        assert expected.kept == fit.verdict().kept


def every(stay):
    return [(n, u) for n, line in stay.items() for u in range(len(line)) if line[u]]


def filled(stay, worth, met):
    gone = [(n, u) for n, line in stay.items() for u in range(len(line)) if not line[u]]
    gone = [(n, u) for n, u in gone if worth[n][u] > 0]
    gone.sort(key=lambda unit: float(worth[unit[0]][unit[1]]), reverse=True)
    for name, unit in gone[:REFILLED]:
        stay[name][unit] = True
        stay[name][unit] = met(stay)
    return stay


@settings(max_examples=15, deadline=None)
@given(method=st.sampled_from(["bmr", "spam"]), share=st.floats(0.05, 0.95))
def test_of_single_weights_just_as_many_go_as_have_to_those_of_the_lowest_odds(method, share):
    """At any price less there are too many."""
    fit = judged_by_weight(method)
    total = fit.parameters()
    limit = int(share * total)
    odds = torch.cat([line.flatten() for line in weight_odds(fit)])
    cost = trim(fit, fit.parameters, lambda cost: cost <= limit)
    assert cost is not None
    assert cost == fit.parameters() <= limit
    there = torch.cat([line.flatten() for line in weight_odds(fit)]) > 0
    assert torch.equal(there, odds > fit.method.price)
    # Those of units that nobody reads go with them, so the price may be less than the ranks say.
    fit.method.price *= 0.999
    assert fit.parameters() > limit


def judged_by_weight(method):
    fit = Problem(method=method, settings={"unit": "weight"}, inputs=(6,)).start()
    data = table("classification", (6,))
    if method == "spam":
        fit.method.epochs += 1000
        fit.method.observe(fit.likelihood, data, data)
    else:
        fit.method.steps += 1
        with torch.no_grad():
            for name, parameter in fit.method.named_parameters():
                parameter.sub_(3.0) if "std" in name else None
    return fit


def weight_odds(fit):
    if hasattr(fit.method, "weight_log_odds"):
        return fit.method.weight_log_odds().values()
    return [part for parts in fit.method._judge().weights.values() for part in parts]


def test_nothing_is_cut_when_nothing_is_enough():
    fit = undecided("mlp", 0)
    before = {n: line.clone() for n, line in fit.method.keep.items()}
    assert trim(fit, fit.parameters, lambda cost: False) is None
    assert all(torch.equal(before[n], line) for n, line in fit.method.keep.items())


@pytest.mark.parametrize("budget", [Budget(max_params=70), Budget(max_macs=70)], ids=str)
def test_a_search_comes_nearer_to_its_budget_than_its_epochs_do(budget):
    passed = []
    problem = Problem(
        schedule=Schedule(warm=2, explore=8, cool=1, candidates=3),
        budget=budget,
        settings={"start_inclusion": 0.9, "settled": 0.01},
    )
    search = problem.search(report=lambda row: passed.append(row.get("parameters", 0)))
    best = search.run()
    counted = count(
        finish(search.template, best.fit.method, search.train.x[:4]).model, search.example
    )
    assert best.parameters == counted.parameters
    size = counted.parameters if budget.max_params else counted.macs
    assert max(n for n in passed if n <= 70 and n != size) < 0.9 * size
    assert 0.9 * 70 <= size <= 70
