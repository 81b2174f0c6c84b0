"""Finding what can be removed from a model, by running it once and watching every operator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from bayespare.errors import BayespareError, UnsupportedStructureError
from bayespare.structure.compare import tensors_in
from bayespare.structure.flow import Call, Flow
from bayespare.structure.ledger import Ledger
from bayespare.structure.operators import (
    Watcher,
    arguments,
    plain_attention,
    preserved,
    written,
)
from bayespare.structure.plan import OUTPUT, Plan
from bayespare.structure.prove import prove
from bayespare.structure.refuse import refuse_wrapped
from bayespare.structure.rules import module_rule_for, rule_for
from bayespare.structure.settle import settle
from bayespare.structure.stack import ModuleStack, evaluating


def trace(
    model: nn.Module,
    example: Tensor | tuple[Tensor, ...],
    *,
    inputs: Sequence[int] | None = None,
    widths: bool = False,
    check: bool = True,
) -> Plan:
    """Find the removable units of a model and every place where each of them lies.

    The model runs once on the example, in evaluation mode, and is left as it was. Units whose
    path through the model is not fully understood are left alone, with the reason.

    Args:
        model: Any module.
        example: A batch the model accepts, first dimension the batch; a tuple is passed as
            several arguments.
        inputs: For each feature of the input (flattened, without the batch) the number of its
            unit, ``0 .. G-1``: the one-hot columns of one source column share a unit. None: every
            feature is its own.
        widths: Also remove units from under a layer norm (the width of a residual stream). The
            norm then keeps its old width: the removed units are zeros that still count. What is
            left is computed differently as soon as one is removed, so it is not the default.
        check: Remove some units of every group and compare with the masked model; groups that
            fail are left alone.

    Raises:
        BayespareError: If the model does not run on the example (the message names the layer), or
            is wrapped.
        UnsupportedStructureError: If nothing can be removed, or the path through the model depends
            on the data; the message says why.
    """
    examples = example if isinstance(example, tuple) else (example,)
    if not examples or any(x.ndim == 0 or not x.numel() for x in examples):
        raise BayespareError("the example is empty: give a batch with at least one row")
    refuse_wrapped(model)
    ledger = Ledger(dict(model.named_parameters()) | dict(model.named_buffers()))
    flow = Flow(ledger, ModuleStack(model), widths=widths)
    _label_inputs(flow, examples, inputs)
    output = _run(model, examples, flow)
    tensors = list(tensors_in(output))
    if not tensors:
        raise BayespareError(
            f"the model returns {type(output).__name__}: it must return tensors, alone or in "
            "a tuple, list, dict or dataclass"
        )
    flow.pay(tensors)
    flow.pin(tensors, OUTPUT)
    plan = settle(ledger, model)
    if check:
        plan = prove(model, plan, examples)
    if not plan.groups:
        why = _reasons(plan.left_alone) or "it has no parameters"
        raise UnsupportedStructureError(f"nothing in this model can be removed ({why})")
    return plan


def _reasons(left_alone: Mapping[str, str], most: int = 3) -> str:
    """Each reason once, with the first of the names that it is given for."""
    names: dict[str, list[str]] = {}
    for name, reason in left_alone.items():
        names.setdefault(reason, []).append(name)
    parts = []
    for reason, found in names.items():
        more = f" and {len(found) - most} more" if len(found) > most else ""
        parts.append(f"{', '.join(found[:most])}{more}: {reason}")
    return "; ".join(parts)


def _label_inputs(flow: Flow, examples: tuple[Tensor, ...], inputs: Sequence[int] | None) -> None:
    """Give every position of the input an id of its own (or its unit's)."""
    if inputs is not None and len(examples) > 1:
        raise BayespareError("inputs= needs a model with a single input")
    for number, x in enumerate(examples):
        flow.add_data(x)
        shape = tuple(x.shape[1:])
        if not shape:
            continue
        size = int(np.prod(shape))
        units = np.arange(size) if inputs is None else np.asarray(inputs, dtype=np.int64)
        if units.shape != (size,):
            raise BayespareError(
                f"inputs= has {len(units)} entries, but the example has {size} features per row"
            )
        count = int(units.max()) + 1
        if not np.array_equal(np.unique(units), np.arange(count)):
            raise BayespareError(f"inputs= must use every unit number from 0 to {count - 1}")
        name = "input" if len(examples) == 1 else f"input{number}"
        flow.set(x, flow.ledger.birth(name, "feature", count)[units].reshape((1, *shape)))


def _run(model: nn.Module, examples: tuple[Tensor, ...], flow: Flow) -> Any:
    """Run the model and follow every operator; whatever the model changed is put back."""
    operators = Watcher(partial(_follow, flow))
    modules = flow.stack.watch(partial(_enter, flow), partial(_leave, flow))
    try:
        with (
            torch.no_grad(),
            evaluating(model),
            preserved(model),
            plain_attention(),
            modules,
            operators,
        ):
            return model(*examples)
    except BayespareError:
        raise
    except Exception as error:
        shapes = ", ".join(str(tuple(x.shape)) for x in examples)
        raise BayespareError(
            f"the model does not run on an example of shape {shapes}: "
            f"{flow.stack.place}: {_one_line(error)}"
        ) from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _enter(flow: Flow, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Stop looking at operators in a module that is followed as a whole."""
    if flow.opaque is None and module_rule_for(module) is not None:
        given = [x for x in tree_leaves((args, dict(kwargs))) if isinstance(x, Tensor)]
        flow.opaque, flow.given = module, tuple(given)


def _leave(flow: Flow, module: nn.Module, output: Any) -> None:
    """Note what comes out of a module that was followed as a whole."""
    flow.left(module, output)
    rule = module_rule_for(module)
    if flow.opaque is not module or rule is None:
        return
    flow.opaque = None
    given = {str(number): tensor for number, tensor in enumerate(flow.given)}
    out = tuple(x for x in tree_leaves(output) if isinstance(x, Tensor))
    call = Call(type(module).__name__, given, out)
    flow.derive(out, flow.given)
    value = rule(flow, call, module, flow.given[0])
    for tensor in out:
        flow.set(tensor, value)


def _follow(flow: Flow, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Run one operator and note what its outputs carry."""
    result = func(*args, **kwargs)
    if flow.opaque is not None:
        return result
    out = tuple(x for x in tree_leaves(result) if isinstance(x, Tensor))
    call = Call(func.overloadpacket.__name__, arguments(func, args, kwargs), out)
    targets = written(func, call.args)
    if targets or not out:
        # What is written into may be a view of something larger, what is returned a number.
        flow.pay(call.tensors())
    if not out and any(flow.is_data(tensor) for tensor in call.tensors()):
        raise UnsupportedStructureError(
            f"{flow.stack.place}: its path depends on the data ({call.name} makes a number of a "
            "tensor): a trace sees one path only; decide with torch.where, or outside the model"
        )
    flow.derive(out, call.tensors())
    if all(flow.get(tensor) is None for tensor in call.tensors()):
        return result
    if any(flow.ids(tensor) is None for tensor in targets):
        flow.pin(call.tensors(), flow.where(call, "writes into a tensor in place"))
        return result
    rule = rule_for(func)
    if rule is None or not out:
        flow.refuse(call)
        return result
    value = rule(flow, call)
    for number, tensor in enumerate(out):
        if isinstance(value, list):
            flow.set(tensor, value[number])
        else:
            # Outputs of another rank are by-products, as the statistics of a normalisation.
            flow.set(tensor, value if tensor.ndim == out[0].ndim else None)
    return result
