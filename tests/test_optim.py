"""The variational optimiser: known posteriors, a slow twin of every step, resuming, cutting."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from bayespare.bayes.evidence import delta_f
from bayespare.bayes.weights import Cut
from bayespare.errors import BayespareError, NonFiniteLossError
from bayespare.optim import VariationalAdam
from bayespare.training.shrink import apply_cuts


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))


def examples(rows: int = 60) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(1)
    x = torch.randn(rows, 5, generator=random)
    return x, (x[:, :3] + 0.3 * torch.randn(rows, 3, generator=random)).argmax(1)


def train(
    model: nn.Module, optimizer: VariationalAdam, steps: int, samples: int = 1
) -> list[float]:
    x, y = examples()
    losses = []
    for _ in range(steps):
        for _ in range(samples):
            with optimizer.sampled_params(train=True):
                loss = nn.functional.cross_entropy(model(x), y)
                loss.backward()
        losses.append(loss.item())
        optimizer.step()
    return losses


# ------------------------------------------------------------ known posteriors


def fit(
    parameter: nn.Parameter, optimizer: VariationalAdam, loss, phases: list[tuple]
) -> tuple[Tensor, Tensor]:
    """Train in phases (steps, lr, beta2); return the averages of mean and precision in the last."""
    for steps, lr, beta2 in phases:
        mean, precision = torch.zeros_like(parameter), torch.zeros_like(parameter)
        for group in optimizer.param_groups:
            group["lr"], group["betas"] = lr, (0.9, beta2)
        for _ in range(steps):
            with optimizer.sampled_params(train=True):
                loss(parameter).backward()
            optimizer.step()
            mean += parameter.detach() / steps
            precision += optimizer.posterior_std(parameter) ** -2 / steps
    return mean, precision


@pytest.mark.usefixtures("float64")
def test_a_quadratic_is_fitted_exactly():
    random = torch.Generator().manual_seed(0)
    bend = torch.rand(20, generator=random) * 3 + 0.05
    centre = torch.randn(20, generator=random)
    w = nn.Parameter(torch.zeros(20))
    groups = [{"params": [w], "prior_std": 0.5}]
    optimizer = VariationalAdam(groups, ess=1000.0, generator=torch.Generator().manual_seed(1))
    decay = optimizer.param_groups[0]["weight_decay"]
    assert decay == pytest.approx(1 / (1000 * 0.25))
    assert optimizer.prior_std(w) == pytest.approx(0.5)
    mean, precision = fit(
        w,
        optimizer,
        lambda w: 0.5 * (bend * (w - centre).square()).sum(),
        [(400, 0.05, 0.98), (1500, 0.02, 0.995)],
    )
    exact = 1000 * (bend + decay)
    assert torch.allclose(precision, exact, rtol=0.12)
    expected = bend * centre / (bend + decay)
    assert ((mean - expected).abs() * exact.sqrt()).max() < 0.1
    # And so the evidence of the posterior is that of the model.
    std = exact.rsqrt()
    exact_gain = delta_f(expected, std, 0.5)
    gain = delta_f(mean, precision.rsqrt(), optimizer.prior_std(w))
    assert torch.equal(gain > 0, exact_gain > 0)


@pytest.mark.usefixtures("float64")
def test_correlated_curvature_gives_the_mean_field_posterior():
    bend = torch.tensor([[2.0, 1.2], [1.2, 1.0]])
    centre = torch.tensor([0.7, -0.3])
    w = nn.Parameter(torch.zeros(2))
    optimizer = VariationalAdam(
        [w], ess=200.0, weight_decay=0.05, generator=torch.Generator().manual_seed(0)
    )
    mean, precision = fit(
        w,
        optimizer,
        lambda w: 0.5 * (w - centre) @ bend @ (w - centre),
        [(500, 0.05, 0.98), (2500, 0.02, 0.995)],
    )
    # The precision's diagonal, not the inverse of the marginal variance; the mean is exact.
    assert torch.allclose(precision, 200 * (bend.diagonal() + 0.05), rtol=0.1)
    expected = torch.linalg.solve(bend + 0.05 * torch.eye(2), bend @ centre)
    assert torch.allclose(mean, expected, atol=0.01)


@pytest.mark.usefixtures("float64")
def test_logistic_regression_is_near_its_laplace_posterior():
    random = torch.Generator().manual_seed(0)
    x = torch.randn(400, 3, generator=random)
    truth = torch.tensor([1.0, -0.5, 0.0])
    y = (torch.rand(400, generator=random) < (x @ truth).sigmoid()).double()
    w = nn.Parameter(torch.zeros(3))
    optimizer = VariationalAdam(
        [w], ess=400.0, weight_decay=1 / 400, generator=torch.Generator().manual_seed(2)
    )
    mean, precision = fit(
        w,
        optimizer,
        lambda w: nn.functional.binary_cross_entropy_with_logits(x @ w, y),
        [(500, 0.1, 0.98), (2500, 0.03, 0.995)],
    )
    mode = torch.zeros(3)
    for _ in range(50):
        p = (x @ mode).sigmoid()
        hessian = x.T @ (x * (p * (1 - p)).unsqueeze(1)) + torch.eye(3)
        mode = mode - torch.linalg.solve(hessian, x.T @ (p - y) + mode)
    laplace = hessian.diagonal()
    assert torch.allclose(precision, laplace, rtol=0.1)
    assert ((mean - mode).abs() * laplace.sqrt()).max() < 0.25
    # The absent input is the one the evidence is against.
    assert (delta_f(mean, precision.rsqrt(), 1.0) > 0).tolist() == [False, False, True]


# ---------------------------------------------------------------------- a twin


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("radius", [math.inf, 0.05])
@pytest.mark.parametrize("debias", [True, False])
@pytest.mark.usefixtures("float64")
def test_every_step_is_that_of_the_paper(samples, radius, debias):
    model = network()
    groups = [
        {"params": list(model[0].parameters())},
        {"params": list(model[2].parameters()), "weight_decay": 0.5, "hess_init": 0.7},
    ]
    optimizer = VariationalAdam(
        groups,
        0.3,
        ess=60,
        weight_decay=0.02,
        betas=(0.8, 0.97),
        hess_init=0.4,
        clip_radius=radius,
        debias=debias,
        generator=torch.Generator().manual_seed(5),
    )
    noise = torch.Generator().manual_seed(5)
    twin = copy.deepcopy(model)
    x, y = examples()
    x = x.double()
    params = list(twin.parameters())
    decays, starts = [0.02, 0.02, 0.5, 0.5], [0.4, 0.4, 0.7, 0.7]
    m = [p.detach().clone() for p in params]
    g = [torch.zeros_like(p) for p in params]
    h = [torch.full_like(p, start) for p, start in zip(params, starts, strict=True)]
    for step in range(1, 6):
        grads = [torch.zeros_like(p) for p in params]
        hats = [torch.zeros_like(p) for p in params]
        for _ in range(samples):
            std = [(60 * (hi + d)) ** -0.5 for hi, d in zip(h, decays, strict=True)]
            theta = []
            for i, p in enumerate(params):
                p.data = m[i] + std[i] * torch.randn(p.shape, generator=noise)
                theta.append(p.data.clone())
            found = torch.autograd.grad(nn.functional.cross_entropy(twin(x), y), params)
            for i, grad in enumerate(found):
                grads[i] += grad / samples
                hats[i] += grad * (theta[i] - m[i]) / std[i] ** 2 / samples
            with optimizer.sampled_params(train=True):
                nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        for i, d in enumerate(decays):
            g[i] = 0.8 * g[i] + 0.2 * grads[i]
            h_new = 0.97 * h[i] + 0.03 * hats[i]
            h[i] = h_new + 0.5 * 0.03**2 * (h[i] - hats[i]) ** 2 / (h[i] + d)
            bias = 1 - 0.8**step if debias else 1.0
            move = (g[i] / bias + d * m[i]) / (h[i] + d)
            m[i] = m[i] - 0.3 * (starts[i] + d) * move.clamp(-radius, radius)
        for i, p in enumerate(model.parameters()):
            assert torch.allclose(p, m[i], atol=1e-12)
            std = (60 * (h[i] + decays[i])) ** -0.5
            assert torch.allclose(optimizer.posterior_std(p), std)


def test_a_closure_is_called_at_samples():
    model, other = network(), network()
    x, y = examples()
    one = VariationalAdam(
        model.parameters(), ess=60, mc_samples=2, generator=torch.Generator().manual_seed(0)
    )
    seen = []

    def closure() -> Tensor:
        one.zero_grad()
        seen.append(model[0].weight.detach().clone())
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        return loss

    losses = [one.step(closure).item() for _ in range(3)]
    assert len(losses) == 3
    assert len(seen) == 6
    assert not torch.equal(seen[0], seen[1])
    two = VariationalAdam(other.parameters(), ess=60, generator=torch.Generator().manual_seed(0))
    train(other, two, 3, samples=2)
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_it_learns_and_its_samples_are_the_posterior():
    model = network()
    optimizer = VariationalAdam(
        model.parameters(), 0.2, ess=60, betas=(0.9, 0.99), generator=torch.Generator()
    )
    losses = train(model, optimizer, 200)
    assert sum(losses[-20:]) < 0.6 * sum(losses[:20])
    p = model[0].weight
    mean = p.detach().clone()
    draws = []
    for _ in range(2000):
        with optimizer.sampled_params():
            assert torch.equal(optimizer.posterior_mean(p), mean)
            draws.append(p.detach().clone())
    assert torch.equal(p, mean)
    spread = torch.stack(draws).std(0)
    assert torch.allclose(spread, optimizer.posterior_std(p), rtol=0.12)
    posterior = optimizer.posterior(model).checked(model)
    assert set(posterior.std) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert torch.equal(posterior.std["0.weight"], optimizer.posterior_std(p))
    assert optimizer.initial_share(p) == pytest.approx(0.99**200)


def test_looking_at_samples_does_not_disturb_a_step():
    model, other = network(), network()
    x, y = examples()
    ends = []
    for net, look in ((model, False), (other, True)):
        optimizer = VariationalAdam(
            net.parameters(), ess=60, generator=torch.Generator().manual_seed(0)
        )
        with optimizer.sampled_params(train=True):
            nn.functional.cross_entropy(net(x), y).backward()
        if look:
            with optimizer.sampled_params(), torch.no_grad():
                net(x)
        optimizer.step()
        ends.append([p.detach().clone() for p in net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_gradients_can_be_clipped_after_the_block():
    model = network()
    optimizer = VariationalAdam(model.parameters(), ess=60, generator=torch.Generator())
    x, y = examples()
    with optimizer.sampled_params(train=True):
        nn.functional.cross_entropy(model(x), y).backward()
    for p in model.parameters():
        p.grad.mul_(0.0)
    optimizer.step()
    assert float(optimizer.state[model[0].weight]["exp_avg"].abs().max()) == 0.0


# ------------------------------------------------------------ resume, copy, cut


def test_a_resumed_run_is_bit_identical():
    whole = network()
    optimizer = VariationalAdam(
        whole.parameters(), ess=60, generator=torch.Generator().manual_seed(3)
    )
    train(whole, optimizer, 4)
    weights, state = copy.deepcopy(whole.state_dict()), copy.deepcopy(optimizer.state_dict())
    train(whole, optimizer, 4)
    part = network()
    part.load_state_dict(weights)
    again = VariationalAdam(part.parameters(), ess=60, generator=torch.Generator())
    again.load_state_dict(state)
    train(part, again, 4)
    for mine, theirs in zip(whole.parameters(), part.parameters(), strict=True):
        assert torch.equal(mine, theirs)
        assert torch.equal(optimizer.posterior_std(mine), again.posterior_std(theirs))


def test_a_copy_goes_on_by_itself():
    model = network()
    generator = torch.Generator().manual_seed(3)
    optimizer = VariationalAdam(model.parameters(), ess=60, generator=generator)
    train(model, optimizer, 2)
    # Generators cannot be copied: both draw from the one, in turn.
    other, twin = copy.deepcopy((model, optimizer), {id(generator): generator})
    noise = generator.get_state()
    train(model, optimizer, 2)
    generator.set_state(noise)
    train(other, twin, 2)
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)
        assert mine is not theirs


def test_it_survives_cuts_with_its_state():
    model = network()
    optimizer = VariationalAdam(model.parameters(), ess=60, generator=torch.Generator())
    train(model, optimizer, 3)
    first, second = model[0], model[2]
    keep = torch.tensor([True, False, True, True, False, True, False, True])
    optimizer.remove(second.weight, torch.rand(3, 8) > 0.3)
    before = {key: value.clone() for key, value in optimizer.state[first.weight].items()}
    std, mask = optimizer.posterior_std(first.weight), optimizer.state[second.weight]["keep"]
    apply_cuts(
        [
            Cut(first, "weight", 0, keep),
            Cut(first, "bias", 0, keep),
            Cut(second, "weight", 1, keep),
        ],
        optimizer,
    )
    assert torch.equal(optimizer.posterior_std(first.weight), std[keep])
    after = optimizer.state[first.weight]
    assert torch.equal(after["exp_avg"], before["exp_avg"][keep])
    assert torch.equal(after["step"], before["step"])
    assert torch.equal(optimizer.state[second.weight]["keep"], mask[:, keep])
    losses = train(model, optimizer, 3)
    assert all(map(math.isfinite, losses))
    assert len(optimizer._scratch) == 4


def test_what_is_removed_has_no_evidence_and_the_rest_keeps_its_own():
    model = network()
    optimizer = VariationalAdam(model.named_parameters(), 0.1, ess=60, weight_decay=0.01)
    train(model, optimizer, 5)
    before = optimizer.posterior(model).delta_f(model, "0.weight")
    keep = torch.rand(model[0].weight.shape, generator=torch.Generator().manual_seed(0)) > 0.4
    optimizer.remove(model[0].weight, keep)
    after = optimizer.posterior(model).delta_f(model, "0.weight")
    assert torch.equal(after, before * keep)
    with torch.no_grad():
        model[0].weight[~keep] = 1.0  # known exactly, but not zero
    with pytest.raises(BayespareError, match=r"0\.weight"):
        optimizer.posterior(model).delta_f(model, "0.weight")


def test_removed_weights_have_no_mean_no_noise_and_no_momentum():
    model = network()
    optimizer = VariationalAdam(model.parameters(), ess=60, generator=torch.Generator())
    train(model, optimizer, 3)
    p = model[0].weight
    keep = torch.rand(p.shape, generator=torch.Generator().manual_seed(0)) > 0.4
    optimizer.remove(p, keep)
    optimizer.remove(p, torch.ones_like(keep))
    for _ in range(3):
        with optimizer.sampled_params():
            assert not p[~keep].any()
            assert p[keep].all()
        train(model, optimizer, 1)
        assert not p[~keep].any()
        assert not optimizer.state[p]["exp_avg"][~keep].any()
    assert torch.equal(optimizer.posterior_std(p) == 0, ~keep)
    state = copy.deepcopy(optimizer.state_dict())
    again = VariationalAdam(model.parameters(), ess=60, generator=torch.Generator())
    again.load_state_dict(state)
    assert torch.equal(again.posterior_std(p), optimizer.posterior_std(p))


def test_frozen_and_unused_parameters_stay():
    model = network()
    model[0].bias.requires_grad_(False)
    unused = nn.Parameter(torch.ones(3))
    optimizer = VariationalAdam([*model.parameters(), unused], ess=60, generator=torch.Generator())
    bias = model[0].bias.clone()
    with optimizer.sampled_params():
        assert torch.equal(model[0].bias, bias)
        assert not torch.equal(unused, torch.ones(3))
    train(model, optimizer, 2)
    assert torch.equal(model[0].bias, bias)
    assert torch.equal(unused, torch.ones(3))


def test_prior_scales_can_be_learnt_by_group():
    model = network()
    groups = [{"params": [p], "prior_std": 0.3} for p in model.parameters()]
    optimizer = VariationalAdam(groups, ess=60, generator=torch.Generator())
    optimizer.set_prior_std(optimizer.param_groups[0], 2.0)
    scales = [optimizer.prior_std(p) for p in model.parameters()]
    assert scales == pytest.approx([2.0, 0.3, 0.3, 0.3])


# ------------------------------------------------------------------ bad input


def test_a_step_without_a_sample_is_refused():
    model = network()
    optimizer = VariationalAdam(model.parameters(), ess=60)
    x, y = examples()
    nn.functional.cross_entropy(model(x), y).backward()
    with pytest.raises(BayespareError, match="sampled_params"):
        optimizer.step()
    train(model, optimizer, 1)
    with pytest.raises(BayespareError, match="sampled_params"):
        optimizer.step()
    with (
        pytest.raises(BayespareError, match="nested"),
        optimizer.sampled_params(),
        optimizer.sampled_params(),
    ):
        pass


def test_an_error_in_a_block_brings_the_means_back():
    model = network()
    optimizer = VariationalAdam(model.parameters(), ess=60)
    before = model[0].weight.detach().clone()
    with pytest.raises(ZeroDivisionError), optimizer.sampled_params(train=True):
        raise ZeroDivisionError
    assert torch.equal(model[0].weight, before)
    train(model, optimizer, 1)


def test_a_gradient_that_is_not_finite_is_named_and_nothing_moves():
    model = network()
    optimizer = VariationalAdam(model.named_parameters(), ess=60, generator=torch.Generator())
    train(model, optimizer, 2)
    before = copy.deepcopy(model.state_dict())
    std = optimizer.posterior_std(model[2].bias)
    x, y = examples()
    with optimizer.sampled_params(train=True):
        nn.functional.cross_entropy(model(x), y).backward()
        model[2].bias.grad[1] = math.nan
    with pytest.raises(NonFiniteLossError, match=r"gradient of '2\.bias' is not finite"):
        optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(optimizer.posterior_std(model[2].bias), std)
    train(model, optimizer, 1)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"weight_decay": 0.0}, "weight_decay=0.0 is out of range.*infinite evidence"),
        ({"ess": 0}, "ess=0 is out of range.*training examples"),
        ({"hess_init": 0.0}, "hess_init=0.0"),
        ({"betas": (0.9, 1.0)}, "betas"),
        ({"clip_radius": 0.0}, "clip_radius"),
        ({"lr": -1.0}, "lr=-1.0"),
        ({"mc_samples": 0}, "mc_samples=0"),
    ],
)
def test_a_setting_out_of_range_is_refused(setting, message):
    with pytest.raises(BayespareError, match=message):
        VariationalAdam([nn.Parameter(torch.ones(2))], **{"ess": 10.0, **setting})


def test_other_bad_input_is_refused():
    p = nn.Parameter(torch.ones(2))
    with pytest.raises(BayespareError, match="float32"):
        VariationalAdam([nn.Parameter(torch.ones(2, dtype=torch.bfloat16))], ess=10)
    with pytest.raises(BayespareError, match="not both"):
        VariationalAdam([{"params": [p], "prior_std": 1.0, "weight_decay": 1.0}], ess=10)
    optimizer = VariationalAdam([p], ess=10)
    with pytest.raises(BayespareError, match="not one of its parameters"):
        optimizer.posterior_std(torch.ones(2))
    with pytest.raises(BayespareError, match="keep has shape"):
        optimizer.remove(p, torch.ones(3, dtype=torch.bool))
    with pytest.raises(BayespareError, match="out of range"):
        optimizer.set_prior_std(optimizer.param_groups[0], math.inf)
    # A group that is refused is not there.
    with pytest.raises(BayespareError, match="ess=-1"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))], "ess": -1})
    assert len(optimizer.param_groups) == 1
