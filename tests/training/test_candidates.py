"""Which structures are finished, which one is chosen, and which inputs never vary."""

import math
import statistics
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_runs import Problem, small_conv, table

from bayespare.training.candidates import Candidate, choose, constant_features, spread
from bayespare.training.loop import Scores
from bayespare.training.schedule import CHEAP, DEAR, Schedule


def scores(values: list[float], nll: float = 0.5) -> Scores:
    wide = torch.tensor(values, dtype=torch.float64)
    return Scores(wide, torch.full_like(wide, nll))


def candidate(
    parameters: int,
    values: list[float] | None = None,
    *,
    nll: float = 0.5,
    pruned: float = 0.5,
    error: float | None = None,
    losses: torch.Tensor | None = None,
) -> Candidate:
    """A candidate as far as its size and scores go: those given, often enough."""
    before = scores([0.0, 1.0] if error is None else [-error], pruned)
    if losses is not None:
        before = Scores(torch.ones_like(losses), losses)
    finished = None if values is None else scores(values * math.ceil(1000 / len(values)), nll)
    return Candidate(f"c{parameters}", None, parameters, 1.0, before, scores=finished)


# ---------------------------------------------------------------------- choose


def test_equal_scores_choose_the_smallest():
    same = [1.0, 0.0, 1.0, 1.0]
    tied = [candidate(30, same), candidate(10, same), candidate(20, same)]
    assert choose(tied).parameters == 10


def test_a_measurably_worse_network_is_not_chosen():
    best = [1.0] * 90 + [0.0] * 10
    worse = [1.0] * 60 + [0.0] * 40
    assert choose([candidate(10, worse), candidate(20, best)]).parameters == 20


def test_half_a_point_of_accuracy_is_let_pass_and_no_more():
    best = [0.0] * 2000 + [1.0] * 8000
    for more, chosen in ((50, 10), (51, 20)):
        worse = [1.0] * (8000 - more) + [0.0] * (2000 + more)
        assert choose([candidate(20, best), candidate(10, worse)]).parameters == chosen


def test_the_whole_network_is_what_half_a_point_is_counted_from():
    rows = [1.0] * 8000 + [0.0] * 2000
    better = [1.0] * 8040 + [0.0] * 1960
    pair = [candidate(10, rows), candidate(20, better)]
    assert choose(pair).parameters == 10
    assert choose(pair, aim=0.805).parameters == 10
    # The smaller one is further than that from the whole network; then neither is near it.
    assert choose(pair, aim=0.8051).parameters == 20
    assert choose(pair, aim=0.9).parameters == 20
    assert choose(pair, aim=0.1).parameters == 10


def test_likelihood_vetoes_what_accuracy_lets_pass():
    same = [1.0, 1.0, 0.0]
    pair = [candidate(10, same, nll=0.66), candidate(20, same, nll=0.5)]
    assert choose(pair).parameters == 20
    assert choose([candidate(10, same, nll=0.62), pair[1]]).parameters == 10


def test_regression_lets_a_twentieth_of_the_squared_error_pass():
    errors = torch.linspace(0.1, 1.9, 200)
    best = candidate(20, (-errors).tolist())
    assert choose([best, candidate(10, (-1.04 * errors.flip(0)).tolist())]).parameters == 10
    assert choose([best, candidate(10, (-1.06 * errors.flip(0)).tolist())]).parameters == 20


def test_when_each_has_a_fault_the_best_score_wins():
    right, wrong = [1.0] * 10, [0.0] * 10
    torn = [candidate(10, right, nll=2.0), candidate(20, wrong, nll=0.1)]
    assert choose(torn).parameters == 10


def few(parameters: int, losses: list[float], right: int | None = None) -> Candidate:
    """All examples right, or so many."""
    found = candidate(parameters)
    wide = torch.tensor(losses, dtype=torch.float64)
    score = (torch.arange(len(wide)) < (len(wide) if right is None else right)).double()
    found.scores = Scores(score, wide)
    return found


