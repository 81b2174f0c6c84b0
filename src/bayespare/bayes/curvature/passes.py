"""One pass over data: the curvature of a network's negative log likelihood."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any, Literal, get_args

import torch
from torch import Generator, Tensor, nn
from torch.utils.checkpoint import CheckpointError

from bayespare.bayes.curvature.blocks import Curvature
from bayespare.bayes.curvature.cotangents import Kind, cotangents
from bayespare.bayes.curvature.memory import Estimate, estimated
from bayespare.bayes.curvature.running import call, evaluating, examples_in, moved, outputs_of
from bayespare.bayes.curvature.sums import Sums
from bayespare.bayes.curvature.tape import Tape
from bayespare.bayes.curvature.totals import gathered_parameters
from bayespare.bayes.curvature.wiring import CHECKPOINTED, Wiring, find_wiring
from bayespare.bayes.likelihood import Likelihood, likelihood_for
from bayespare.bayes.sharded import is_sharded, whole
from bayespare.errors import BayespareError, UnsupportedStructureError, did_you_mean

log = logging.getLogger(__name__)

Structure = Literal["diag", "kfac"]
Sharing = Literal["expand", "reduce"]


def curvature(
    model: nn.Module,
    likelihood: Likelihood | str,
    batches: Iterable[tuple[Any, ...]],
    *,
    kind: Kind = "ggn-mc",
    structure: Structure = "diag",
    sharing: Sharing = "expand",
    samples: int = 1,
    max_memory_gb: float | None = None,
    generator: Generator | None = None,
    wiring: Wiring | None = None,
    watch: Callable[..., object] | None = None,
) -> Curvature:
    """Curvature of the negative log likelihood, summed over all examples, at the model as it is.

    Every trainable parameter gets a block. The diagonal is exact also where a weight is shared by
    positions (convolutions, tokens) or by layers: an example's gradient is summed, then squared.
    Kronecker factors are for matrices, convolutions, embeddings and biases; normalisations and
    other elementwise parameters, and tied weights without a common Kronecker form, keep their
    exact diagonal. The model runs in evaluation mode and is left as it was.

    Args:
        model: The network; parameters that do not require a gradient have no block.
        likelihood: What its outputs say of the targets, or ``classification``, ``regression``.
        batches: Pairs ``(x, y)``; ``x`` a tensor, a tuple of arguments or a mapping of them. A
            third tensor, shape ``(N,)``, says how often each example counts, as in training.
        kind: ``ggn-mc``: generalised Gauss-Newton with labels sampled from the network (one
            backward pass a sample); ``ggn``: exact (as many passes as outputs); ``ef``: empirical
            Fisher (one pass).
        structure: ``diag`` or ``kfac``.
        sharing: KFAC under weight sharing: ``expand`` takes every position as a row, ``reduce``
            the mean input and summed cotangent of an example.
        samples: Passes of ``ggn-mc``.
        max_memory_gb: Refuse, before allocating, what takes more.
        generator: Source of the sampled labels; one of its own, the same each time, if None.
        wiring: From :func:`wired`, of a model that has not changed since but in the values of its
            parameters: it is not found and proven again.
        watch: Called with the outputs, targets and, where there are any, weights of every batch.

    Returns:
        Blocks in nats; for regression the noise's precision is in them. ``examples`` counts rows,
        whatever their weights. Blocks of a sharded model are sharded alike, and summed over the
        ranks: each gives its own batches, equally many.

    Raises:
        UnsupportedStructureError: If a parameter is used in a way that is not understood.
        BayespareError: On a setting that is not known, no data, a block that is not finite, or too
            much memory, or weights that are not one number, 0 or more, for each example.
    """
    _one_of("kind", kind, get_args(Kind))
    _one_of("structure", structure, get_args(Structure))
    _one_of("sharing", sharing, get_args(Sharing))
    if samples < 1:
        raise BayespareError(f"samples={samples}: must be 1 or more")
    if isinstance(likelihood, str):
        likelihood = likelihood_for(likelihood)
    lasting = _trainable(model)
    if any(is_sharded(parameter) for parameter in lasting.values()):
        _check_sharded(structure, wiring)
    parameters = gathered_parameters(model)
    device = next(iter(parameters.values())).device
    generator = generator or Generator(device).manual_seed(0)
    sums: Sums | None = None
    with evaluating(model), torch.enable_grad():
        for x, y, *rest in batches:
            x, y = moved(x, device), y.to(device)
            if sums is None:
                if wiring is None:
                    wiring = find_wiring(model, parameters, x)
                wiring.check(parameters)
                needs = estimated(lasting, wiring, structure == "kfac")
                log.info("curvature of %d parameters: %s", len(parameters), needs)
                needs.check(max_memory_gb)
                sums = Sums(
                    parameters,
                    wiring,
                    kfac=structure == "kfac",
                    reduce=sharing == "reduce",
                    lasting=lasting,
                )
            examples = examples_in(x)
            weight = _checked_weight(rest[0].to(device), examples) if rest else None
            sums.begin(examples, weight)
            with Tape(parameters, sums, examples=examples, detach=True, lookups=sums.lookups):
                output = outputs_of(call(model, x))
            if watch is not None:
                watch(output.detach(), y, *([] if weight is None else [weight]))
            given = cotangents(
                likelihood,
                output.detach(),
                y,
                kind,
                samples=samples,
                generator=generator,
                weight=weight,
            )
            for cotangent in given:
                _backward(output, sums.anchor, cotangent)
                sums.flush()
            sums.end()
            del output
    if sums is None:
        raise BayespareError("curvature: there are no batches")
    return _checked(sums.finish(), parameters)


def _backward(output: Tensor, anchor: Tensor, cotangent: Tensor) -> None:
    try:
        torch.autograd.grad(output, anchor, cotangent, retain_graph=True, allow_unused=True)
    except CheckpointError as error:
        raise UnsupportedStructureError(f"curvature: {CHECKPOINTED}") from error


def wired(model: nn.Module, x: Any) -> Wiring:
    """How a model uses its parameters, for passes over it until it changes.

    Args:
        model: The network.
        x: Inputs of one batch.

    Raises:
        UnsupportedStructureError: If a parameter is used in a way that is not understood.
    """
    with evaluating(model), torch.enable_grad():
        return find_wiring(model, _trainable(model), x)


def estimate(model: nn.Module, x: Any, *, structure: Structure = "diag") -> Estimate:
    """Bytes that :func:`curvature` will allocate beside the activations.

    Args:
        model: The network.
        x: Inputs of one batch.
        structure: ``diag`` or ``kfac``.
    """
    _one_of("structure", structure, get_args(Structure))
    return estimated(_trainable(model), wired(model, x), structure == "kfac")


def _trainable(model: nn.Module) -> dict[str, Tensor]:
    parameters: dict[str, Tensor] = {
        name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad
    }
    if not parameters:
        raise BayespareError("curvature: the model has no trainable parameter")
    return parameters


def _check_sharded(structure: Structure, wiring: Wiring | None) -> None:
    """Raise on what a sharded model has no room for."""
    if structure == "kfac":
        raise BayespareError(
            "structure='kfac': Kronecker factors are not spread over the ranks, the parameters of "
            "this model are; use structure='diag'"
        )
    if wiring is None:
        raise BayespareError(
            "curvature: give the wiring of a sharded model, wired(model, x) before it was sharded; "
            "finding it takes the whole model and its gradients in one place"
        )


def _one_of(key: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise BayespareError(f"unknown {key} {value!r}{did_you_mean(value, known)}")


def _checked_weight(weight: Tensor, examples: int) -> Tensor | None:
    """The weights of a batch; None where each is one."""
    if weight.shape != (examples,) or not bool(((weight >= 0) & weight.isfinite()).all()):
        raise BayespareError(
            f"curvature: the weights of {examples} examples must be as many finite numbers, 0 or "
            f"more; got shape {tuple(weight.shape)}"
        )
    return None if bool((weight == 1).all()) else weight


def _checked(found: Curvature, parameters: dict[str, Tensor]) -> Curvature:
    """Raise unless every parameter has one block and all are finite."""
    missing = parameters.keys() - found.diagonal.keys() - found.factors.keys()
    assert not missing, missing
    for name, block in found.diagonals().items():
        # Of all ranks, so that none goes on where another stops.
        if int(whole(torch.isfinite(block).sum())) < block.numel():
            raise BayespareError(
                f"curvature of {name!r} is not finite: the network's outputs or gradients overflow"
            )
    return found
