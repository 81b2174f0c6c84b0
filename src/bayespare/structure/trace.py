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
from bayespare.structure.operators import Watcher, arguments, preserved, written
from bayespare.structure.plan import Plan
from bayespare.structure.prove import prove
from bayespare.structure.rules import rule_for
from bayespare.structure.stack import ModuleStack, evaluating


def trace(
    model: nn.Module,
    example: Tensor | tuple[Tensor, ...],
    *,
    inputs: Sequence[int] | None = None,
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
        check: Remove some units of every group and compare with the masked model; groups that
            fail are left alone.

    Raises:
        BayespareError: If the model does not run on the example; the message names the layer.
        UnsupportedStructureError: If nothing can be removed; the message says why.
    """
    examples = example if isinstance(example, tuple) else (example,)
    if not examples or any(x.ndim == 0 or not x.numel() for x in examples):
        raise BayespareError("the example is empty: give a batch with at least one row")
    named = dict(model.named_parameters()) | dict(model.named_buffers())
    ledger = Ledger(named)
    stack = ModuleStack(model)
    flow = Flow(ledger, stack)
    _label_inputs(flow, examples, inputs)
    output = _run(model, examples, flow)
    tensors = list(tensors_in(output))
    if not tensors:
        raise BayespareError(
            f"the model returns {type(output).__name__}: it must return tensors, alone or in "
            "a tuple, list, dict or dataclass"
        )
    flow.pin(iter(tensors), "network output")
    plan = ledger.plan()
    if check:
        plan = prove(model, plan, examples)
    if not plan.groups:
        why = "; ".join(f"{name}: {reason}" for name, reason in plan.left_alone.items())
        raise UnsupportedStructureError(
            f"nothing in this model can be removed ({why or 'it has no parameters'})"
        )
    return plan


def _label_inputs(flow: Flow, examples: tuple[Tensor, ...], inputs: Sequence[int] | None) -> None:
    """Give every position of the input an id of its own (or its unit's)."""
    if inputs is not None and len(examples) > 1:
        raise BayespareError("inputs= needs a model with a single input")
    for number, x in enumerate(examples):
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
    watch = Watcher(partial(_follow, flow))
    try:
        with torch.no_grad(), evaluating(model), preserved(model), flow.stack.watch(), watch:
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


def _follow(flow: Flow, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Run one operator and note what its outputs carry."""
    result = func(*args, **kwargs)
    out = tuple(x for x in tree_leaves(result) if isinstance(x, Tensor))
    call = Call(func.overloadpacket.__name__, arguments(func, args, kwargs), out)
    if all(flow.get(tensor) is None for tensor in call.tensors()):
        return result
    if any(flow.ids(tensor) is None for tensor in written(func, call.args)):
        # What is written into may be a view of something larger that carries nothing.
        flow.refuse(call, flow.where(call, "writes into a tensor in place"))
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
