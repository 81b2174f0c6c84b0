"""What weights are ranked by: card vectors, and slow twins by autograd on a small network."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from bayespare import nets
from bayespare.bayes.curvature import Curvature
from bayespare.bayes.marginal import Laplace, Prior, laplace
from bayespare.bayes.scores import (
    apply_masks,
    grasp,
    group_sums,
    line_sums,
    magnitude,
    masks,
    mean_gradient,
    opd,
    posterior_log_odds,
    random,
    snip,
    squares,
    taylor,
)
from bayespare.errors import BayespareError

D = torch.float64
THETA = torch.tensor([0.9, -0.05, 0.4, -1.2, 0.02, 0.6, -0.3, 0.15, -0.7, 0.01], dtype=D)
PRECISION = torch.tensor([2, 300, 5, 1, 900, 2, 40, 10, 1.5, 5000], dtype=D)


def of(theta: Tensor, precision: Tensor) -> tuple[Laplace, Prior]:
    """A posterior of this precision: half of it from the data, half from the prior."""
    prior = Prior({"w": theta})
    with torch.no_grad():
        prior.logs[0].copy_((precision / 2).log())
    return Laplace({"w": theta}, Curvature({"w": precision / 2}, {}, 1)), prior


def test_opd_of_the_card():
    """TV6."""
    scores = opd(*of(THETA, PRECISION))["w"]
    wanted = [1.62, 0.75, 0.8, 1.44, 0.36, 0.72, 3.6, 0.225, 0.735, 0.5]
    assert scores.tolist() == pytest.approx(wanted)
    assert scores.argsort().tolist() == [7, 4, 9, 5, 8, 1, 2, 3, 0, 6]
    sizes = magnitude({"w": THETA})["w"]
    assert sizes.argsort().tolist() == [9, 4, 1, 7, 6, 2, 5, 8, 0, 3]
    gone = ~masks({"w": scores}, 0.4)["w"]
    assert gone.nonzero().flatten().tolist() == [4, 5, 7, 9]
    assert (~masks({"w": sizes}, 0.4)["w"]).nonzero().flatten().tolist() == [1, 4, 7, 9]


def test_structures_of_the_card():
    """TV7: rows, with their biases, and columns."""
    weight = torch.tensor([[1, 0.1], [-0.2, 0.3], [0.5, -0.5]], dtype=D)
    scores = torch.tensor([[1.0, 10], [20, 4], [2, 2]], dtype=D) * weight.square()
    rows = line_sums(scores, 0)
    assert rows.tolist() == pytest.approx([1.1, 1.16, 1.0])
    assert line_sums(scores, 1).tolist() == pytest.approx([2.3, 0.96])
    bias = torch.tensor([5.0, 3, 1], dtype=D) * torch.tensor([0.1, -1, 0.2], dtype=D).square()
    assert (rows + bias).tolist() == pytest.approx([1.15, 4.16, 1.04])
    heads = group_sums(scores, 0, torch.tensor([0, 0, -1]), 2)
    assert heads.tolist() == pytest.approx([1.1 + 1.16, 0.0])


def test_log_odds_add_the_occam_term():
    """The evidence with a weight at zero, by hand: N(0; m, 1/P) over N(0; 0, 1/delta)."""
    found, prior = of(THETA, PRECISION)
    odds = posterior_log_odds(found, prior)["w"]
    for i in range(10):
        at_zero = torch.distributions.Normal(THETA[i], PRECISION[i].rsqrt()).log_prob(
            torch.zeros((), dtype=D)
        )
        before = torch.distributions.Normal(
            torch.zeros((), dtype=D), (PRECISION[i] / 2).rsqrt()
        ).log_prob(torch.zeros((), dtype=D))
        assert float(odds[i]) == pytest.approx(float(before - at_zero))


def net() -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    x = torch.randn(30, 4, dtype=D)
    y = x[:, :3].argmax(1)
    return model, [(x[:10], y[:10]), (x[10:], y[10:])]


def whole_loss(model: nn.Module, batches: list[tuple[Tensor, Tensor]], values: dict) -> Tensor:
    x, y = torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])
    return nn.functional.cross_entropy(functional_call(model, values, (x,)), y)


def test_gradient_scores_are_those_of_the_mean_loss():
    model, batches = net()
    values = {n: p.detach().clone().requires_grad_() for n, p in model.named_parameters()}
    slopes = torch.autograd.grad(whole_loss(model, batches, values), list(values.values()))
    found = mean_gradient(model, "classification", batches)
    first = snip(model, "classification", batches)
    second = taylor(model, "classification", batches)
    for (name, value), slope in zip(values.items(), slopes, strict=True):
        assert torch.allclose(found[name], slope)
        assert torch.allclose(first[name], (slope * value).abs())
        assert torch.allclose(second[name], (slope * value).square())


def test_grasp_is_the_slope_of_the_gradients_norm():
    """theta_q (H g)_q = theta_q d(|g|^2 / 2) / d theta_q, by finite differences."""
    model, batches = net()
    values = {n: p.detach().clone().requires_grad_() for n, p in model.named_parameters()}
    scores = grasp(model, "classification", batches)

    def half_norm() -> float:
        slopes = torch.autograd.grad(whole_loss(model, batches, values), list(values.values()))
        return 0.5 * float(sum(slope.square().sum() for slope in slopes))

    for name in ("0.weight", "2.bias"):
        flat = values[name].data.view(-1)
        old, ends = float(flat[1]), []
        for step in (1e-5, -1e-5):
            flat[1] = old + step
            ends.append(half_norm())
        flat[1] = old
        slope = (ends[0] - ends[1]) / 2e-5
        assert float(scores[name].view(-1)[1]) == pytest.approx(old * slope, rel=1e-5)


def test_grasp_of_a_network_with_attention():
    """Also where the second derivative is of fused attention, which has none."""
    torch.manual_seed(0)
    model = nets.build("vit:dim=8,depth=1,heads=2,mlp=16,patch=4", inputs=(1, 8, 8), outputs=3)
    x, y = torch.randn(20, 1, 8, 8, dtype=D), torch.randint(0, 3, (20,))
    scores = grasp(model.double().eval(), "classification", [(x[:12], y[:12]), (x[12:], y[12:])])
    values = list(model.parameters())
    with sdpa_kernel(SDPBackend.MATH):
        loss = nn.functional.cross_entropy(model(x), y)
        slopes = torch.autograd.grad(loss, values, create_graph=True)
        along = sum((slope * slope.detach()).sum() for slope in slopes)
        product = torch.autograd.grad(along, values)
    for (name, value), part in zip(model.named_parameters(), product, strict=True):
        torch.testing.assert_close(scores[name], value * part)


@pytest.mark.parametrize("vocabulary", [5, 7])
@pytest.mark.parametrize("weighted", [False, True])
def test_scores_of_outputs_at_every_position(vocabulary, weighted):
    """Five positions: as many as the smaller vocabulary has words."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(vocabulary, 4), nn.Linear(4, vocabulary)).double()
    x, y = torch.randint(0, vocabulary, (2, 9, 5))
    weight = torch.rand(9, dtype=D) if weighted else torch.ones(9, dtype=D)
    rest = [weight] if weighted else []
    found = mean_gradient(model, "classification", [(x, y, *rest)])
    losses = nn.functional.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="none")
    (losses.view(9, 5).sum(1) * weight).mean().backward()
    for name, value in model.named_parameters():
        torch.testing.assert_close(found[name], value.grad)


