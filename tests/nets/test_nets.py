import math
import sys

import pytest
import torch
from net_table import PUBLISHED, SMALL
from torch import nn

from bayespare.errors import BayespareError
from bayespare.nets import build, known


@pytest.mark.parametrize(("spec", "inputs", "outputs", "parameters"), PUBLISHED)
def test_sizes_and_output_shape(spec, inputs, outputs, parameters):
    with torch.device("meta"):  # shapes without memory
        net = build(spec, inputs=inputs, outputs=outputs, seed=0)
        assert sum(p.numel() for p in net.parameters()) == parameters
        assert net(torch.empty(2, *inputs)).shape == (2, outputs)


def test_every_registered_net_is_in_the_tables():
    for table in (PUBLISHED, SMALL):
        assert {spec.partition(":")[0] for spec, *_ in table} == set(known())


@pytest.mark.parametrize(("spec", "inputs"), SMALL)
def test_every_net_runs_learns_and_is_saved(spec, inputs, float64):
    net = build(spec, inputs=inputs, outputs=3, seed=0)
    assert {p.dtype for p in net.parameters()} == {torch.float64}
    for parameter in net.parameters():  # Fixup starts branches and head at zero
        parameter.data += 0.1 * torch.randn(parameter.shape)
    x = torch.randn(5, *inputs)
    before = net.train()(x)
    (before * torch.randn(5, 3)).sum().backward()
    idle = [n for n, p in net.named_parameters() if not p.grad.any()]
    assert not [n for n in idle if not n.endswith("key.bias")]  # softmax does not see it

    y = net.eval()(x)
    assert y.shape == (5, 3)
    assert torch.equal(y, net(x))
    torch.testing.assert_close(torch.cat([net(row[None]) for row in x]), y)  # rows do not meet

    other = build(spec, inputs=inputs, outputs=3, seed=1).eval()
    assert not torch.equal(other(x), y)
    other.load_state_dict(net.state_dict())
    assert torch.equal(other(x), y)
    assert ("dropout" in spec) != torch.equal(net.train()(x), net(x))

    again = build(spec, inputs=inputs, outputs=3, seed=1)
    first, second = (dict(n.state_dict()) for n in (again, build(spec, inputs=inputs, outputs=3)))
    assert list(first) == list(second)
    assert any(not torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("spec", ["resnet20", "lenet", "vit", "mixer", "simple-vit", "wrn:16,4"])
def test_a_net_for_images_says_so(spec):
    for inputs in ((784,), (3, 4, 8, 8)):
        with pytest.raises(BayespareError, match=r"needs images \(channels, height, width\)"):
            build(spec, inputs=inputs, outputs=10)


def test_layers_are_named_as_people_name_them():
    assert [n for n, _ in build("mlp:3,4", inputs=(2,), outputs=1).named_children()] == [
        *("flatten", "fc1", "act1", "fc2", "act2", "fc3")
    ]
    assert [n for n, _ in build("lenet5", inputs=(1, 28, 28), outputs=2).named_children()] == [
        *("conv1", "pool1", "act1", "conv2", "pool2", "act2", "flatten", "fc1", "act3", "fc2")
    ]


@pytest.mark.parametrize("name", ["relu", "silu", "gelu", "elu", "tanh", "sigmoid"])
def test_activation_is_the_one_asked_for(name):
    net = build(f"mlp:7, act={name}", inputs=(3,), outputs=2, seed=1)
    x = torch.randn(4, 3)
    function = {"gelu": nn.functional.gelu, "elu": nn.functional.elu}.get(name) or getattr(
        torch, name, nn.functional.silu
    )
    torch.testing.assert_close(net(x), net.fc2(function(net.fc1(x))))


def test_hidden_weights_have_he_variance_and_zero_biases():
    net = build("lenet5-wide", inputs=(1, 28, 28), outputs=10, seed=0)
    for name, layer in net.named_children():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            fan_in = layer.weight[0].numel()
            gain = 1 / 3 if name == "fc3" else 2.0  # the output keeps U(-1, 1) / sqrt(fan-in)
            spread = layer.weight.std().item() * math.sqrt(fan_in)
            assert spread == pytest.approx(math.sqrt(gain), rel=0.1), name
            assert not layer.bias.any()


def test_seed_fixes_the_weights_and_leaves_the_global_generator_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first, second, other = (
        build("mlp:4", inputs=(3,), outputs=2, seed=s).fc1.weight for s in (5, 5, 6)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())
    build("mlp:4", inputs=(3,), outputs=2)
    assert not torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("mpl:400", "unknown net 'mpl:400' (did you mean 'mlp'?)"),
        ("lnet5", "did you mean 'lenet5'?"),
        ("", "unknown net ''"),
        ("mlp", "needs its widths"),
        ("mlp:", "needs its widths"),
        ("mlp:4,,4", "an option is empty"),
        ("mlp:4,act=", "an option is empty"),
        ("mlp:0", "width '0'"),
        ("mlp:-3", "width '-3'"),
        ("mlp:4.5", "width '4.5'"),
        ("mlp:99999999999", "width '99999999999'"),
        ("mlp:4,act=rleu", "did you mean 'relu'?"),
        ("mlp:4,atc=relu", "did you mean 'act'?"),
        ("mlp:4,act=relu,act=silu", "given twice"),
        ("lenet5:20,50", "takes no widths"),
        ("lenet300:act=silu", "unknown option 'act' (it takes none)"),
        ("mlp:4,dropout=1", "dropout '1' is not a number from 0 up to 1"),
        ("mlp:4,dropout=nan", "dropout 'nan' is not a number"),
        ("mlp:4,dropout=much", "dropout 'much' is not a number"),
        ("residual-mlp", "needs its widths, for example residual-mlp:400,400"),
        ("lenet:6,16,120", "needs three numbers of channels and one of hidden units"),
        ("lenet:pool=mean", "unknown pool 'mean'"),
        ("lenet:kernel=0", "kernel '0' is not a whole number from 1 to 11"),
        ("resnet21", "did you mean 'resnet"),
        ("resnet50", "did you mean 'resnet"),
        ("resnet20:depth=20", "unknown option 'depth'"),
        ("resnet20:20", "takes no widths, got '20'"),
        ("resnet20:shortcut=c", "unknown shortcut 'c'"),
        ("resnet20:norm=layer", "unknown norm 'layer'"),
        ("resnet18:norm=fixup,shortcut=b", "shortcut=b has batch norm"),
        ("resnet18:stem=imagnet", "did you mean 'imagenet'?"),
        ("resnet18:width=99999", "width '99999' is not a whole number from 1 to 4096"),
        ("wrn", "needs its depth (10, 16, 22, 28 ...) and factor"),
        ("wrn:17,4", "needs its depth"),
        ("wrn:16,4,2", "needs its depth"),
        ("wrn:9999999999999999999,4", "is not a whole number"),
        ("wrn:16,999", "factor 999 is more than 64"),
        ("vit:deph=3", "did you mean 'depth'?"),
        ("vit:depth=0", "depth '0'"),
        ("vit:4", "takes no widths"),
        ("vit:heads=7", "7 heads do not divide dim=256; give the width of one, as in head=36"),
        ("vit:patch=5", "use a patch= that divides 28, or pad them: image=30"),
        ("vit:image=24", "image=24 is smaller than the inputs of shape (1, 28, 28)"),
        ("vit:norm=batch", "unknown norm 'batch'"),
        ("simple-vit:dim=30", "dim=30 is not a multiple of 4"),
        ("mixer:tokens=none", "tokens 'none' is not a whole number"),
        ("mixer:heads=8", "unknown option 'heads'"),
        ("no_such_module_here:make", "no net and no module is called 'no_such_module_here'"),
    ],
)
def test_wrong_specs_are_one_line_errors(spec, message):
    with pytest.raises(BayespareError) as caught:
        build(spec, inputs=(1, 28, 28), outputs=10)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("inputs", [(784,), (1, 15, 28), (1, 28, 8)])
