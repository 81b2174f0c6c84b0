"""A whole search: its phases, its frontier, and that a kill at any epoch loses nothing."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import (
    SHORT,
    Problem,
    assert_identical,
    convs,
    dropping,
    everything,
    small_conv,
    small_mlp,
)

from bayespare.bayes.likelihood import honest_temperature
from bayespare.data import Batches
from bayespare.errors import BayespareError
from bayespare.methods import build
from bayespare.training.budget import Budget, Cost
from bayespare.training.checkpoint import Checkpoint
from bayespare.training.loop import Scores, validate
from bayespare.training.schedule import Schedule
from bayespare.training.search import Search
from bayespare.training.teacher import Teacher

ONE_PHASE = Schedule.published(5)
FIXED = Schedule(warm=1, explore=3, cool=2, candidates=1, tempering=0.5, cooling=0.5)

PROBLEMS = {
    "default": Problem(),
    "regression": Problem(
        lambda: small_mlp(1), "ss-gl", {"centred": False, "kl_every": 3}, task="regression"
    ),
    "conv": Problem(small_conv, settings={"c_reg": "learnt"}, inputs=(1, 6, 6)),
    "convs": Problem(convs, inputs=(2, 6, 6)),
    "faithful": Problem(method="ss-ig", settings={"settings": "faithful"}, schedule=ONE_PHASE),
    "fixed": Problem(method="ss-ig", schedule=FIXED),
    "budget": Problem(schedule=replace(SHORT, explore=2), budget=Budget(30)),
    "trained": Problem(trained=True),
    "inherit": Problem(small_conv, inputs=(1, 6, 6), schedule=replace(SHORT, inherit=True)),
    "inherit weights": Problem(
        method="bmr",
        settings={"unit": "weight", "warm_up": 3, "every": 3, "tie": 1.0},
        schedule=replace(SHORT, inherit=True),
    ),
    "dropout": Problem(dropping),
    "bmr": Problem(method="bmr", settings={"warm_up": 3, "every": 3, "tie": 1.0}),
    "bmr budget": Problem(
        method="bmr",
        settings={"warm_up": 3, "every": 3, "tie": 0.0},
        schedule=replace(SHORT, explore=2),
        budget=Budget(120),
    ),
    "bmr weights": Problem(
        method="bmr", settings={"unit": "weight", "warm_up": 3, "every": 3, "tie": 1.0}
    ),
    "tiered-ff": Problem(method="tiered-ff"),
    "spam": Problem(method="spam", settings={"samples": 40, "cap": 0.5}),
    "node-pip": Problem(
        method="node-pip",
        settings={"draws": 2},
        schedule=build("node-pip").schedule(60, 5, 100, "auto"),
    ),
}
EVERY = pytest.mark.parametrize("name", PROBLEMS)


class Killed(Exception):
    """Stands for a process that ends."""


def outcome(search: Search) -> dict[str, torch.Tensor]:
    """Everything a run leaves: each finished network, the choice, the log-odds, the noise."""
    best = search.run()
    tensors = {
        f"{candidate.name}/{key}": tensor
        for candidate in search.candidates
        for key, tensor in everything(candidate).items()
    }
    for group, odds in best.fit.odds.items():
        tensors[f"chosen/{group}"] = odds
    tensors["noise"] = search.generator.get_state()
    tensors[f"chosen is {best.name}"] = torch.ones(())
    return tensors


def kill_at(count: int) -> Callable[[dict[str, Any]], None]:
    """A report that ends the process when it is called for the ``count``-th time."""
    calls = itertools.count(1)

    def report(row: dict[str, Any]) -> None:
        if next(calls) == count:
            raise Killed

    return report


def rows(problem: Problem) -> list[dict[str, Any]]:
    reported: list[dict[str, Any]] = []
    problem.search(report=reported.append).run()
    return reported


# ------------------------------------------------------------------------- runs


def test_phases_follow_each_other_and_every_epoch_is_reported():
    reported = rows(PROBLEMS["default"])
    phases = [key for key, _ in itertools.groupby(reported, lambda row: row["phase"])]
    assert phases[:2] == ["warm", "explore"]
    assert all(phase.startswith("cool e") for phase in phases[2:])
    assert 1 <= len(phases[2:]) <= SHORT.candidates
    examples = len(PROBLEMS["default"].search().train)
    for phase, group in itertools.groupby(reported, lambda row: row["phase"]):
        own = list(group)
        cool = SHORT.cooling_epochs(len(phases[2:]), examples / own[0].get("parameters", 1))
        length = {"warm": SHORT.warm, "explore": SHORT.explore}.get(phase, cool)
        assert [row["epoch"] for row in own] == list(range(1, length + 1))
    explored = [row for row in reported if row["phase"] == "explore"]
    temperings = [row["tempering"] for row in explored]
    assert temperings == sorted(temperings)
    rising = [SHORT.rising(SHORT.progress(epoch, 1.0)) for epoch in range(SHORT.explore)]
    assert temperings == pytest.approx(rising)
    assert temperings[-1] == pytest.approx(SHORT.end * SHORT.haste)
    sizes = [row["parameters"] for row in explored]
    assert sizes == sorted(sizes, reverse=True)
    for row in reported:
        if "cool" in row["phase"]:
            each = examples / row["parameters"]
            assert row["tempering"] == SHORT.cooled(alone=False, examples_each=each)


@EVERY
def test_the_frontier_is_finished_and_sorted(name):
    problem = PROBLEMS[name]
    search = problem.search()
    best = search.run()
    assert best in search.candidates
    for candidate in search.candidates:
        assert candidate.fit.method.decided
        assert candidate.scores is not None
        assert candidate.parameters == candidate.fit.parameters()
        physical = sum(p.numel() for p in candidate.fit.network.parameters())
        if "weights" in name:  # what is removed is zero, and not counted
            assert 0 < candidate.parameters < physical
        else:
            assert candidate.parameters == physical
        assert len(candidate.scores.score) == 20
        each = len(search.train) / candidate.parameters
        cool = problem.schedule.cooling_epochs(len(search.candidates), each)
        assert candidate.fit.epoch == cool
    sizes = [candidate.parameters for candidate in search.candidates]
    assert sizes == sorted(sizes)
    assert len({candidate.name for candidate in search.candidates}) == len(search.candidates)


def test_smaller_networks_go_on_from_what_the_larger_ones_have_become():
    """The first epoch of each begins where the last of the larger one ended, not where it was."""
    losses = {}
    for inherit in (False, True):
        problem = replace(PROBLEMS["default"], schedule=replace(SHORT, cool=40, inherit=inherit))
        cooled = [row for row in rows(problem) if "cool" in row["phase"] and row["epoch"] == 1]
        sizes = [row["parameters"] for row in cooled]
        assert len(sizes) > 1
        assert sizes == sorted(sizes, reverse=inherit)
        losses[inherit] = {row["phase"]: row["train_nll"] for row in cooled}
    _, *smaller = losses[True]
    for phase in smaller:
        assert losses[True][phase] < losses[False][phase]


def test_constant_inputs_go_before_anything_is_explored():
    search = PROBLEMS["default"].search()
    search.run()
    for candidate in search.candidates:
        assert not candidate.fit.method.keep["input"][-1]


def test_a_trained_network_is_not_warmed_and_teaches():
    search, reported = PROBLEMS["trained"].search(), rows(PROBLEMS["trained"])
    assert {row["phase"] for row in reported if row["phase"] == "warm"} == set()
    search._prepare()
    with torch.no_grad():
        said = search.template.eval()(search.train.x)
    taught = search.teacher.probabilities
    torch.testing.assert_close(taught.sum(1), torch.ones(len(said)))
    assert torch.equal(taught.argmax(1), said.argmax(1))


def test_a_teacher_goes_once_a_structure_is_measurably_better():
    """Better on average alone does not do, nor better than a teacher that is too sure of itself."""
    search = PROBLEMS["trained"].search()
    search._prepare()
    given = search.teacher
    noise = torch.linspace(-1, 1, len(given.scores.losses)).double()

    def shifted(by: float, wide: float = 0.01) -> Scores:
        return Scores(given.scores.score, 1 + by + wide * noise)

    better, even = shifted(-0.1), shifted(0.0)
    assert replace(given, scores=even, softened=even).outgrown(better)
    assert not replace(given, scores=even, softened=even).outgrown(shifted(-0.1, wide=10))
    assert not replace(given, scores=even, softened=even).outgrown(even)
    assert not replace(given, scores=even, softened=better).outgrown(better)
    assert not replace(given, scores=better, softened=even).outgrown(better)
    while search.fit.epoch < search.schedule.explore:
        search._explore_epoch()
    search.teacher = replace(given, scores=even, softened=even)
    search.candidates[0].pruned = better
    search._spread()
    assert search.teacher is None


def test_a_structure_that_has_learnt_much_since_it_was_found_is_kept_as_it_is_now():
    """In few steps it was found hardly trained; a luckier validation alone is no reason."""
    search = PROBLEMS["default"].search()
    search._prepare()
    search._explore_epoch()
    (found,) = search.candidates[-1:]
    before = len(search.candidates)
    others = search.candidates[:-1]
    found.parameters = search.fit.parameters()
    noise = torch.linspace(-1, 1, len(found.pruned.losses)).double()

    def shifted(by: float, wide: float = 0.01) -> Scores:
        return Scores(found.pruned.score, 1 + by + wide * noise)

    found.pruned = shifted(0.0, wide=0.0)
    search._keep(0, shifted(-0.1, wide=10))
    assert search.candidates[-1] is found
    search._keep(3)
    assert search.candidates[-1] is found
    better = shifted(-0.1)
    search._keep(0, better)
    kept = search.candidates[-1]
    assert kept.pruned is better
    assert kept.name == f"e{search.fit.epoch:03d}"
    assert_identical(kept.fit.state()[0], search.fit.state()[0])
    assert search.candidates[:-1] == others
    assert len(search.candidates) == before
    # It would be larger than what it stands for.
    kept.parameters -= 1
    kept.pruned = shifted(0.0)
    search._keep(0, better)
    assert search.candidates[-1] is kept


def test_a_teacher_is_scored_as_it_teaches():
    search = PROBLEMS["default"].search()
    search._prepare()
    teacher, network = search.teacher, search.template.eval()
    again = Teacher.of(
        network,
        search.train,
        search.valid,
        validate(network, search.likelihood, Batches(search.valid, 64, shuffle=False)),
    )
    with torch.no_grad():
        logits = network(search.train.x)
        held = network(search.valid.x)
    temperature = honest_temperature(logits, again.scores.mean)
    torch.testing.assert_close(again.probabilities, (logits / temperature).softmax(1))
    losses = torch.nn.functional.cross_entropy(held / temperature, search.valid.y, reduction="none")
    torch.testing.assert_close(again.softened.losses, losses.double())
    restored = Teacher.restored(teacher.state(), torch.device("cpu"))
    assert_identical(restored.state(), teacher.state())


@pytest.mark.parametrize("sure", [0.9, 1.1])
def test_a_network_that_was_cut_short_does_not_teach(sure, monkeypatch):
    """It is no surer of what it was trained on than it is right; one that was given teaches always.

    So it does where no noise keeps from overfitting.
    """
    monkeypatch.setattr("bayespare.training.teacher.honest_temperature", lambda *_: sure)
    monkeypatch.setattr(Teacher, "outgrown", lambda *_: False)
    for name in ("default", "trained", "spam"):
        search = PROBLEMS[name].search()
        search._prepare()
        assert search.teacher.temperature == sure
        assert search.teacher.unfinished == (sure < 1)
        while search.fit.epoch < search.schedule.explore:
            search._explore_epoch()
        search._spread()
        assert (search.teacher is None) == (sure < 1 and name == "default")


def test_regression_has_no_teacher():
    search = PROBLEMS["regression"].search()
    search.run()
    assert search.teacher is None


def test_the_template_is_left_as_it_was():
    search = PROBLEMS["conv"].search()
    before = {name: tensor.clone() for name, tensor in search.template.state_dict().items()}
    search.run()
    assert_identical(dict(search.template.state_dict()), before)


def test_one_given_tempering_has_one_candidate():
    search = PROBLEMS["fixed"].search()
    best = search.run()
    assert search.candidates == [best]
    assert best.tempering == 0.5


# ------------------------------------------------------------------ fine-tuning


def test_without_fine_tuning_the_networks_are_as_they_were_decided():
    problem = Problem(schedule=replace(SHORT, cool=0, share=False))
    search, reported = problem.search(), rows(problem)
    best = search.run()
    assert {row["phase"] for row in reported} == {"warm", "explore"}
    assert best in search.candidates
    for candidate in search.candidates:
        assert candidate.fit.method.decided
        # A network that is cut sums in another order than one with zeros.
        losses = candidate.scores.losses, candidate.pruned.losses
        torch.testing.assert_close(*losses, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("settings", [{}, {"settings": "faithful"}], ids=["default", "faithful"])
def test_without_fine_tuning_batch_norms_are_measured_after_the_decision(settings):
    schedule = ONE_PHASE if settings else replace(SHORT, cool=0, share=False)
    search = Problem(convs, "ss-ig", settings, inputs=(2, 6, 6), schedule=schedule).search()
    search.run()
    for candidate in search.candidates:
        again = search._rested(candidate.fit)
        torch.testing.assert_close(candidate.scores.losses, again.losses)


@pytest.mark.parametrize("epochs", [1, 3])
def test_given_fine_tuning_is_what_every_candidate_gets(epochs):
    problem = Problem(schedule=replace(SHORT, cool=epochs, share=False, candidates=8))
    reported = [row for row in rows(problem) if row["phase"].startswith("cool")]
    for _, own in itertools.groupby(reported, lambda row: row["phase"]):
        assert [row["epoch"] for row in own] == list(range(1, epochs + 1))


@EVERY
def test_the_same_seed_gives_the_same_run(name):
    """Whatever else the process drew in between."""
    torch.manual_seed(0)
    first = outcome(PROBLEMS[name].search())
    torch.manual_seed(1)
    torch.rand(7)
    assert_identical(outcome(PROBLEMS[name].search()), first)


def test_another_seed_gives_another_run():
    first, second = (outcome(PROBLEMS["default"].search(seed=seed)) for seed in (5, 6))
    assert any(
        name not in second or not torch.equal(first[name], second[name])
        for name in first
        if name != "noise"
    )


# --------------------------------------------------------------------- budgets


def test_exploration_goes_on_until_the_budget_is_met():
    problem = PROBLEMS["budget"]
    reported = rows(problem)
    explored = [row for row in reported if row["phase"] == "explore"]
    assert problem.schedule.explore < len(explored) <= 3 * problem.schedule.explore
    assert explored[-1]["parameters"] <= 30 < explored[-2]["parameters"]
    search = problem.search()
    assert search.run().parameters <= 30
    assert all(candidate.parameters <= 30 for candidate in search.candidates)


def test_a_resumed_run_meets_its_budget(tmp_path):
    """What a budget asks for each parameter has its part in the decision."""
    problem = PROBLEMS["bmr budget"]
    explored = sum(row["phase"] in ("warm", "explore") for row in rows(problem))
    with pytest.raises(Killed):
        problem.search(Checkpoint(tmp_path), kill_at(explored + 1)).run()
    search = problem.search(Checkpoint(tmp_path))
    search.run()
    for candidate in search.candidates:
        assert problem.budget.met(Cost(candidate.fit.parameters()))


def test_a_budget_out_of_reach_is_an_error_that_says_what_was_reached():
    with pytest.raises(BayespareError, match=r"max_params=1: the smallest structure found has \d+"):
        replace(PROBLEMS["budget"], budget=Budget(1)).search().run()


# ---------------------------------------------------------------------- resume


@cache
def uninterrupted(name: str) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return outcome(PROBLEMS[name].search())


@EVERY
def test_checkpoints_change_nothing(name, tmp_path):
    torch.manual_seed(0)
    assert_identical(outcome(PROBLEMS[name].search(Checkpoint(tmp_path))), uninterrupted(name))


POINTS = [("default", count) for count in range(1, SHORT.total + 1)]
POINTS += [("conv", count) for count in (2, 4, 5, 6, 8)]
POINTS += [("convs", count) for count in (2, 4, 8)]
POINTS += [("regression", count) for count in (1, 2, 3, 4, 6, 7, 9)]
POINTS += [("faithful", count) for count in (1, 3, 5)]
POINTS += [("fixed", count) for count in (1, 3, 4, 5, 6)]
POINTS += [("budget", count) for count in (3, 5, 6, 7)]
POINTS += [("trained", count) for count in (1, 3, 6)]
POINTS += [("bmr", count) for count in (2, 3, 4, 5, 6, 8)]
POINTS += [("bmr budget", count) for count in (9, 11)]
POINTS += [("bmr weights", count) for count in (2, 3, 4, 5, 6, 8)]
POINTS += [("tiered-ff", count) for count in (3, 5, 6)]
POINTS += [("inherit", count) for count in range(6, 13)]
POINTS += [("dropout", count) for count in (2, 3, 4, 8)]


@pytest.mark.parametrize(("name", "count"), POINTS)
def test_a_run_killed_in_any_epoch_and_resumed_is_the_uninterrupted_one(name, count, tmp_path):
    """The kill comes before the epoch's state is saved, so that epoch is done again."""
    problem, expected = PROBLEMS[name], uninterrupted(name)
    torch.manual_seed(0)
    try:
        problem.search(Checkpoint(tmp_path), kill_at(count)).run()
    except Killed:
        torch.manual_seed(99)  # a new process
    # What the generator was seeded with does not matter once there is a state.
    seed = 77 if Checkpoint(tmp_path).exists() else 5
    resumed = problem.search(Checkpoint(tmp_path), seed=seed)
    assert_identical(outcome(resumed), expected)


