"""Predictions against loops over draws, exact linear cases and their own invariances."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bayespare.bayes.posterior import GaussianPosterior
from bayespare.errors import BayespareError
from bayespare.measure import ClassPrediction, RealPrediction, predict


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def classifier(seed: int = 0, classes: int = 3) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, classes)
    )


def wide_posterior(model: nn.Module, std: float = 0.5) -> GaussianPosterior:
    return GaussianPosterior({n: torch.full_like(p, std) for n, p in model.named_parameters()})


def slow_twin(
    model: nn.Module,
    x: Tensor,
    posterior: GaussianPosterior,
    samples: int,
    generator: torch.Generator,
) -> tuple[list[list[float]], list[float]]:
    """Average softmax probabilities and mutual information, one row and one draw at a time."""
    model.eval()
    draws = [posterior.draw(model, generator) for _ in range(samples)]
    rows_p, rows_mi = [], []
    for row in x:
        each = []
        for draw in draws:
            logits = torch.func.functional_call(model, draw, (row[None],))[0].double().tolist()
            total = sum(math.exp(v) for v in logits)
            each.append([math.exp(v) / total for v in logits])
        mean = [sum(p[k] for p in each) / samples for k in range(len(each[0]))]
        information = 0.0
        for p in each:
            information += sum(q * math.log(q / m) for q, m in zip(p, mean, strict=True)) / samples
        rows_p.append(mean)
        rows_mi.append(information)
    return rows_p, rows_mi


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 5), st.integers(1, 7))
def test_probabilities_and_information_match_the_slow_twin(
    seed: int, classes: int, samples: int
) -> None:
    model = classifier(seed, classes)
    x = torch.randn(5, 4)
    posterior = wide_posterior(model)
    made = predict(
        model, x, task="classification", posterior=posterior, samples=samples,
        batch_size=2, generator=seeded(seed),
    )  # fmt: skip
    probs, information = slow_twin(model, x, posterior, samples, seeded(seed))
    torch.testing.assert_close(made.probs, torch.tensor(probs).double(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        made.epistemic, torch.tensor(information).double(), atol=1e-5, rtol=1e-4
    )


def test_without_posterior_it_is_the_softmax_and_knows_no_epistemic_part() -> None:
    model = classifier()
    x = torch.randn(9, 4)
    made = predict(model, x, task="classification", samples=50)
    assert isinstance(made, ClassPrediction)
    torch.testing.assert_close(made.probs, model.eval()(x).double().softmax(1).detach())
    assert torch.equal(made.epistemic, torch.zeros(9, dtype=torch.float64))
    assert torch.equal(made.labels, model(x).argmax(1))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.floats(0, 3))
def test_probabilities_sum_to_one_and_information_is_between_zero_and_log_k(
    seed: int, std: float
) -> None:
    model = classifier(seed, 4)
    posterior = wide_posterior(model, std)
    made = predict(
        model, 5 * torch.randn(8, 4), task="classification", posterior=posterior, samples=6
    )
    torch.testing.assert_close(made.probs.sum(1), torch.ones(8, dtype=torch.float64))
    assert bool((made.epistemic >= 0).all())
    assert bool((made.epistemic <= math.log(4) + 1e-9).all())


def test_batch_size_changes_nothing_and_a_seed_repeats() -> None:
    model = classifier()
    x = torch.randn(23, 4)
    posterior = wide_posterior(model)
    one = predict(model, x, task="classification", posterior=posterior, batch_size=5)
    two = predict(model, x, task="classification", posterior=posterior, batch_size=1024)
    torch.testing.assert_close(one.log_probs, two.log_probs, atol=1e-5, rtol=1e-5)
    again = predict(model, x, task="classification", posterior=posterior, batch_size=1024)
    assert torch.equal(two.log_probs, again.log_probs)
    other = predict(model, x, task="classification", posterior=posterior, generator=seeded(5))
    assert not torch.equal(two.log_probs, other.log_probs)


def test_predicting_does_not_touch_the_global_random_state() -> None:
    model = classifier()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    predict(model, torch.randn(2, 4, generator=seeded(0)), task="classification",
            posterior=wide_posterior(model))  # fmt: skip
    assert torch.equal(torch.get_rng_state(), before)


def test_every_layer_gets_its_own_mode_back_even_after_an_error() -> None:
    model = classifier()
    model.train()
    model[1].eval()
    modes = [module.training for module in model.modules()]
    predict(model, torch.randn(2, 4), task="classification")
    assert [module.training for module in model.modules()] == modes
    with pytest.raises(RuntimeError):
        predict(model, torch.randn(2, 5), task="classification")
    assert [module.training for module in model.modules()] == modes


def test_extreme_logits_stay_finite() -> None:
    model = nn.Linear(1, 3, bias=False)
    model.weight.data = torch.tensor([[1e4], [0.0], [-1e4]])
    made = predict(model, torch.ones(1, 1), task="classification")
    expected = torch.tensor([[0.0, -1e4, -2e4]], dtype=torch.float64)
    torch.testing.assert_close(made.log_probs, expected)


def test_linear_regression_has_the_exact_predictive_variance() -> None:
    """y = 2 x0 - x1 + 0.5 with independent weights: Var = sum x_i^2 s_i^2 + s_b^2 + noise^2."""
    model = nn.Linear(2, 1)
    model.weight.data = torch.tensor([[2.0, -1.0]])
    model.bias.data = torch.tensor([0.5])
    std = {"weight": torch.tensor([[0.3, 0.1]]), "bias": torch.tensor([0.2])}
    x = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-3.0, 1.0]])
    made = predict(
        model, x, task="regression", posterior=GaussianPosterior(std), samples=20_000,
        noise_std=0.4, target_scale=(10.0, 3.0),
    )  # fmt: skip
    assert isinstance(made, RealPrediction)
    epistemic = 9 * (x.double().square() @ torch.tensor([0.09, 0.01]).double() + 0.04)
    mean = 10 + 3 * (x.double() @ torch.tensor([2.0, -1.0]).double() + 0.5)
    torch.testing.assert_close(made.epistemic, epistemic, rtol=0.05, atol=0)
    torch.testing.assert_close(made.mean, mean, atol=0.08, rtol=0)
    torch.testing.assert_close(
        made.variance - made.epistemic, torch.full((3,), 9 * 0.16, dtype=torch.float64)
    )


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 9))
def test_regression_moments_match_the_loop_over_draws(seed: int, samples: int) -> None:
    model = classifier(seed, 1)
    x = torch.randn(4, 4)
    posterior = wide_posterior(model)
    made = predict(model, x, task="regression", posterior=posterior, samples=samples,
                   generator=seeded(seed), batch_size=3)  # fmt: skip
    model.eval()
    generator = seeded(seed)
    draws = torch.stack(
        [
            torch.func.functional_call(model, posterior.draw(model, generator), (x,))[:, 0]
            for _ in range(samples)
        ]
    ).double()
    torch.testing.assert_close(made.mean, draws.mean(0).detach(), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(made.epistemic, draws.var(0).detach(), atol=1e-6, rtol=1e-4)


def test_regression_accepts_flat_outputs_and_no_posterior() -> None:
    flat = nn.Sequential(nn.Linear(4, 1), nn.Flatten(0))
    x = torch.randn(7, 4)
    made = predict(flat, x, task="regression", noise_std=0.5)
    torch.testing.assert_close(made.mean, flat(x).double().detach())
    assert torch.equal(made.epistemic, torch.zeros(7, dtype=torch.float64))
    assert torch.equal(made.variance, torch.full((7,), 0.25, dtype=torch.float64))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "clasification"}, "unknown task 'clasification'.*'classification'"),
        ({"x": torch.zeros(0, 4)}, "no rows"),
        ({"samples": 0}, "at least 1"),
        ({"batch_size": 0}, "at least 1"),
        ({"x": torch.tensor([[0.0] * 4, [math.inf] * 4])}, "row 1 is not finite"),
        ({"posterior": GaussianPosterior({"nope": torch.ones(1)})}, "no parameter 'nope'"),
        ({"task": "regression"}, r"regression model must give"),
        ({"model": nn.Linear(4, 1)}, "at least 2 classes"),
        ({"task": "regression", "model": nn.Linear(4, 1), "noise_std": -1.0}, "noise_std"),
        ({"task": "regression", "model": nn.Linear(4, 1), "target_scale": (0.0, 0.0)}, "scale"),
    ],
)
def test_bad_requests_are_one_line_errors(changes: dict[str, object], message: str) -> None:
    request: dict[str, object] = {"model": classifier(), "x": torch.randn(2, 4)}
    request |= {"task": "classification", **changes}
    with pytest.raises(BayespareError, match=message) as caught:
        predict(**request)  # type: ignore[call-overload]
    assert "\n" not in str(caught.value)
