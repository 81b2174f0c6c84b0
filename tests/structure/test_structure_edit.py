"""Plans that a user has changed, written down and read, and what is dead in a verdict."""

import pytest
import torch
from structure_nets import half, outputs, relative
from structure_zoo import GPT, ResNet, ViT

from bayespare.errors import BayespareError, UnsupportedStructureError
from bayespare.structure import Fixture, Plan, Verdict, compact, mask, trace
from bayespare.structure.explain import dead, table
from bayespare.structure.sizes import follow

IMAGE = torch.randn(2, 3, 12, 12)
WHOLE, UNTOUCHED = "kept whole, as asked", "not touched, as asked"


@pytest.fixture(scope="module")
def resnet() -> tuple[ResNet, Plan]:
    torch.manual_seed(0)
    model = ResNet("B")
    return model, trace(model, IMAGE)


def names(plan: Plan) -> list[str]:
    return [group.name for group in plan.groups]


def test_a_layer_kept_whole_has_all_its_outputs(resnet):
    model, plan = resnet
    less = plan.keep_whole("layer1.0.conv1", "layer2.1")
    # The second convolution of a block writes the stream, which all blocks share.
    assert names(less) == ["conv", "layer1.1.conv1", "layer2.0.conv1"]
    assert less.left_alone["layer1.0.conv1.weight"] == WHOLE
    assert less.left_alone["layer2.0.bn2.weight"] == WHOLE
    small = compact(model, half(less), example=IMAGE)
    assert small.layer1[0].conv1.weight.shape[0] == 4
    assert small.layer1[0].conv1.weight.shape[1] < 4


def test_a_layer_that_is_not_touched_keeps_its_shapes(resnet):
    model, plan = resnet
    less = plan.never_touch("layer1.0.conv1")
    assert names(less) == ["layer1.1.conv1", "layer2.0.conv1", "layer2.0.conv2", "layer2.1.conv1"]
    assert less.left_alone["conv.weight"] == UNTOUCHED
    small = compact(model, half(less), example=IMAGE)
    assert torch.equal(small.layer1[0].conv1.weight, model.layer1[0].conv1.weight)


def test_only_some_layers_or_kinds(resnet):
    _, plan = resnet
    assert names(plan.only("layer1.1")) == ["conv", "layer1.1.conv1"]
    assert names(plan.only("conv", "layer2.1.conv1")) == ["conv", "layer2.1.conv1"]
    torch.manual_seed(0)
    model = ViT()
    plan = trace(model, IMAGE)
    heads = plan.only(unit="head")
    assert names(heads) == ["blocks.0.attention", "blocks.1.attention"]
    assert heads.left_alone["blocks.0.mlp.0.weight"] == WHOLE
    assert names(plan.only("blocks.1", unit="unit")) == ["blocks.1.mlp.0"]
    compact(model, half(heads), example=IMAGE)


def test_names_that_are_not_in_the_plan(resnet):
    _, plan = resnet
    for edit in (plan.keep_whole, plan.never_touch, plan.only):
        with pytest.raises(
            BayespareError, match=r"the plan has no 'layer1\.0\.conv3' \(did you mea"
        ):
            edit("layer1.0.conv3")
    with pytest.raises(BayespareError, match=r"no such units of kind 'head' \(kinds: channel\)"):
        plan.only(unit="head")


def test_what_is_edited_is_told(resnet):
    model, plan = resnet
    lines = table(plan.keep_whole("layer2.0.conv1"), model).splitlines()
    assert next(line for line in lines if line.startswith("layer2.0.conv1.weight")).endswith(WHOLE)


def test_fixtures_survive_json():
    torch.manual_seed(0)
    model = GPT()
    tokens = torch.randint(11, (2, 6))
    plan = trace(model, tokens, widths=True)
    again = Plan.from_json(plan.to_json())
    written = [(f.layer, f.kind, f.name) for g in plan.groups for f in g.fixtures]
    assert written == [(f.layer, f.kind, f.name) for g in again.groups for f in g.fixtures]
    assert {kind for _, kind, _ in written} == {"count", "norm", "flat"}
    verdict = half(again)
    small = compact(model, verdict, example=tokens)
    assert relative(outputs(small, tokens), outputs(mask(model, verdict), tokens)) < 1e-5
    old = plan.to_json()
    for group in old["groups"]:
        del group["fixtures"]
    assert not any(group.fixtures for group in Plan.from_json(old).groups)
    hostile = plan.to_json()
    hostile["groups"][0]["fixtures"][0]["owner"] = [[99, 0, 1]]
    with pytest.raises(BayespareError, match=r"blocks\.0\.n1 names a unit that group 'wte'"):
        Plan.from_json(hostile)


def edited(plan: Plan, *fixtures: Fixture) -> Plan:
    """A plan whose first group has other fixtures."""
    first = plan.groups[0]
    changed = type(first)(first.name, first.size, first.unit, first.slots, fixtures)
    return Plan((changed, *plan.groups[1:]), plan.left_alone)


@pytest.mark.parametrize(
    ("kind", "layer", "name", "message"),
    [
        ("count", "fc", "forward", "layer fc: has no integer attribute 'forward'"),
        ("count", "fc", "nothing", "layer fc: has no integer attribute 'nothing'"),
        ("norm", "fc", "width", "layer fc: Linear has no form that keeps its old width"),
    ],
)
def test_a_plan_that_asks_for_what_a_layer_has_not(resnet, kind, layer, name, message):
    model, plan = resnet
    wrong = edited(plan, Fixture(layer, kind, name, torch.arange(4)))
    with pytest.raises(UnsupportedStructureError, match=message):
        compact(model, Verdict(wrong, {"conv": torch.arange(4) > 1}))


def test_a_plan_edited_into_something_inexact_is_found_out(resnet):
    model, plan = resnet
    groups = [group for group in plan.groups if group.name == "conv"]
    slots = tuple(slot for slot in groups[0].slots if not slot.tensor.startswith("layer1.1.bn2"))
    wrong = Plan((type(groups[0])("conv", 4, "channel", slots),), {})
    with pytest.raises(UnsupportedStructureError, match=r"layer layer1\.1\.bn2"):
        compact(model, Verdict(wrong, {"conv": torch.arange(4) > 1}), example=IMAGE)


def test_dead_branches_are_named(resnet):
    model, plan = resnet
    none = {"layer1.0.conv1": torch.zeros(4, dtype=torch.bool)}
    assert dead(Verdict(plan, none)) == {"layer1.0.conv1": ["layer1.0.conv2"]}
    small = compact(model, Verdict(plan, none), example=IMAGE)
    assert small.layer1[0].conv1.weight.shape[0] == 1
    assert not small.layer1[0].conv1.weight.any()
    assert dead(Verdict(plan, {})) == {}


def test_following_changes_no_tensor(resnet):
    model, plan = resnet
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    keep = {group.name: torch.ones(group.size, dtype=torch.bool) for group in plan.groups}
    assert follow(model, plan, keep) is model
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