def test_lenet5_names_sizes_it_cannot_take(inputs):
    with pytest.raises(BayespareError, match="needs images"):
        build("lenet5", inputs=inputs, outputs=10)


@pytest.mark.parametrize(("inputs", "outputs"), [((), 1), ((0,), 1), ((3,), 0)])
def test_sizes_below_one_are_refused(inputs, outputs):
    with pytest.raises(BayespareError, match="must all be 1 or more"):
        build("mlp:4", inputs=inputs, outputs=outputs)


OWN = """
import torch

def both(*, inputs, outputs):
    return torch.nn.Linear(inputs[0], outputs)

def one(outputs):
    return torch.nn.Linear(7, outputs)

def none():
    return torch.nn.Linear(1, 1)

def anything(**keywords):
    return torch.nn.Linear(len(keywords), 1)

class Net(torch.nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.layer = torch.nn.Linear(inputs[0], outputs)

ready = torch.nn.Linear(1, 1)

def text():
    return "a net"

def fails():
    raise RuntimeError("two\\nlines")
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_nets.py").write_text(OWN)
    (tmp_path / "broken_nets.py").write_text("def make(:\n")
    (tmp_path / "needy_nets.py").write_text("import a_package_nobody_has\n")
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    yield
    assert sys.path == path
    for name in ("own_nets", "broken_nets", "needy_nets"):
        sys.modules.pop(name, None)


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("factory", "shape"),
    [("both", (2, 5)), ("one", (2, 7)), ("none", (1, 1)), ("anything", (1, 2)), ("Net", (2, 5))],
)
def test_own_factory_gets_the_keywords_it_takes(factory, shape):
    net = build(f"own_nets:{factory}", inputs=(5,), outputs=2, seed=0)
    weight = next(net.parameters())
    assert weight.shape == shape
    again = next(build(f"own_nets:{factory}", inputs=(5,), outputs=2, seed=0).parameters())
    assert torch.equal(weight, again)


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("own_nets:bothh", "did you mean 'both'?"),
        ("own_nets:ready", "ready is Linear; name a function or class"),
        ("own_nets:text", "text returned str, not a torch.nn.Module"),
        ("own_nets:fails", "fails() failed: RuntimeError: two lines"),
        ("broken_nets:make", "broken_nets cannot be imported: SyntaxError"),
        ("needy_nets:make", "needy_nets cannot be imported: No module named"),
    ],
)
def test_own_factory_errors_are_one_line(spec, message):
    with pytest.raises(BayespareError) as caught:
        build(spec, inputs=(5,), outputs=2)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
