"""A compact Hugging Face model as its own library can load it: one size per field of its config.

Layers keep different numbers of heads and neurons; a config has one number for all. The largest
layer sets it, and the others are filled up with silent units, so the outputs stay what they are.
Where a config cannot say how many heads there are at their width (BERT, DistilBERT, GPT-2: a head
is the hidden size over their number), removed heads stay as silent ones.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bayespare.errors import BayespareError, UnsupportedStructureError
from bayespare.structure.compare import assert_same, probe_like
from bayespare.structure.plan import Group, Plan, Verdict
from bayespare.structure.slicing import effective_keeps

NEURONS = ("intermediate_size", "hidden_dim", "n_inner")
"""Names that configs have for the width of a feed-forward layer."""


def uniform(small: nn.Module, verdict: Verdict, *, example: Tensor | None = None) -> Any:
    """Return the Hugging Face model inside a compact network with one size per config field.

    Args:
        small: What :func:`compact` made of a Hugging Face model, or of a module that holds one and
            no other parameters.
        verdict: What it was made by.
        example: A batch the network accepts. When given, the outputs are compared.

    Returns:
        A ``PreTrainedModel`` of the same class, in evaluation mode; its ``save_pretrained`` writes
        a folder that plain ``from_pretrained`` loads.

    Raises:
        BayespareError: If the network holds no Hugging Face model, or was not made by the verdict.
        UnsupportedStructureError: If no config describes it, or the outputs differ.
    """
    name, model = pretrained_in(small)
    kept = effective_keeps(verdict)
    for heads in (True, False):
        filled, fields = _one_size(verdict.plan, kept, model.config, heads=heads)
        state = _grown(small, verdict.plan, kept, filled)
        inner = {key.removeprefix(f"{name}.") if name else key: v for key, v in state.items()}
        fresh = _built(model, fields, inner)
        if fresh is not None:
            break
    else:
        raise UnsupportedStructureError(
            f"uniform: no config of {type(model).__name__} describes what is left; "
            "save the network as it is and load it with bayespare.load"
        )
    if example is not None:
        network = copy.deepcopy(small)
        if name:
            network.set_submodule(name, fresh)
        assert_same(small, network if name else fresh, {}, probe_like((example,)))
    return fresh


def save_uniform(small: nn.Module, verdict: Verdict, folder: Path) -> None:
    """Write :func:`uniform` to a folder, replacing what was there.

    Raises:
        BayespareError: As :func:`uniform`.
    """
    aside = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(aside, ignore_errors=True)
    uniform(small, verdict).save_pretrained(aside)
    shutil.rmtree(folder, ignore_errors=True)
    aside.replace(folder)


def pretrained_in(network: nn.Module) -> tuple[str, Any]:
    """Name and module of the one Hugging Face model that holds all parameters of a network.

    Raises:
        BayespareError: If there is none.
    """
    for name, module in network.named_modules():
        if hasattr(module, "save_pretrained") and hasattr(module, "config"):
            inside = {id(p) for p in module.parameters()}
            others = [n for n, p in network.named_parameters() if id(p) not in inside]
            if others:
                raise BayespareError(
                    f"uniform: {others[0]} lies outside the Hugging Face model {name!r}, so its "
                    "folder would not hold it"
                )
            return name, module
    raise BayespareError(
        "uniform: the network holds no Hugging Face model (nothing with a config and "
        "save_pretrained)"
    )


def _one_size(
    plan: Plan, kept: Mapping[str, Tensor], config: Any, *, heads: bool
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Keep per group after filling up, and the fields of the config that change.

    Args:
        plan: Of the network.
        kept: Boolean keep per group, as it was cut.
        config: Of the network before anything was removed.
        heads: Whether fewer heads are tried; otherwise they are filled up to all.
    """
    field = next((n for n in NEURONS if hasattr(config, n)), "")
    neurons = getattr(config, field, None) or 4 * config.hidden_size
    classes: dict[str, list[Group]] = {"head": [], "neuron": [], "": []}
    for group in plan.groups:
        neuron = field and group.unit == "unit" and group.size == neurons
        kind = "neuron" if neuron else "head" if heads and group.unit == "head" else ""
        classes[kind].append(group)
    filled = {group.name: torch.ones(group.size, dtype=torch.bool) for group in classes[""]}
    sizes = {}
    for kind in ("head", "neuron"):
        if classes[kind]:
            sizes[kind] = max(int(kept[group.name].sum()) for group in classes[kind])
            filled |= {g.name: _fill(kept[g.name], sizes[kind]) for g in classes[kind]}
    fields: dict[str, int] = {}
    if "neuron" in sizes:
        fields[field] = sizes["neuron"]
    if "head" in sizes:
        shared = getattr(config, "num_key_value_heads", None)
        number = config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // number
        fields["head_dim"] = width
        fields["num_attention_heads"] = number * sizes["head"] // classes["head"][0].size
        if shared is not None:
            fields["num_key_value_heads"] = shared * sizes["head"] // classes["head"][0].size
    return filled, fields


def _fill(line: Tensor, size: int) -> Tensor:
    """Keep the first of the removed units too, until there are so many."""
    filled = line.clone()
    filled[(~line).nonzero().squeeze(1)[: size - int(line.sum())]] = True
    return filled


def _grown(
    small: nn.Module, plan: Plan, kept: Mapping[str, Tensor], filled: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The state dict with zeros for the units that fill up."""
    before, after = plan.lines(kept), plan.lines(filled)
    grown = {}
    for name, value in small.state_dict().items():
        for dim in range(value.dim()):
            if (name, dim) in before:
                old, new = before[name, dim], after[name, dim]
                if int(old.sum()) != value.shape[dim]:
                    raise BayespareError(
                        f"uniform: {name} has {value.shape[dim]} entries along dimension {dim}, "
                        f"the verdict keeps {int(old.sum())}; it is of another network"
                    )
                wide = value.new_zeros(*value.shape[:dim], int(new.sum()), *value.shape[dim + 1 :])
                place = (new.cumsum(0) - 1)[old].to(value.device)
                value = wide.index_copy(dim, place, value)
        grown[name] = value
    return grown


def _built(model: Any, fields: Mapping[str, int], state: Mapping[str, Tensor]) -> Any:
    """A fresh model of these fields with these tensors; None when their shapes do not agree."""
    config = copy.deepcopy(model.config)
    for field, value in fields.items():
        setattr(config, field, value)
    try:
        with torch.random.fork_rng(devices=[]):
            fresh = type(model)(config)
    except ValueError:  # heads that do not divide the hidden size
        return None
    wanted = fresh.state_dict()
    if {n: t.shape for n, t in wanted.items()} != {n: t.shape for n, t in state.items()}:
        return None
    fresh = fresh.to(model.dtype)
    fresh.load_state_dict(state)
    return fresh.eval()