def test_a_run_killed_again_and_again_is_the_uninterrupted_one(tmp_path):
    """Every process gets one epoch further."""
    problem = PROBLEMS["default"]
    for _ in range(SHORT.total + 1):
        reported: list[dict[str, Any]] = []

        def second(row: dict[str, Any], reported: list[dict[str, Any]] = reported) -> None:
            reported.append(row)
            if len(reported) == 2:
                raise Killed

        try:
            final = outcome(problem.search(Checkpoint(tmp_path), second))
        except Killed:
            continue
        assert_identical(final, uninterrupted("default"))
        return
    pytest.fail("the run never ended")


@pytest.mark.parametrize("name", ["default", "regression", "conv"])
def test_a_run_killed_while_it_warms_does_not_begin_anew(name, tmp_path):
    """Of the network, the noise of its targets, its moments and the streams nothing is lost."""
    problem = PROBLEMS[name]
    with pytest.raises(Killed):
        problem.search(Checkpoint(tmp_path), kill_at(2)).run()
    reported: list[dict[str, Any]] = []
    resumed = problem.search(Checkpoint(tmp_path), reported.append, seed=77)
    assert_identical(outcome(resumed), uninterrupted(name))
    assert (reported[0]["phase"], reported[0]["epoch"]) == ("warm", 2)
    assert (reported[1]["phase"], reported[1]["epoch"]) == ("explore", 1)
    whole = rows(problem)[1:]
    for row in (*whole, *reported):
        row.pop("seconds")
    assert reported == whole