def test_with_few_examples_nothing_is_risked():
    """Half a point is then a handful of examples: the smaller one must not win by luck."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(100, generator=generator)
    small = few(10, (0.5 + noise).tolist(), 98)
    level = few(20, (0.51 + noise.flip(0)).tolist(), 99)
    assert choose([small, level]).parameters == 20
    # The same gap on the same examples, every time, is no luck.
    assert choose([small, few(20, (0.51 + noise).tolist(), 99)]).parameters == 10
    assert choose([small, few(20, (0.49 + noise).tolist(), 99)]).parameters == 20
    # Nor is it risked to take what is smaller and better in all that is measured.
    assert choose([small, few(20, (0.51 + noise.flip(0)).tolist(), 98)]).parameters == 10


@settings(max_examples=100)
@given(data=st.data())
def test_the_safest_choice_is_the_rule_written_out(data):
    """Of losses that classes have, within two standard errors; of squared errors, within one."""
    rows = data.draw(st.integers(1, 6))
    values = st.lists(st.sampled_from([0.1, 0.2, 1.0]), min_size=rows, max_size=rows)
    drawn = data.draw(st.lists(values, min_size=1, max_size=4))
    group = [few(10 * (i + 1), losses) for i, losses in enumerate(drawn)]
    errors = data.draw(st.sampled_from([1, 2]))
    for one, losses in zip(group, drawn, strict=True):
        if errors == 1:
            one.scores = scores([-loss for loss in losses])
    best = min(drawn, key=statistics.fmean)
    level = []
    for i, losses in enumerate(drawn):
        gaps = [x - y for x, y in zip(losses, best, strict=True)]
        if statistics.fmean(gaps) <= errors * statistics.pstdev(gaps) / math.sqrt(rows) + 1e-12:
            level.append(i)
    if errors == 2:
        # All have every example right: of those that are level, the loss tells which is beaten.
        level = [
            i
            for i in level
            if all(statistics.fmean(drawn[j]) > statistics.fmean(drawn[i]) for j in level if j < i)
        ]
    assert choose(group).parameters == 10 * (max(level) + 1)


def test_a_few_large_errors_do_not_hide_a_network_twice_as_wrong():
    small, large = candidate(10), candidate(20)
    small.scores = scores([-1.0] * 20 + [-4.0] * 4)
    large.scores = scores([-1.0] * 20 + [-4.0] * 2 + [-30.0] * 2)
    assert choose([small, large]).parameters == 10


def test_unfinished_candidates_are_passed_over():
    assert choose([candidate(5), candidate(20, [1.0, 0.0])]).parameters == 20


@settings(max_examples=150)
@given(data=st.data())
def test_choice_is_the_rule_written_out(data):
    rows = data.draw(st.integers(1, 12))
    value = st.sampled_from([0.0, 1.0] if data.draw(st.booleans()) else [-2.0, -1.0, -0.1])
    group = [
        candidate(
            data.draw(st.integers(1, 9)),
            data.draw(st.lists(value, min_size=rows, max_size=rows)),
            nll=data.draw(st.sampled_from([0.1, 0.12, 0.3])),
        )
        for _ in range(data.draw(st.integers(1, 5)))
    ]
    means = [statistics.fmean(c.scores.score.tolist()) for c in group]
    losses = [c.scores.nll if c.scores.mean >= 0 else -c.scores.mean for c in group]
    margin = 0.005 if max(means) >= 0 else 0.05 * -max(means)
    good = [
        c.parameters
        for c, mean, loss in zip(group, means, losses, strict=True)
        if max(means) - mean <= margin + 1e-9 and loss <= 1.25 * min(losses)
    ]
    chosen = choose(group)
    if good:
        assert chosen.parameters == min(good)
    else:
        assert chosen.scores.mean == pytest.approx(max(means))
    assert choose(group[::-1]).parameters == chosen.parameters or not good


# ---------------------------------------------------------------------- spread


def sizes(candidates: list[Candidate]) -> list[int]:
    return [c.parameters for c in candidates]


def test_spread_is_even_in_ratios_from_the_smallest_on():
    found = [candidate(round(1.01**n)) for n in range(500, 1400)]
    for whole in (10_000, 1_000_000):
        picked = sizes(spread(found, 4, whole=whole))
        assert len(picked) == 4
        assert picked[0] == found[0].parameters
        ratios = [b / a for a, b in pairwise(picked)]
        assert max(ratios) < 1.05 * min(ratios)
        assert whole / 20 <= picked[-1] * 1.02 or picked[-1] <= 3 * picked[0]
        assert picked[-1] <= max(3 * picked[0], whole / 5)


def test_spread_leaves_out_what_has_collapsed():
    found = [candidate(1000, pruned=0.5), candidate(500, pruned=0.6), candidate(100, pruned=2.0)]
    assert sizes(spread(found, 3, whole=1000)) == [500, 1000]
    # In regression the squared error says so: a Gaussian NLL may well be negative.
    real = [candidate(n, pruned=-1.0, error=e) for n, e in ((1000, 0.5), (500, 0.6), (9, 0.8))]
    assert sizes(spread(real, 3, whole=1000)) == [500, 1000]


def test_spread_leaves_out_what_has_no_weight_left():
    # Of a network that has hardly learnt, nothing at all is as good as something.
    found = [candidate(20, pruned=2.2), candidate(8, pruned=2.2), candidate(0, pruned=2.3)]
    assert sizes(spread(found, 2, whole=30)) == [8, 20]
    assert sizes(spread([candidate(0)], 3, whole=30)) == [0]


def test_spread_reaches_to_the_smallest_that_is_as_good_as_any():
    def scored(place: int, parameters: int, loss: float, rows: int) -> Candidate:
        # Square waves: every pair of candidates differs in half of the rows, and evenly.
        wave = 1.0 - 2 * (torch.arange(rows) // 2**place % 2)
        return candidate(parameters, losses=loss + 0.45 * wave)

    # Half of the network is level with the best; less is not, and is sound all the same.
    known = [(1000, 0.5), (700, 0.5), (500, 0.501), (400, 0.55), (220, 0.6), (100, 0.6)]
    for rows, picked in ((1024, [100, 220, 500]), (64, [100, 220])):
        found = [scored(place, *each, rows) for place, each in enumerate(known)]
        assert sizes(spread(found, 3, whole=1000)) == picked


def test_spread_of_one_is_the_smallest():
    assert sizes(spread([candidate(9), candidate(3), candidate(5)], 1, whole=10)) == [3]


@settings(max_examples=100)
@given(
    numbers=st.lists(st.integers(1, 10**6), min_size=1, max_size=8),
    nlls=st.lists(st.integers(1, 40).map(lambda n: n / 10), min_size=8, max_size=8),
    count=st.integers(1, 5),
    whole=st.integers(10, 10**7),
)
def test_spread_keeps_its_promises(numbers, nlls, count, whole):
    found = [candidate(n, pruned=nll) for n, nll in zip(numbers, nlls, strict=False)]
    picked = spread(found, count, whole)
    best = min(c.pruned.nll for c in found)
    sound = [c for c in found if c.pruned.nll - 2 * c.pruned.loss_error <= 1.4 * best]
    assert 1 <= len(picked) <= count
    assert len({id(c) for c in picked}) == len(picked)
    assert all(any(c is s for s in sound) for c in picked)
    assert sizes(picked) == sorted(sizes(picked))
    assert picked[0].parameters == min(sizes(sound))


# ----------------------------------------------------------- constant features


def test_constant_inputs_are_named_and_go():
    fit = Problem().start()
    keep = constant_features(fit, table())
    (name,) = keep
    assert keep[name].tolist() == [True] * 5 + [False]
    fit.remove(keep)
    assert fit.method.plan[name].size == 5
    fit.network.eval()(table().x)


def test_constants_are_found_whatever_their_value_and_number():
    for value in (0.1, -0.7987, 1e-7, 3.3e6, 0.0):
        data = table()
        x = data.x.repeat(300, 1)
        x[:, 2] = value
        fit = Problem().start()
        keep = constant_features(fit, replace(data, x=x, y=data.y.repeat(300)))
        assert next(iter(keep.values())).tolist() == [True, True, False, True, True, False]


def test_a_column_that_varies_at_all_stays():
    data = table()
    x = data.x.clone()
    x[7, 5] += 1e-3
    assert constant_features(Problem().start(), replace(data, x=x)) == {}


def test_convolved_inputs_are_left_alone():
    problem = Problem(small_conv, inputs=(1, 6, 6))
    assert constant_features(problem.start(), table(inputs=(1, 6, 6))) == {}


# -------------------------------------------------------------------- schedule


@given(epochs=st.integers(1, 400), tempering=st.sampled_from(["auto", 1.0, 0.1]))
def test_schedules_spend_epochs_in_every_phase(epochs, tempering):
    schedule = Schedule.of(epochs, 400, 60_000, tempering)
    assert min(schedule.warm, schedule.explore, schedule.cool) >= 1
    assert schedule.candidates == (3 if tempering == "auto" else 1)
    assert schedule.total == schedule.warm + schedule.explore + schedule.cool * schedule.candidates
    assert schedule.warm == max(1, round(0.28 * epochs))
    # Until the network has shrunk the run costs less than half of a dense one.
    assert schedule.warm + schedule.explore <= max(3, 0.68 * epochs + 1)


def test_cooling_uses_what_missing_candidates_leave():
    schedule = Schedule(cool=15, candidates=4)
    assert [schedule.cooling_epochs(found, 9.0) for found in (1, 2, 3, 4)] == [38, 30, 20, 15]
    assert Schedule.published(1200).cooling_epochs(1, 1e3) == 0
    given = replace(schedule, share=False)
    assert {given.cooling_epochs(found, 9.0) for found in (1, 2, 3, 4)} == {15}


@given(each=st.floats(0, 1e4), found=st.integers(1, 4))
def test_candidates_of_few_examples_for_each_weight_get_no_more_epochs(each, found):
    epochs = Schedule(cool=15, candidates=4).cooling_epochs(found, each)
    assert (epochs > 15) == (each >= 9 and found < 4)
    assert epochs >= 15


@given(each=st.floats(0, 1e4))
def test_the_prior_counts_for_more_where_each_weight_has_many_examples(each):
    cooled = Schedule(cooling=0.05).cooled(alone=False, examples_each=each)
    assert cooled == pytest.approx(min(1.0, max(0.05, each / 90)))
    assert Schedule(tempering=0.3, cooling=0.3).cooled(alone=False, examples_each=each) == 0.3
    assert Schedule().cooled(alone=True, examples_each=each) == 1.0


def test_the_authors_schedule_is_one_phase_at_one_tempering():
    schedule = Schedule.published(1200)
    assert (schedule.warm, schedule.explore, schedule.cool) == (0, 1200, 0)
    assert schedule.total == 1200
    assert {schedule.rising(p) for p in (-1.0, 0.0, 0.5, 2.0)} == {1.0}
    ramped = replace(schedule, ramp=0.5)
    assert [ramped.rising(p) for p in (-1.0, 0.0, 0.25, 2.0)] == [0.0, 0.0, 0.5, 1.0]


@given(progress=st.floats(-1, 2))
def test_tempering_rises_geometrically_between_its_ends(progress):
    schedule = Schedule(start=0.05, end=1.2)
    assert schedule.rising(progress) == pytest.approx(0.05 * 24 ** min(1, max(0, progress)))


@given(early=st.floats(-1, 1), late=st.floats(0.01, 1), explore=st.integers(2, 60))
def test_parameters_have_a_price_only_while_a_budget_is_not_met_in_time(early, late, explore):
    schedule = Schedule(explore=explore)
    assert schedule.price(early) == 0
    # The search gives up after three times the exploration.
    epochs = range(explore, 3 * explore)
    prices = [schedule.price(schedule.progress(epoch, late)) for epoch in epochs]
    assert all(before < after for before, after in pairwise(prices))
    assert schedule.price(schedule.progress(explore, 1e-9)) == pytest.approx(CHEAP)
    assert schedule.price(3.0) == pytest.approx(DEAR)
    assert schedule.price(2.0) == pytest.approx(math.sqrt(CHEAP * DEAR))
