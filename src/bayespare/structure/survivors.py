"""The survivor update: after a removal each layer is refitted to what the whole network computed.

Layer by layer, in the order the network runs them: targets are the outputs of the layer in the
whole network, inputs those that arrive in the reduced one, and each row is refitted by ridge least
squares on the inputs it still has, the bias among them. It needs no labels and no gradient, and
gives back in a second what a fine-tuning gives back in epochs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from bayespare.bayes.curvature.running import call, examples_in, few, moved
from bayespare.bayes.curvature.tape import Tape
from bayespare.bayes.survivors import refit_rows, ridged
from bayespare.errors import BayespareError, did_you_mean
from bayespare.structure.compact import compact, mask
from bayespare.structure.moments import Arrival, Moments, Reached, Target, targets_of
from bayespare.structure.plan import Verdict
from bayespare.structure.slicing import masked_tensors
from bayespare.structure.stack import evaluating

Removal: TypeAlias = "Verdict | Mapping[str, Tensor] | nn.Module"
RIDGE = 1e-3


@dataclass(frozen=True, eq=False)
class Refit:
    """A network after the survivor update.

    Attributes:
        model: A copy of the reduced network, refitted; what was removed is zero, shapes are whole.
        errors: Weight name to the share of its targets' variance that was missed before and after
            by the rows that are there, on the data of the update.
        left_alone: Weight name to the reason why it was not refitted.
    """

    model: nn.Module
    errors: Mapping[str, tuple[float, float]] = field(repr=False)
    left_alone: Mapping[str, str] = field(default_factory=dict)


def update_survivors(
    dense: nn.Module,
    removal: Removal,
    batches: Iterable[Any],
    *,
    start: nn.Module | None = None,
    ridge: float = RIDGE,
) -> Refit:
    """Refit what survives a removal to the outputs that every layer had before it.

    Linear layers, convolutions (in groups too), attention projections and GPT-2's transposed layers
    are refitted; normalisations and embeddings stay. The ridge pulls towards the weights as they
    are, so a layer's error on the data of the update never rises, and where nothing was removed
    nothing changes.

    Args:
        dense: The whole network; not changed.
        removal: What is removed: a verdict, or boolean masks by parameter name (true stays), or the
            reduced network itself with the shapes of the whole one, where zeros are what is
            removed.
        batches: Inputs, or pairs whose first entry is the input; some thousand examples, no labels.
            Iterated for each layer, as far as it needs, so not a generator.
        start: Where the surviving weights start, if not from ``dense``: a network with its shapes
            (see :func:`expand` for a compact one).
        ridge: In units of the mean second moment of a layer's inputs.

    Returns:
        The refitted network, with what happened to each layer. ``compact(refit.model, verdict)``
        makes it small.

    Raises:
        BayespareError: If masks name no parameter, shapes differ, data run out or are not finite.
    """
    reduced, masks = _reduced(dense, removal, start)
    left_alone: dict[str, str] = {}
    errors: dict[str, tuple[float, float]] = {}
    dense_weights, weights = _parameters(dense), _parameters(reduced)
    with torch.no_grad(), evaluating(dense), evaluating(reduced):
        targets = targets_of(reduced, weights, first_of(batches), left_alone)
        for target in targets:
            moments = Moments(target)
            for batch in batches:
                x = moved(inputs_of(batch), next(iter(weights.values())).device)
                whole = _reach(dense, dense_weights, target.number, x)
                moments.add(whole, _reach(reduced, weights, target.number, x))
                if moments.enough:
                    break
            support = target.support(masks, weights)
            # Rows that are gone have no error to mend.
            there = support.any(-1)
            before = float(moments.error[there].sum())
            if before > 0:
                _refit(target, moments, weights, support, ridge)
            scale = max(float(moments.scale[there].sum()), torch.finfo(torch.float64).tiny)
            errors[target.key] = (before / scale, float(moments.error[there].sum()) / scale)
    return Refit(reduced, errors, left_alone)


def expand(small: nn.Module, dense: nn.Module, verdict: Verdict) -> nn.Module:
    """Give a compact network the shapes it came from: zero where something was removed.

    Args:
        small: ``compact(dense, verdict)``, its weights since changed or not.
        dense: The whole network.
        verdict: Which units stayed.

    Raises:
        BayespareError: If ``small`` is not of that shape.
    """
    numbered = deepcopy(dense).double()
    for tensor in _floating(numbered):
        tensor.copy_(torch.arange(1, tensor.numel() + 1).view_as(tensor))
    places = _floating(compact(numbered, verdict))
    values, whole = _floating(small), deepcopy(dense)
    if [tensor.shape for tensor in values] != [tensor.shape for tensor in places]:
        raise BayespareError("expand: the small network was not made by this verdict")
    for tensor, place, value in zip(_floating(whole), places, values, strict=True):
        # Zero is a unit that only stayed to keep a shape legal.
        index = place.flatten().round().to(torch.int64)
        flat = torch.zeros(tensor.numel() + 1, dtype=tensor.dtype, device=tensor.device)
        flat[index.to(flat.device)] = value.to(flat).flatten()
        tensor.copy_(flat[1:].view_as(tensor))
    counts = {n: b for n, b in small.named_buffers() if not b.is_floating_point()}
    for name, buffer in whole.named_buffers():
        if name in counts and counts[name].shape == buffer.shape:
            buffer.copy_(counts[name])
    return whole


def _floating(model: nn.Module) -> list[Tensor]:
    """Parameters and floating buffers of a model, each once, without their gradients."""
    tensors = [*model.parameters(), *model.buffers()]
    return [tensor.detach() for tensor in tensors if tensor.is_floating_point()]


def _parameters(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.named_parameters())


def _reduced(
    dense: nn.Module, removal: Removal, start: nn.Module | None
) -> tuple[nn.Module, dict[str, Tensor]]:
    """A copy of the network without what is removed, and boolean masks of what stays."""
    parameters = _parameters(dense)
    source = start if start is not None else dense
    if isinstance(removal, nn.Module):
        if start is not None:
            raise BayespareError("update_survivors: give a reduced network or start=, not both")
        source = removal
    given = _parameters(source)
    for name, parameter in parameters.items():
        if name not in given or given[name].shape != parameter.shape:
            raise BayespareError(
                f"update_survivors: the reduced network has no {name!r} of shape "
                f"{tuple(parameter.shape)}; expand() gives a compact network its old shapes"
            )
    if isinstance(removal, nn.Module):
        return deepcopy(source), {name: value != 0 for name, value in given.items()}
    if isinstance(removal, Verdict):
        ones = deepcopy(dense)
        for parameter in ones.parameters():
            parameter.detach().fill_(1)
        masked = masked_tensors(ones, removal)
        return mask(source, removal), {n: masked[n] != 0 for n in parameters if n in masked}
    masks = {}
    reduced = deepcopy(source)
    tensors = _parameters(reduced)
    for name, keep in removal.items():
        if name not in parameters:
            hint = did_you_mean(name, parameters)
            raise BayespareError(f"update_survivors: no parameter {name!r}{hint}")
        if keep.dtype != torch.bool or keep.shape != parameters[name].shape:
            raise BayespareError(
                f"mask of {name!r}: needs booleans of shape {tuple(parameters[name].shape)}, got "
                f"{keep.dtype} {tuple(keep.shape)}"
            )
        masks[name] = keep.to(tensors[name].device)
        tensors[name].detach().masked_fill_(~masks[name], 0)
    return reduced, masks


def inputs_of(batch: Any) -> Any:
    """The inputs of a batch, which may be a pair of inputs and targets."""
    return batch[0] if isinstance(batch, (tuple, list)) and len(batch) == 2 else batch


def first_of(batches: Iterable[Any]) -> Any:
    """A few examples of the first batch.

    Raises:
        BayespareError: If there is none, or the batches can be iterated only once.
    """
    if iter(batches) is batches:
        raise BayespareError("the batches can be iterated only once: give a list or a loader")
    for batch in batches:
        return few(inputs_of(batch))[0]
    raise BayespareError("there are no batches to refit on")


def _reach(model: nn.Module, parameters: Mapping[str, Tensor], number: int, x: Any) -> Arrival:
    """Run a model up to one site; return what it was given and what it gave."""
    reached = Reached(number)
    try:
        with Tape(parameters, reached, examples=examples_in(x)):
            call(model, x)
    except Reached.Stop:
        return reached.arrival
    raise BayespareError("update_survivors: the model does not run the same way for every batch")


def _refit(
    target: Target,
    moments: Moments,
    weights: Mapping[str, Tensor],
    supports: Tensor,
    ridge: float,
) -> None:
    """Solve for the change of every row and add it to the weights, in place."""
    changes = []
    for gram, residual, support in zip(moments.gram, moments.residual, supports, strict=True):
        changes.append(refit_rows(ridged(gram, ridge), residual, support))
    change = torch.stack(changes)
    target.apply(change, weights)
    moments.settle(change)