@pytest.mark.parametrize("write", [0, 1, 2, 3, 5, 8, 12, 16])
def test_a_run_killed_while_it_saves_is_the_uninterrupted_one(write, tmp_path, monkeypatch):
    """At the n-th file that is renamed, whichever it is."""
    import bayespare.training.checkpoint as module

    original, calls = module.write_tensors, itertools.count()

    def dying(path: Path, tensors: dict[str, torch.Tensor]) -> None:
        if next(calls) == write:
            path.with_name(f".{path.name}.part").write_bytes(b"half of it")
            raise Killed
        original(path, tensors)

    monkeypatch.setattr(module, "write_tensors", dying)
    torch.manual_seed(0)
    with pytest.raises(Killed):
        PROBLEMS["default"].search(Checkpoint(tmp_path)).run()
    monkeypatch.undo()
    resumed = PROBLEMS["default"].search(Checkpoint(tmp_path))
    assert_identical(outcome(resumed), uninterrupted("default"))


def test_a_finished_run_resumed_trains_nothing_more(tmp_path):
    PROBLEMS["default"].search(Checkpoint(tmp_path)).run()
    reported: list[dict[str, Any]] = []
    again = PROBLEMS["default"].search(Checkpoint(tmp_path), reported.append)
    assert_identical(outcome(again), uninterrupted("default"))
    assert reported == []


@pytest.mark.parametrize("count", [2, 5])
def test_the_checkpoint_of_another_run_is_refused(count, tmp_path):
    with pytest.raises(Killed):
        PROBLEMS["default"].search(Checkpoint(tmp_path), kill_at(count)).run()
    for other in (PROBLEMS["conv"], PROBLEMS["faithful"], Problem(lambda: dropping())):
        with pytest.raises(BayespareError, match="does not fit") as caught:
            other.search(Checkpoint(tmp_path)).run()
        assert "\n" not in str(caught.value)
