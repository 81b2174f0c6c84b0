"""Settings: what they mean for the priors, what is refused, and that they survive JSON."""

import copy

import pytest
import torch
from cases import METHODS, NETS, MethodCase, started
from torch import Tensor, nn

from bayespare import BayespareError, UnsupportedStructureError, methods, nets, trace
from bayespare.bayes.weights import FullWeights
from bayespare.methods.wiring import posterior_layers

EVERY = pytest.mark.parametrize("case", METHODS, ids=str)
ON_EVERY = pytest.mark.parametrize("net", NETS, ids=str)


@pytest.mark.parametrize("settings_", [{}, {"settings": "faithful"}], ids=str)
@ON_EVERY
def test_one_over_k_expects_one_unit_a_group(settings_, net):
    fit = started(MethodCase("ss-ig", {**settings_, "prior": "1/k"}), net)
    sizes = [len(odds) for odds in fit.method.log_odds().values()]
    for part in fit.method.prior_inclusion.split(sizes):
        assert part.sum().item() == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("name", ["ss-ig", "node-pip"])
@pytest.mark.parametrize("prior", ["1/k", "theory", 1 - 1e-9])
def test_the_prior_of_a_unit_alone_in_its_group_is_finite(prior, name):
    model = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1), nn.Tanh(), nn.Linear(1, 1))
    plan = trace(model, torch.randn(3, 1))
    assert 1 in [group.size for group in plan.groups]
    for settings_ in [{}] if name == "node-pip" else [{}, {"settings": "faithful"}]:
        method = methods.build(name, prior=prior, **settings_)
        method.attach(copy.deepcopy(model), plan, examples=100)
        assert method.kl().isfinite()
        alone = method.prior_inclusion[0 if not settings_ else -1].item()
        assert prior != "1/k" or alone == 0.5


def test_theory_of_wide_layers_does_not_underflow():
    model = nn.Sequential(nn.Linear(20_000, 2), nn.ReLU(), nn.Linear(2, 1))
    method = methods.build("ss-ig", prior="theory")
    method.attach(model, trace(model, torch.randn(2, 20_000)), examples=100)
    assert method.kl().isfinite()


@ON_EVERY
def test_theory_is_below_one_over_k_and_close_to_it_in_small_networks(net):
    fit = started(MethodCase("ss-ig", {"prior": "theory"}), net)
    sizes = [len(odds) for odds in fit.method.log_odds().values()]
    for part in fit.method.prior_inclusion.split(sizes):
        assert 0.85 < part.sum().item() <= 1 + 1e-5


def test_the_authors_give_convolutions_the_values_of_the_linear_layers():
    """Card section 5: LeNet's conv1 has fc1's inclusion probability, conv2 has fc2's."""
    model = nets.build("lenet5-wide", inputs=(1, 28, 28), outputs=10, seed=0)
    plan = trace(model, torch.randn(2, 1, 28, 28), check=False)
    method = methods.build("ss-ig", settings="faithful")
    method.attach(model, plan, examples=60_000)
    sizes = [len(odds) for odds in method.log_odds().values()]
    first, second = 0.0007476536190355422, 0.0011962462408110826
    for part, expected in zip(
        method.prior_inclusion.split(sizes), (first, second, first, second), strict=True
    ):
        assert part.unique().tolist() == pytest.approx([expected])


def test_the_authors_means_start_in_their_own_bounds():
    """Their linear fan-in is the number of outputs (card section 5)."""
    model = nets.build("mlp:40,30", inputs=(20,), outputs=10, seed=0)
    for layer in (model.fc1, model.fc2, model.fc3):
        nn.init.constant_(layer.weight, 9.0)
    plan = trace(model, torch.randn(2, 20))
    methods.build("ss-ig", settings="faithful").attach(model, plan, examples=10)
    for layer in (model.fc1, model.fc2, model.fc3):
        bound = (6 / layer.out_features) ** 0.5
        assert 0.95 * bound < layer.weight.abs().max().item() <= bound
        assert layer.bias.abs().max().item() <= layer.out_features**-0.5


# ------------------------------------------------------------------- the config


@EVERY
def test_configs_round_trip_through_json_and_are_frozen(case: MethodCase):
    config = case.build().config
    assert type(config).model_validate_json(config.model_dump_json()) == config
    with pytest.raises(ValueError, match="frozen"):
        config.tempering = 2.0  # type: ignore[attr-defined]


@EVERY
def test_a_methods_own_config_can_be_given_back(case: MethodCase):
    config = case.build().config
    assert methods.build(case.name, **config.model_dump()).config == config


@pytest.mark.parametrize("name", ["flat-ff", "flat-map", "tiered-ff", "bmr"])
def test_the_authors_rate_can_be_set(name):
    fit = started(MethodCase(name, {"settings": "faithful", "rate": 0.02}), NETS[0])
    assert fit.method.config.rate == 0.02
    groups = fit.method.parameter_groups(fit.network, 16)
    assert [group["lr"] for group in groups] == [0.02]


def test_settings_change_the_authors_values_one_by_one():
    config = methods.build("ss-ghs", settings="faithful").config
    assert (config.prior, config.prior_std, config.start_inclusion) == ("theory", 1.3, 0.99)
    assert (config.kl_every, config.settled, config.centred, config.c_reg) == (1, 0.0, True, 1.0)
    assert not methods.build("ss-gl", settings="faithful").config.centred
    assert methods.build("ss-ghs", settings="faithful", prior_std=0.2).config.prior_std == 0.2


