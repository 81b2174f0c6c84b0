"""Dead paths close in both directions, and the network says what it said before."""

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structure_nets import cases, mlp, outputs, relative, verdicts
from structure_zoo import ViT
from torch import nn

from bayespare.structure import Verdict, close, compact, mask, trace
from bayespare.structure.positions import with_positions

SLOW = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
X = torch.randn(3, 4)


def keeps(verdict: Verdict) -> dict[str, list[int]]:
    return {g.name: verdict.of(g).nonzero().flatten().tolist() for g in verdict.plan.groups}


def sprinkle_zeros(model: nn.Module, chance: float) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(torch.rand_like(parameter) > chance)


@SLOW
@given(st.data())
def test_closing_changes_nothing_that_is_said(data):
    case = data.draw(cases())
    plan = trace(case.model, case.example)
    if data.draw(st.booleans()):
        plan = with_positions(plan)
    sprinkle_zeros(case.model, data.draw(st.sampled_from([0.3, 0.7, 0.9])))
    verdict = data.draw(verdicts(plan))
    closed, after = close(case.model, verdict, case.example)
    x = torch.randn(4, *case.example.shape[1:], dtype=torch.float64)
    expected = outputs(mask(case.model, verdict), x)
    assert relative(outputs(mask(closed, after), x), expected) <= 1e-9
    assert relative(outputs(compact(closed, after, example=case.example), x), expected) <= 1e-9
    for group in plan.groups:
        assert not (after.of(after.plan[group.name]) & ~verdict.of(group)).any()
    again, still = close(closed, after, case.example)
    assert keeps(still) == keeps(after)
    assert all(
        torch.equal(a, b) for a, b in zip(again.parameters(), closed.parameters(), strict=True)
    )


@SLOW
@given(st.integers(0, 2**16), st.sampled_from([0.4, 0.6, 0.8, 0.95]))
def test_in_an_mlp_what_stays_lies_on_a_path_from_input_to_output(seed, chance):
    torch.manual_seed(seed)
    model = mlp(4, 5, 4, 5, 3)
    sprinkle_zeros(model, chance)
    _, after = close(model, Verdict(trace(mlp(4, 5, 4, 5, 3), X), {}), X)
    links = [layer.weight != 0 for layer in model[::2]]
    forward = [torch.ones(4, dtype=torch.bool)]
    for link in links:
        forward.append((link & forward[-1]).any(1))
    backward = [torch.ones(3, dtype=torch.bool)]
    for link in reversed(links):
        backward.insert(0, (link & backward[0][:, None]).any(0))
    alive = [(f & b).nonzero().flatten().tolist() for f, b in zip(forward, backward, strict=True)]
    assert list(keeps(after).values()) == alive[:-1]


def test_chains_close_both_ways():
    torch.manual_seed(0)
    model = mlp(4, 3, 3, 3, 2)
    with torch.no_grad():
        for layer in model[::2]:
            layer.weight.copy_(torch.eye(*layer.weight.shape))
    plan = trace(model, X)
    verdict = Verdict(plan, {"2": torch.tensor([True, False, True])})
    closed, after = close(model, verdict, X)
    # The last layer reads two units: the third of every layer is not read, nor is the fourth
    # feature; without its middle the second path is dead in both directions.
    assert keeps(after) == {"input": [0], "0": [0], "2": [0], "4": [0]}
    assert torch.allclose(mask(closed, after)(X), mask(model, verdict)(X), atol=1e-6)


def test_a_constant_goes_into_the_reader_with_or_without_a_bias():
    for bias in (True, False):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(4, 3), nn.Sigmoid(), nn.Linear(3, 5, bias=bias), nn.ReLU(), nn.Linear(5, 2)
        )
        plan = trace(model, X)
        with torch.no_grad():
            model[0].weight[1] = 0
        closed, after = close(model, Verdict(plan, {}), X)
        assert keeps(after)["0"] == [0, 2]
        constant = model[0].bias[1].sigmoid()
        before = model[2].bias if bias else 0
        assert torch.allclose(closed[2].bias, before + model[2].weight[:, 1] * constant)
        assert ("2.bias", "write") in {(s.tensor, s.role) for s in after.plan["2"].slots}
        dropped = Verdict(after.plan, {**after.keep, "2": torch.arange(5) < 3})
        small = compact(closed, dropped, example=X)
        assert small[2].bias.shape == (3,)
        assert torch.allclose(mask(closed, after)(X), model(X), atol=1e-6)


