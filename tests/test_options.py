"""What a run can be told: which ways exclude each other, and what follows from them."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import bayespare.options as module
from bayespare import BayespareError, Options, Plan, UnsupportedStructureError, nets, trace
from bayespare.data import Dataset, from_tensors
from bayespare.methods import registry as methods
from bayespare.options import LEAST_EPOCHS
from bayespare.structure.explain import table
from bayespare.structure.positions import with_positions
from bayespare.training.pace import Pace

FAITHFUL = {"settings": "faithful"}


def mlp() -> nn.Module:
    return nets.build("mlp:16,8", inputs=(6,), outputs=3, seed=0)


def lenet() -> nn.Module:
    return nets.build("lenet5", inputs=(1, 20, 20), outputs=3, seed=0)


def plan_of(model: nn.Module, *shape: int) -> Plan:
    return with_positions(trace(model, torch.randn(4, *shape)))


def data(rows: int = 400) -> Dataset:
    random = torch.Generator().manual_seed(0)
    return from_tensors(torch.randn(rows, 6, generator=random), torch.arange(rows) % 3)


# ---------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"lr": 0.0}, "lr=0.0: must be a number above 0"),
        ({"lr": math.nan}, "lr=nan"),
        ({"lr": math.inf}, "lr=inf"),
        ({"lr": "0.1"}, "lr='0.1': must be a number above 0"),
        ({"finetune": -1}, "finetune=-1: must be a whole number, 0 or more"),
        ({"samples": "9"}, "samples='9': must be a whole number, 1 or more"),
        ({"epochs": "9"}, "epochs='9': must be a whole number, 1 or more"),
        ({"epochs": True}, "epochs=True: must be a whole number"),
        ({"batch": 2.5}, "batch=2.5: must be a whole number"),
        ({"survivors": "no"}, "survivors='no': must be True or False"),
        ({"quick": 1}, "quick=1: must be True or False"),
        ({"seed": None}, "seed=None: must be a whole number"),
        ({"settings": "faithful"}, "settings='faithful': must be names with values"),
        ({"max_params": "100"}, "max_params='100': must be a number"),
        ({"unit": "units"}, "unit='units'.*did you mean 'unit'"),
        ({"keep": "fc1"}, "keep='fc1': must be a list of names"),
        ({"time": "soon"}, "time=soon: must be a time above 0"),
        ({"time": 0}, "time=0"),
        ({"time": 9, "epochs": 3}, "epochs= and time= exclude each other"),
        ({"quick": True, "epochs": 3}, "epochs= and quick=true exclude each other"),
        ({"quick": True, "time": 3}, "time= and quick=true exclude each other"),
        ({"sparsity": 2.0}, "sparsity=2.0: must be a number between 0 and 1"),
        ({"sparsity": 0.5, "max_params": 9}, "say the same in two ways"),
        ({"max_latency_ms": -1.0}, "max_latency_ms=-1.0"),
        ({"max_macs": 0}, "max_macs=0"),
    ],
    ids=str,
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(BayespareError, match=says) as caught:
        Options(**options)
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------- epochs, rates, phases


def test_a_run_of_few_steps_says_so_where_an_epoch_is_one() -> None:
    told = Options(method="node-pip", epochs=40).told_of_length(1800)
    assert told is not None
    assert "epochs=40: node-pip takes small data whole, so that is 40 steps; 3,000" in told
    assert Options(method="node-pip", epochs=150).told_of_length(1800) is None
    assert Options(method="node-pip").told_of_length(1800) is None
    assert Options(method="ss-ghs", epochs=2).told_of_length(1800) is None
    quick = Options(method="node-pip", quick=True).told_of_length(1800)
    assert quick is not None
    assert quick.startswith("quick=true: 300 epochs in place of 3,000")


def test_quick_is_a_tenth_but_enough_for_the_phases() -> None:
    for examples in (54_000, 1437, 300):
        usual = Options().epochs_for(examples)
        quick = Options(quick=True).epochs_for(examples)
        assert quick == max(LEAST_EPOCHS, round(usual / 10))
    assert Options(quick=True).epochs_for(54_000) == 6
    assert Options(quick=True, settings=FAITHFUL).epochs_for(54_000) == 120
    assert (Options().trains_dense, Options(quick=True).trains_dense) == (True, False)
    assert not Options(baseline=False).trains_dense
    schedule = Options(epochs=LEAST_EPOCHS).schedule(54_000)
    assert min(schedule.warm, schedule.explore, schedule.cool) >= 1


@pytest.mark.parametrize("settings", [{}, FAITHFUL], ids=["default", "faithful"])
@pytest.mark.parametrize("finetune", [0, 7])
def test_fine_tuning_is_what_was_asked_for(settings: dict[str, str], finetune: int) -> None:
    usual = Options(settings=settings, epochs=60).schedule(1000)
    given_ = Options(settings=settings, epochs=60, finetune=finetune).schedule(1000)
    assert (given_.warm, given_.explore) == (usual.warm, usual.explore)
    assert {given_.cooling_epochs(found, 1e3) for found in (1, 2, 4)} == {finetune}


def test_networks_that_are_not_trained_are_as_they_were_decided() -> None:
    """They could go on from larger ones only with what these learnt."""
    assert Options(epochs=12).schedule(1000).inherit
    assert Options(epochs=12, finetune=1).schedule(1000).inherit
    assert not Options(epochs=12, finetune=0).schedule(1000).inherit


@pytest.mark.parametrize(("epochs", "cool"), [(1, 1), (3, 3), (12, 5), (60, 15)])
def test_candidates_cool_for_five_epochs_at_least(epochs: int, cool: int) -> None:
    assert Options(epochs=epochs).schedule(1000).cool == cool


@pytest.mark.parametrize(
    ("epochs", "examples", "inherit"),
    [(23, 54_000, True), (24, 54_000, False), (60, 9_000, True), (300, 54_000, False)],
)
def test_in_few_steps_candidates_go_on_from_each_other(
    epochs: int, examples: int, inherit: bool
) -> None:
    assert Options(epochs=epochs).schedule(examples).inherit == inherit


def test_survivors_are_refitted_unless_told_otherwise() -> None:
    assert Options(epochs=12).schedule(1000).survivors
    assert not Options(epochs=12, survivors=False).schedule(1000).survivors


def test_one_rate_scales_all_others() -> None:
    assert Options().rate == 1.0
    options = Options(lr=3e-3, epochs=12)
    assert options.rate == pytest.approx(3)
    assert options.schedule(1000).warm_rate == 3e-3
    network, train = mlp(), data()
    plan = plan_of(network, 6)
    fit, usual = (
        o.attach(mlp(), plan, len(train), nn.Module(), torch.Generator())  # type: ignore[arg-type]
        for o in (options, Options(epochs=12))
    )
    rates, before = ([g["base_lr"] for g in f.optimizer.param_groups] for f in (fit, usual))
    assert rates == pytest.approx([3 * rate for rate in before])


def test_gates_are_faster_in_short_runs_alone() -> None:
    network, train = mlp(), data()
    plan = plan_of(network, 6)

    def rates(epochs: int | None, **settings: Any) -> list[float]:
        options = Options(epochs=epochs, **settings)
        likelihood, generator = nn.Module(), torch.Generator()
        fit = options.attach(mlp(), plan, len(train), likelihood, generator)  # type: ignore[arg-type]
        return [group["base_lr"] for group in fit.optimizer.param_groups]

    *others, gates = rates(None)
    assert rates(60) == [*others, gates]
    assert rates(15) == pytest.approx([*others, 4 ** (2 / 3) * gates])  # 6 of 24
    assert rates(15, tempering=0.3) == [*others, gates]


# -------------------------------------------------------------------------- time


@pytest.fixture
def paced(monkeypatch: pytest.MonkeyPatch) -> Pace:
    """A machine on which epochs take known times."""
    pace = Pace(dense=1.0, noisy=2.0)
    monkeypatch.setattr(module, "measure_pace", lambda *_: pace)
    return pace


CHANGES: list[dict[str, Any]] = [
    {},
    {"baseline": False},
    {"finetune": 3},
    {"tempering": 1.0},
    {"settings": FAITHFUL},
]


@pytest.mark.parametrize("change", CHANGES, ids=str)
@pytest.mark.parametrize("seconds", [200, 3600, 100_000])
def test_a_time_gives_the_most_epochs_that_fit(
    paced: Pace, change: dict[str, Any], seconds: int
) -> None:
    train = data()
    asked = Options(time=seconds, **change)
    timed = asked.timed(mlp(), plan_of(mlp(), 6), train)
    assert timed.time is None

    def needed(epochs: int) -> float:
        options = replace(timed, epochs=epochs)
        return paced.seconds(options.schedule(400), epochs * options.trains_dense)

    assert timed.epochs is not None
    assert needed(timed.epochs) <= seconds < needed(timed.epochs + 1)
    assert replace(timed, epochs=None) == replace(asked, time=None)


def test_a_time_that_is_not_enough_is_refused_with_what_would_be(paced: Pace) -> None:
    train, plan = data(), plan_of(mlp(), 6)
    with pytest.raises(
        BayespareError, match=r"time=5s: the fewest .* \(4\) need about (\d+)s"
    ) as e:
        Options(time="5s").timed(mlp(), plan, train)
    enough = int(str(e.value).partition("about ")[2].partition("s")[0])
    assert Options(time=enough).timed(mlp(), plan, train).epochs == LEAST_EPOCHS
    with pytest.raises(BayespareError, match="need about"):
        Options(time=enough - 2).timed(mlp(), plan, train)


def test_without_a_time_nothing_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "measure_pace", None)
    options = Options()
    assert options.timed(mlp(), plan_of(mlp(), 6), data()) is options


def test_a_real_clock_gives_a_sensible_number() -> None:
    train, plan = data(), plan_of(mlp(), 6)
    few = Options(time=20, batch=40).timed(mlp(), plan, train).epochs
    assert few is not None
    assert 20 < few < 20 / 10 / 5e-5


# -------------------------------------------------------------------------- plan


def test_everything_may_go_unless_somebody_says_so() -> None:
    plan = plan_of(mlp(), 6)
    assert Options().narrowed(plan).to_json() == plan.to_json()


@given(st.sets(st.sampled_from(["input", "fc1", "fc2"]), max_size=2))
def test_groups_that_are_kept_are_not_in_the_plan(names: set[str]) -> None:
    plan = plan_of(mlp(), 6)
    narrowed = Options(keep=sorted(names)).narrowed(plan)
    assert [g.name for g in narrowed.groups] == [g.name for g in plan.groups if g.name not in names]
    told = {"input": ["input"], "fc1": ["fc1.weight", "fc1.bias"]}
    for name in names & told.keys():
        assert all(narrowed.left_alone[t] == "kept whole, as asked" for t in told[name])
    if "fc1" in names:
        assert "kept whole, as asked" in table(narrowed, mlp())


def test_names_that_are_no_groups_are_refused() -> None:
    plan = plan_of(mlp(), 6)
    with pytest.raises(BayespareError, match=r"keep=fc1,fc9: .*'fc9' \(did you mean 'fc"):
        Options(keep=["fc1", "fc9"]).narrowed(plan)
    with pytest.raises(UnsupportedStructureError, match="keep=input,fc1,fc2: nothing is left"):
        Options(keep=("input", "fc1", "fc2")).narrowed(plan)
    with pytest.raises(UnsupportedStructureError, match=r"unit=feature: .*, as asked"):
        Options(keep=("input",), unit="feature").narrowed(plan)


def test_features_alone() -> None:
    narrowed = Options(unit="feature").narrowed(plan_of(mlp(), 6))
    assert [group.name for group in narrowed.groups] == ["input"]
    assert narrowed.left_alone["fc1.weight"] == "kept whole, as asked"
    with pytest.raises(UnsupportedStructureError, match="unit=feature: no input feature can be"):
        Options(unit="feature").narrowed(plan_of(lenet(), 1, 20, 20))


def test_a_unit_that_the_method_does_not_decide_about_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan = plan_of(mlp(), 6)
    for unit in ("head", "weight"):
        with pytest.raises(BayespareError, match=f"unit={unit}: ss-ghs decides about unit or fea"):
            Options(unit=unit).narrowed(plan)
    with pytest.raises(BayespareError, match="unit=feature: settings=faithful gates hidden units"):
        Options(unit="feature", settings=FAITHFUL).narrowed(plan)
    monkeypatch.setattr(methods, "_REGISTRY", dict(methods._REGISTRY))

    class Heads(methods.Method):
        offers = ("head",)

    methods.register("heads", methods.Config)(Heads)
    with pytest.raises(BayespareError, match=r"unit=head: ss-ghs .*; heads can$"):
        Options(unit="head").narrowed(plan)


def test_every_author_s_run_is_their_own():
    faithful = {"settings": "faithful"}
    for method, epochs, batch in (("ss-gl", 1200, 1024), ("bmr", 51, 120), ("flat-ff", 51, 120)):
        options = Options(method=method, settings=faithful)
        assert (options.epochs_for(54_000), options.batch_for(54_000)) == (epochs, batch)
        assert options.schedule(54_000).explore == epochs


@pytest.mark.parametrize("method", ["flat-ff", "flat-map", "tiered-ff"])
def test_a_budget_is_refused_where_nothing_is_ever_removed(method):
    model = nets.build("mlp:8", inputs=(4,), outputs=2)
    plan = trace(model, torch.randn(2, 4))
    with pytest.raises(BayespareError, match=f"{method} removes nothing"):
        Options(method=method, max_params=20).narrowed(plan)
    assert Options(method=method).narrowed(plan).groups
    assert Options(method="bmr", max_params=20).narrowed(plan).groups