@pytest.mark.parametrize(
    ("name", "settings_", "says"),
    [
        ("ss-igg", {}, "did you mean 'ss-ig'"),
        ("ss-ig", {"priors": 0.1}, "priors"),
        ("ss-ig", {"scope": "layer"}, "unknown setting 'scope'; of spam it is one"),
        ("ss-ig", {"settings": "faithfull"}, "settings"),
        ("ss-ig", {"prior": 1.5}, "prior"),
        ("ss-ig", {"prior": 0.0}, "prior"),
        ("ss-ig", {"prior": "half"}, "prior"),
        ("ss-ig", {"prior_std": -1.0}, "prior_std"),
        ("ss-ghs", {"c_reg": 0.0}, "c_reg"),
        ("ss-ig", {"temperature": 0}, "temperature"),
        ("ss-ig", {"start_inclusion": 1.0}, "start_inclusion"),
        ("ss-ig", {"kl_every": 0}, "kl_every"),
        ("ss-ig", {"settled": 0.5}, "settled"),
        ("ss-ig", {"slab": "group-lasso"}, "ss-ig: slab='group-lasso': this method has slab=gaus"),
        ("ss-ig", {"slab": "group-lasso"}, "use method=ss-gl"),
        ("bmr-rhs", {"slab": "flat"}, "use method=bmr"),
        ("bmr", {"slab": 3}, "bmr: slab=3: this method has slab=flat; leave the setting out"),
    ],
)
def test_bad_settings_are_refused_in_one_line_that_names_them(name, settings_, says):
    with pytest.raises(BayespareError) as caught:
        methods.build(name, **settings_)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


class InGroups(nn.Module):
    """A layer that no method has a posterior for, between two that all have."""

    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Conv1d(1, 6, 1)
        self.up = nn.ConvTranspose1d(6, 4, 2, groups=2)
        self.out = nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.up(self.into(x).relu()).relu().flatten(1))


@pytest.mark.parametrize("name", ["ss-ig", "bmr", "spam"])
def test_what_a_layer_without_a_posterior_reads_stays(name):
    model, x = InGroups(), torch.randn(2, 1, 3)
    method = methods.build(name)
    method.attach(model, trace(model, x), examples=10)
    assert {group.name for group in method.plan.groups} == {"up"} == set(method.log_odds())
    assert "cannot have a posterior" in method.plan.left_alone["into.weight"]
    assert isinstance(model.up, nn.ConvTranspose1d)


class Raw(nn.Module):
    """Weights that belong to no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = (nn.Parameter(torch.randn(shape)) for shape in ((4, 2), (3, 4)))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(nn.functional.linear(x, self.into).relu(), self.out)


@pytest.mark.parametrize("name", ["ss-ig", "bmr", "spam"])
def test_a_network_in_which_nothing_can_have_a_posterior_is_refused(name):
    model, x = Raw(), torch.randn(5, 2)
    with pytest.raises(UnsupportedStructureError, match="cannot have a posterior"):
        methods.build(name).attach(model, trace(model, x), examples=10)


@pytest.mark.parametrize("name", ["ss-ig", "bmr", "spam"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_a_network_that_is_not_in_float32_is_refused_by_its_first_parameter(name, dtype):
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2).to(dtype))
    plan = trace(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(2, 3))
    said = f"2.weight is in {dtype}, and posteriors are fitted in torch.float32"
    with pytest.raises(UnsupportedStructureError, match=said):
        methods.build(name).attach(model, plan, examples=10)
    # It is as it was.
    assert [type(layer) for layer in model] == [nn.Linear, nn.ReLU, nn.Linear]


def test_the_authors_spreads_lie_where_the_network_does():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    plan = trace(model, torch.randn(2, 3))
    layers = posterior_layers(model.to("meta"), plan)
    assert {p.device.type for p in FullWeights(layers, -1.0).parameters()} == {"meta"}


IDLE = [
    ("spam", {"prior_std": 1e-3}, "prior= says how"),
    ("spam", {"start_std": 5.0}, "at the mode"),
    ("spam", {"rate": 0.7}, "settings=faithful"),
    ("spam", {"noise": "example"}, "without noise"),
    ("tiered-ff", {"prior_std": 1e-3}, "global_scale"),
    ("ss-ig", {"c_reg": 7.0}, "method=ss-ghs"),
    ("ss-ig", {"centred": False}, "ss-gl and ss-ghs"),
    ("ss-gl", {"c_reg": "learnt"}, "method=ss-ghs"),
    ("node-pip", {"c_reg": 7.0}, "method=ss-ghs"),
    ("bmr", {"noise": "example"}, "unit=weight"),
    ("bmr", {"prune_last": False}, "unit=weight"),
    ("flat-ff", {"noise": "example"}, "settings=faithful"),
    ("flat-ff", {"settings": "faithful", "prior_std": 2.0}, "settings=default"),
]


@pytest.mark.parametrize(("name", "settings", "says"), IDLE, ids=str)
def test_a_setting_without_effect_is_refused(name, settings, says):
    with pytest.raises(BayespareError, match=f"would have no effect: .*{says}"):
        methods.build(name, **settings)


def test_settings_have_their_effect_where_the_others_ask_for_it():
    for name, settings in (
        ("bmr", {"unit": "weight", "noise": "example", "prune_last": False}),
        ("bmr", {"settings": "faithful", "unit": "unit", "noise": "example", "rate": 0.1}),
        ("flat-ff", {"prior_std": 2.0, "start_std": 0.3}),
        ("ss-ghs", {"c_reg": 7.0, "centred": False}),
        ("spam", {"settings": "faithful", "rate": 0.1}),
    ):
        assert methods.build(name, **settings).config.model_dump().items() >= settings.items()