def test_batches_that_run_dry_are_refused():
    model, batches = net()
    with pytest.raises(BayespareError, match="only once"):
        grasp(model, "classification", iter(batches))
    with pytest.raises(BayespareError, match="no batches"):
        snip(model, "classification", [])


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=12),
    st.lists(st.integers(0, 3), min_size=1, max_size=12),
    st.floats(0, 1),
    st.sampled_from(["global", "layer"]),
)
def test_masks_remove_exactly_the_share_whatever_the_ties(one, two, share, scope):
    scores = {"a": torch.tensor(one, dtype=D), "b": torch.tensor(two, dtype=D)}
    keep = masks(scores, share, scope=scope)
    if scope == "layer":
        for name, line in keep.items():
            assert int((~line).sum()) == round(share * len(scores[name]))
        return
    gone = torch.cat([scores[n][~keep[n]] for n in scores])
    left = torch.cat([scores[n][keep[n]] for n in scores])
    assert len(gone) == round(share * (len(one) + len(two)))
    assert not len(gone) or not len(left) or gone.max() <= left.min()


def test_scores_need_no_order_of_parameters():
    model, batches = net()
    found = laplace(model, "classification", batches, kind="ggn")
    prior = Prior(dict(model.named_parameters()), "layer")
    turned = dict(reversed(found.means.items()))
    other = Laplace(turned, Curvature(found.curvatures(), {}, 30))
    for name, value in opd(found, prior).items():
        assert torch.equal(value, opd(other, prior)[name])


def test_random_scores_are_drawn_where_their_generator_is():
    values = {"w": torch.zeros(2, 3, dtype=D)}
    expected = torch.rand(2, 3, generator=torch.Generator().manual_seed(0)).to(D)
    generator = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        found = random(values, generator)
    assert torch.equal(found["w"], expected)


def test_the_rest():
    values = {"w": torch.tensor([[3.0, -4.0]])}
    assert squares(values)["w"].tolist() == [[9.0, 16.0]]
    one, two = (random(values, torch.Generator().manual_seed(s)) for s in (0, 0))
    assert torch.equal(one["w"], two["w"])
    with pytest.raises(BayespareError, match=r"sparsity=1\.5"):
        masks(values, 1.5)
    with pytest.raises(BayespareError, match="did you mean 'layer'"):
        masks(values, 0.5, scope="layr")
    with pytest.raises(BayespareError, match="w: a score is not a number"):
        masks({"w": torch.tensor([float("nan")])}, 0.5)
    model = nn.Linear(2, 1)
    apply_masks(model, {"weight": torch.tensor([[True, False]])})
    assert model.weight[0, 1] == 0
    assert model.weight[0, 0] != 0
    with pytest.raises(BayespareError, match="did you mean 'weight'"):
        apply_masks(model, {"weigt": torch.ones(1)})
    with pytest.raises(BayespareError, match="shape"):
        apply_masks(model, {"weight": torch.ones(3)})
