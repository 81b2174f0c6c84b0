"""A variational optimiser: it trains a Gaussian posterior at about the cost of Adam.

Source: Shen et al. 2024, "Variational Learning is Effective for Large Deep Networks" (IVON),
Algorithm 1; the Hessian update that stays positive is from Lin, Schmidt and Khan 2020. Written
from the papers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Generator, Tensor, nn

from bayespare.bayes.posterior import GaussianPosterior
from bayespare.errors import BayespareError, NonFiniteLossError
from bayespare.optim.memory import Scratch, fill_normal, sum_into
from bayespare.optim.settings import Group, check_group


class VariationalAdam(torch.optim.Optimizer):
    """Train q = N(m, 1 / (ess (h + weight_decay))), one mean m and curvature h per parameter.

    The parameters of the network are the means. Gradients are taken at samples of the posterior::

        for x, y in batches:
            with optimizer.sampled_params(train=True):
                loss(network(x), y).backward()
            optimizer.step()

    The loss is the mean negative log likelihood of the batch, without any weight decay of its
    own: the prior N(0, 1 / (ess weight_decay)) is the optimiser's. Several blocks before a step
    average over several samples; several backward passes in one block share a sample. Gradients
    are cleared on entering a block and can be clipped in it. Ranks of a data-parallel run must
    draw the same noise (the same seed): their gradients are averaged before they meet it.

    Args:
        params: Parameters or groups. A group may have its own ``lr``, ``ess``, ``betas``,
            ``hess_init``, ``clip_radius`` and ``weight_decay``, or ``prior_std`` in its place.
        lr: Learning rate, in units of the initial Newton step when ``rescale_lr``.
        ess: Effective sample size: the number of training examples, divided by the temperature
            if there is one. Only then is the evidence of the posterior that of the model.
        weight_decay: Prior precision per example; must be positive.
        betas: Decay of the gradient's and of the curvature's running mean.
        hess_init: Curvature to start from. It is forgotten as ``betas[1] ** step``: until then
            the standard deviations say little (:meth:`initial_share`).
        clip_radius: Largest step of any parameter, before the learning rate.
        rescale_lr: Multiply the learning rate by ``hess_init + weight_decay``.
        debias: Undo the zero start of the gradient's running mean.
        mc_samples: Samples per step when :meth:`step` gets a closure.
        generator: Source of the noise; without one, torch's global generator.

    Raises:
        BayespareError: If a setting is out of range, or a parameter of less than single
            precision.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[Group] | Iterable[tuple[str, Tensor]],
        lr: float = 0.1,
        *,
        ess: float,
        weight_decay: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.9999),
        hess_init: float = 1.0,
        clip_radius: float = math.inf,
        rescale_lr: bool = True,
        debias: bool = True,
        mc_samples: int = 1,
        generator: Generator | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "ess": ess,
            "weight_decay": weight_decay,
            "betas": betas,
            "hess_init": hess_init,
            "clip_radius": clip_radius,
            "rescale_lr": rescale_lr,
            "debias": debias,
        }
        if mc_samples < 1:
            raise BayespareError(f"VariationalAdam: mc_samples={mc_samples} must be at least 1")
        self.mc_samples = mc_samples
        self.generator = generator
        self._scratch: dict[Tensor, Scratch] = {}
        self._sampling = False
        super().__init__(params, defaults)

    def add_param_group(self, param_group: Group) -> None:
        """Add parameters with settings of their own; ``prior_std`` stands for a weight decay."""
        group = dict(param_group)
        scale = group.pop("prior_std", None)
        if scale is not None:
            if "weight_decay" in group:
                raise BayespareError("VariationalAdam: give weight_decay or prior_std, not both")
            group["weight_decay"] = 1 / (group.get("ess", self.defaults["ess"]) * scale**2)
        super().add_param_group(group)
        try:
            check_group(self.param_groups[-1])
        except BayespareError:
            self.param_groups.pop()
            raise

    # ------------------------------------------------------------------ sampling
    @contextmanager
    def sampled_params(self, train: bool = False) -> Iterator[None]:
        """Let the network's parameters be a draw from the posterior, and then its means again.

        Args:
            train: Take the gradients that are there at the end, for the next :meth:`step`.

        Raises:
            BayespareError: If used inside itself.
        """
        if self._sampling:
            raise BayespareError("VariationalAdam: sampled_params cannot be nested")
        with torch.no_grad():
            drawn = self._perturb(train)
        self._sampling = True
        try:
            yield
            if train:
                with torch.no_grad():
                    self._take(drawn)
        finally:
            self._sampling = False
            with torch.no_grad():
                torch._foreach_copy_(drawn, [self._scratch[p].mean for p in drawn])

    def _perturb(self, train: bool) -> list[Tensor]:
        """Draw, and return the parameters that now hold a sample."""
        drawn = [p for group in self.param_groups for p in group["params"] if p.requires_grad]
        if len(self._scratch) > len(drawn):
            # Parameters that were cut have been replaced by others.
            self._scratch = {p: s for p, s in self._scratch.items() if p in set(drawn)}
        for group in self.param_groups:
            params = [p for p in group["params"] if p.requires_grad]
            if not params:
                continue
            states = [self._state(p, group) for p in params]
            works = [self._work(p) for p in params]
            roots = [work.root for work in works]
            sum_into(roots, [state["hess"] for state in states], group["weight_decay"])
            torch._foreach_sqrt_(roots)
            for work, state in zip(works, states, strict=True):
                fill_normal(work.noise, self.generator)
                if "keep" in state:
                    work.noise.mul_(state["keep"])
            torch._foreach_copy_([work.mean for work in works], params)
            noises = [work.noise for work in works]
            torch._foreach_addcdiv_(params, noises, roots, value=group["ess"] ** -0.5)
        if train:
            for p in drawn:
                p.grad = None
        return drawn

    def _take(self, drawn: list[Tensor]) -> None:
        """Add the gradients at this sample to what the next step averages."""
        taken = [p for p in drawn if p.grad is not None]
        if not taken:
            return
        works = [self._scratch[p] for p in taken]
        products = [work.noise for work in works]
        torch._foreach_mul_(products, [work.root for work in works])
        torch._foreach_mul_(products, [p.grad for p in taken])  # type: ignore[misc]
        for p, work in zip(taken, works, strict=True):
            work.samples += 1
            if work.grad is None:
                work.noise, work.product, work.grad = work.product, work.noise, p.grad
            else:
                share = 1 / work.samples
                work.product.lerp_(work.noise, share)
                work.grad.lerp_(p.grad, share)  # type: ignore[arg-type]
                p.grad = work.grad

    def _work(self, p: Tensor) -> Scratch:
        work = self._scratch.get(p)
        if work is None:
            one, two, three, four = (torch.empty_like(p, requires_grad=False) for _ in range(4))
            work = self._scratch[p] = Scratch(one, two, three, four)
        return work

    def _state(self, p: Tensor, group: Group) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[p]
        if "hess" not in state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"] = torch.zeros_like(p, requires_grad=False)
            state["hess"] = torch.full_like(p, group["hess_init"], requires_grad=False)
        return state

    # ---------------------------------------------------------------------- step
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move the posterior by the gradients taken since the last step.

        Args:
            closure: Computes the loss, calls backward and returns the loss; called at
                ``mc_samples`` samples.

        Returns:
            The mean loss of the closure's calls.

        Raises:
            BayespareError: If no gradient was taken at a sample.
            NonFiniteLossError: If one is not finite; nothing has moved then.
        """
        loss = None
        if closure is not None:
            losses = []
            for _ in range(self.mc_samples):
                with self.sampled_params(train=True), torch.enable_grad():
                    losses.append(closure())
            loss = sum(losses) / len(losses)
        with torch.no_grad():
            self._update()
        return loss

    def _update(self) -> None:
        ready = {p for p, work in self._scratch.items() if work.grad is not None}
        pending = [
            (group, [p for p in group["params"] if p in ready]) for group in self.param_groups
        ]
        if not any(params for _, params in pending):
            raise BayespareError(
                "VariationalAdam.step: no gradient was taken at a sample; run forward and backward "
                "inside `with optimizer.sampled_params(train=True):`"
            )
        self._refuse_non_finite([p for _, params in pending for p in params])
        for group, params in pending:
            by_step: dict[float, list[Tensor]] = {}
            for p in params:
                step = self.state[p]["step"]
                step += 1
                by_step.setdefault(float(step), []).append(p)
            for count, members in by_step.items():
                self._move(group, members, count)
            for p in params:
                self._scratch[p].grad, self._scratch[p].samples = None, 0

    def _taken(self, p: Tensor) -> Tensor:
        grad = self._scratch[p].grad
        assert grad is not None
        return grad

    def _move(self, group: Group, params: list[Tensor], count: float) -> None:
        states = [self.state[p] for p in params]
        works = [self._scratch[p] for p in params]
        beta1, beta2 = group["betas"]
        decay, forget = group["weight_decay"], 1 - beta2
        means, curvatures = [s["exp_avg"] for s in states], [s["hess"] for s in states]
        gaps, roots = [w.product for w in works], [w.root for w in works]

        torch._foreach_lerp_(means, [self._taken(p) for p in params], 1 - beta1)
        # h <- h + (1 - beta) gap + 1/2 (1 - beta)^2 gap^2 / (h + decay): at least half of
        # h + decay is left, whatever the gap.
        unit = group["ess"] ** 0.5
        torch._foreach_sub_(gaps, curvatures, alpha=1 / unit)
        torch._foreach_add_(curvatures, gaps, alpha=forget * unit)
        torch._foreach_div_(gaps, roots)
        torch._foreach_addcmul_(curvatures, gaps, gaps, value=0.5 * (forget * unit) ** 2)

        precisions = roots
        sum_into(precisions, curvatures, decay)
        rate = group["lr"] * (group["hess_init"] + decay if group["rescale_lr"] else 1.0)
        bias = 1 - beta1**count if group["debias"] else 1.0
        sum_into(gaps, means, params, decay * bias)
        if math.isinf(group["clip_radius"]):
            torch._foreach_addcdiv_(params, gaps, precisions, value=-rate / bias)
        else:
            radius = group["clip_radius"] * bias
            torch._foreach_div_(gaps, precisions)
            torch._foreach_clamp_min_(gaps, -radius)
            torch._foreach_clamp_max_(gaps, radius)
            torch._foreach_add_(params, gaps, alpha=-rate / bias)
        for p, state in zip(params, states, strict=True):
            if "keep" in state:
                p.mul_(state["keep"])
                state["exp_avg"].mul_(state["keep"])

    def _refuse_non_finite(self, params: list[Tensor]) -> None:
        grads = [self._taken(p) for p in params]
        norms = torch._foreach_norm(grads)
        if bool(torch.isfinite(torch.stack([norm.to(norms[0]) for norm in norms]).sum())):
            return
        for p, grad in zip(params, grads, strict=True):
            if not bool(torch.isfinite(grad).all()):
                for work in self._scratch.values():
                    work.grad, work.samples = None, 0
                raise NonFiniteLossError(
                    f"the gradient of {self._name(p)} is not finite; the step was not taken: lower "
                    "the learning rate or look at the data"
                )

    # ----------------------------------------------------------------- posterior
    def posterior_mean(self, p: Tensor) -> Tensor:
        """Posterior mean of a parameter, also while it holds a sample."""
        self._group_of(p)
        return (self._scratch[p].mean if self._sampling and p.requires_grad else p).detach()

    def posterior_std(self, p: Tensor) -> Tensor:
        """Posterior standard deviation of a parameter; zero where it has been removed."""
        group = self._group_of(p)
        state = self.state.get(p, {})
        hess = state["hess"] if "hess" in state else torch.full_like(p, group["hess_init"])
        std: Tensor = (group["ess"] * (hess.detach() + group["weight_decay"])).rsqrt()
        return std * state["keep"] if "keep" in state else std

    def prior_std(self, p: Tensor) -> float:
        """Standard deviation of a parameter's prior, ``1 / sqrt(ess weight_decay)``."""
        group = self._group_of(p)
        return 1 / math.sqrt(group["ess"] * group["weight_decay"])

    def set_prior_std(self, group: Group, prior_std: float) -> None:
        """Give the parameters of one of ``param_groups`` another prior scale (learnt ones do)."""
        group["weight_decay"] = 1 / (group["ess"] * prior_std**2)
        check_group(group)

    def initial_share(self, p: Tensor) -> float:
        """How much of the curvature still is ``hess_init``: 1 at the start, towards 0."""
        group = self._group_of(p)
        count = float(self.state[p]["step"]) if "step" in self.state.get(p, {}) else 0.0
        return float(group["betas"][1] ** count)

    def posterior(self, network: nn.Module) -> GaussianPosterior:
        """The posterior of a network's parameters, by name; others are known exactly."""
        every = {p for group in self.param_groups for p in group["params"]}
        ours = {name: p for name, p in network.named_parameters() if p in every}
        return GaussianPosterior(
            {name: self.posterior_std(p) for name, p in ours.items()},
            {name: torch.tensor(self.prior_std(p)) for name, p in ours.items()},
        )

    def remove(self, p: Tensor, keep: Tensor) -> None:
        """Take single weights out for good: mean, noise and momentum are zero from now on.

        Args:
            p: The parameter.
            keep: Boolean, its shape; what was removed before stays so.

        Raises:
            BayespareError: If the shapes differ.
        """
        group = self._group_of(p)
        if keep.shape != p.shape:
            raise BayespareError(
                f"{self._name(p)}: keep has shape {tuple(keep.shape)}, not {tuple(p.shape)}"
            )
        state = self._state(p, group)
        # In the parameter's dtype, which is what load_state_dict makes of every tensor.
        line = keep.to(p)
        state["keep"] = state["keep"] * line if "keep" in state else line
        with torch.no_grad():
            p.mul_(line)
            state["exp_avg"].mul_(line)

    def _group_of(self, p: Tensor) -> Group:
        for group in self.param_groups:
            if any(p is other for other in group["params"]):
                return group
        raise BayespareError(
            f"VariationalAdam: a tensor of shape {tuple(p.shape)} is not one of its parameters"
        )

    def _name(self, p: Tensor) -> str:
        for number, group in enumerate(self.param_groups):
            for place, other in enumerate(group["params"]):
                if p is other:
                    if "param_names" in group:
                        return repr(group["param_names"][place])
                    return f"parameter {place} of group {number}, shape {tuple(p.shape)}"
        return f"a parameter of shape {tuple(p.shape)}"

    # -------------------------------------------------------------------- saving
    def state_dict(self) -> dict[str, Any]:
        """As every optimiser's, with the state of its own generator as ``"generator"``."""
        state = super().state_dict()
        if self.generator is not None:
            state["generator"] = self.generator.get_state()
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Undo :meth:`state_dict`; what comes next is bit-identical to an uninterrupted run."""
        super().load_state_dict(dict(state_dict))
        if self.generator is not None and "generator" in state_dict:
            self.generator.set_state(state_dict["generator"])

    def __getstate__(self) -> dict[str, Any]:
        own = {"generator": self.generator, "mc_samples": self.mc_samples}
        return {**super().__getstate__(), **own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._scratch = {}
        self._sampling = False