def conv(padding: int, mode: str = "zeros", activation: nn.Module | None = None) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3),
        activation or nn.Sigmoid(),
        nn.Conv2d(3, 4, 3, padding=padding, padding_mode=mode),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 2),
    )


def test_zero_padding_keeps_a_constant_where_it_is():
    x = torch.randn(2, 1, 7, 7)
    for padding, mode, stays in [(0, "zeros", False), (1, "zeros", True), (1, "reflect", False)]:
        model = conv(padding, mode)
        plan = trace(model, x)
        with torch.no_grad():
            model[0].weight[1] = 0
        _, after = close(model, Verdict(plan, {}), x)
        assert (1 in keeps(after)["0"]) == stays


def test_a_constant_of_zero_goes_through_any_padding():
    x = torch.randn(2, 1, 7, 7)
    model = conv(1, activation=nn.ReLU())
    plan = trace(model, x)
    with torch.no_grad():
        model[0].weight[1] = 0
        model[0].bias[1] = -1
    closed, after = close(model, Verdict(plan, {}), x)
    assert keeps(after)["0"] == [0, 2]
    assert torch.equal(closed[2].bias, model[2].bias)


def test_a_reader_that_is_no_layer_keeps_its_constant():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(4, 3)
            self.w = nn.Parameter(torch.randn(3, 2))

        def forward(self, x):
            return self.a(x).sigmoid() @ self.w

    model = Functional()
    plan = trace(model, X)
    with torch.no_grad():
        model.a.weight[1] = 0
        model.w[2] = 0
    _, after = close(model, Verdict(plan, {}), X)
    assert keeps(after)["a"] == [0, 1]


def test_a_unit_that_nobody_reads_still_counts_in_a_norm():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 2)).eval()
    plan = trace(model, X, widths=True)
    with torch.no_grad():
        model[2].weight[:, [1, 2]] = 0
        model[0].weight[2] = 0
        model[0].bias[2] = 0
    closed, after = close(model, Verdict(plan, {}), X)
    # The second is not zero where it is normalised; the third is zero throughout.
    assert keeps(after)["0"] == [0, 1, 3, 4]
    assert torch.allclose(compact(closed, after, example=X)(X), model(X), atol=1e-6)


def test_a_constant_stays_where_groups_of_channels_are_read():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 1), nn.Sigmoid(), nn.Conv2d(8, 8, 1, groups=2), nn.Conv2d(8, 2, 1)
    ).eval()
    x = torch.randn(2, 1, 3, 3)
    plan = trace(model, x)
    assert plan["0"].size == 4
    with torch.no_grad():
        model[0].weight[[1, 5]] = 0
    closed, after = close(model, Verdict(plan, {}), x)
    assert keeps(after)["0"] == [0, 1, 2, 3]
    assert torch.equal(closed[2].bias, model[2].bias)


def test_a_dead_head_goes():
    torch.manual_seed(0)
    model = ViT("split")
    x = torch.randn(2, 3, 12, 12)
    plan = trace(model, x)
    with torch.no_grad():
        model.blocks[0].attention.o.weight[:, 4:8] = 0  # nobody reads the second
        model.blocks[0].attention.qkv.weight[[*range(8), *range(12, 20), *range(24, 32)]] = 0
    closed, after = close(model, Verdict(plan, {}), x)
    assert keeps(after)["blocks.0.attention"] == [2]
    assert torch.allclose(compact(closed, after, example=x)(x), model(x), atol=1e-6)
