"""A loop of the user's own: the method's verbs by hand, and what the callbacks share."""

import re
from pathlib import Path

import pytest
import torch
from digits_loop import BATCH, EPOCHS, accuracy, digits, network, outputs_differ, parameters
from torch import nn

import bayespare
from bayespare.data import Batches
from bayespare.errors import BayespareError
from bayespare.own_loop import OwnLoop
from bayespare.training import ranks

README = Path(__file__).parents[2] / "README.md"


def trained(**options: object) -> tuple[OwnLoop, nn.Module]:
    splits, model = digits(), network()
    batches = Batches(splits.train, BATCH, shuffle=True, drop_last=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    loop = OwnLoop(
        model,
        splits.train.x[:4],
        examples=len(splits.train),
        steps=EPOCHS * len(batches),
        batch=BATCH,
        **options,
    )
    for _ in range(EPOCHS):
        model.train()
        for x, y in batches:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            loop.before_step()
            optimizer.step()
            loop.after_step(optimizer)
    done = loop.finish(optimizer)
    assert {id(p) for g in optimizer.param_groups for p in g["params"]} == {
        id(p) for p in model.parameters()
    }
    return loop, done.model


def test_a_plain_loop_ends_with_a_smaller_network() -> None:
    torch.manual_seed(0)
    loop, small = trained()
    test = digits().test
    assert accuracy(small, test) > 0.93
    assert parameters(small) < 0.8 * parameters(network())
    assert outputs_differ(loop.network, small, test.x) < 1e-4


def test_model_reduction_works_in_it_too() -> None:
    torch.manual_seed(0)
    _, small = trained(method="bmr")
    assert accuracy(small, digits().test) > 0.9
    assert parameters(small) < parameters(network())


def test_the_kl_counts_once_and_its_tempering_rises() -> None:
    x = torch.randn(8, 64)
    loop = OwnLoop(network(), x, examples=50, steps=100, batch=8, explore=0.5, tempering=0.7)
    loop.network.train()
    loop.before_step()
    assert loop.method.tempering == pytest.approx(0.05)
    gates = loop.method.gates
    expected = torch.autograd.grad(loop.method.kl() * 0.05 / 50, gates)[0]
    torch.testing.assert_close(gates.grad, expected)
    loop.taken = 50
    loop.before_step()
    assert loop.method.tempering == pytest.approx(0.7)


@pytest.mark.parametrize("examples", [50, 100_000])
def test_decided_it_cools_by_the_examples_for_each_weight(examples: int) -> None:
    x = torch.randn(8, 64)
    loop = OwnLoop(network(), x, examples=examples, steps=100, batch=8)
    optimizer = torch.optim.Adam(loop.network.parameters())
    loop.network.train()
    loop.finish(optimizer)
    each = examples / parameters(loop.network)
    assert loop.method.tempering == pytest.approx(max(0.05, min(1.0, each / 90)))
    loop.before_step()
    assert loop.method.tempering == pytest.approx(max(0.05, min(1.0, each / 90)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "spam"}, "method=spam: has to see the training data"),
        ({"method": "flat-ff"}, "method=flat-ff: removes nothing"),
        ({"explore": 0.0}, "explore=0.0: must be above 0"),
        ({"method": "ss-gi"}, "unknown method 'ss-gi'"),
        ({"method": "node-pip", "algorithm": "dense"}, "node-pip: algorithm='dense' finds"),
        ({"method": "node-pip", "algorithm": "spike"}, "use algorithm='gates', or bayespare.spars"),
        ({"method": "node-pip", "prior": "beta"}, "node-pip: prior='beta' is learnt between"),
        ({"method": "node-pip", "draws": 8}, "draws=8 belongs to a polish on all training data"),
        ({"method": "node-pip", "sweeps": 5}, "node-pip: sweeps=5 belongs to a polish"),
        ({"method": "node-pip", "judged": 9}, "use judged=256, or bayespare.sparsify"),
    ],
)
def test_what_cannot_be_done_is_said(options: dict[str, object], message: str) -> None:
    with pytest.raises(BayespareError, match=re.escape(message)):
        OwnLoop(network(), torch.randn(4, 64), examples=9, steps=9, batch=4, **options)


def test_gates_of_node_pip_are_held_open_at_first() -> None:
    torch.manual_seed(0)
    model, x, y = network(), torch.randn(8, 64), torch.randint(0, 10, (8,))
    loop = OwnLoop(model, x, examples=9, steps=20, batch=4, explore=0.5, method="node-pip")
    assert loop.method.config.draws == 0
    optimizer = torch.optim.Adam(model.parameters())
    start, held = loop.method.gates.detach().clone(), []
    for step in range(8):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        loop.before_step()
        optimizer.step()
        loop.after_step(optimizer)
        held.append(loop.method.held)
        assert torch.equal(loop.method.gates, start) == (step < 4)
    # Of ten steps of exploration the first 0.35: what is said is of the step to come.
    assert held == [True] * 3 + [False] * 5
    loop.method.held = True
    loop.finish(optimizer)
    assert not loop.method.held


def test_a_config_can_be_given_back() -> None:
    x = torch.randn(4, 64)
    for method in ("ss-ghs", "node-pip", "bmr"):
        config = OwnLoop(network(), x, examples=9, steps=9, batch=4, method=method).method.config
        given = config.model_dump()
        again = OwnLoop(network(), x, examples=9, steps=9, batch=4, method=method, **given)
        assert again.method.config == config


def test_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "world", lambda: 2)
    with pytest.raises(BayespareError, match="cannot be cut inside another library's loop"):
        OwnLoop(network(), torch.randn(4, 64), examples=9, steps=9, batch=4)


def test_the_readmes_own_loop_runs() -> None:
    section = README.read_text().partition("Your own loop**")[2]
    code = section.partition("```python")[2].partition("```")[0]
    torch.manual_seed(0)
    space: dict[str, object] = {}
    exec(code, space)
    small = space["small"]
    assert isinstance(small, nn.Module)
    assert parameters(small) < parameters(network())
    assert accuracy(small, digits().test) > 0.9
    assert bayespare.finish is space["bayespare"].finish
