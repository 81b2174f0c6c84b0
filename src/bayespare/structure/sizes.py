"""What a forward uses beside tensors: counts in attributes, norms' widths, channels of zeros."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from bayespare.errors import UnsupportedStructureError
from bayespare.structure.narrow import narrowed
from bayespare.structure.plan import Plan
from bayespare.structure.select import Select


def follow(
    model: nn.Module, plan: Plan, keep: Mapping[str, Tensor], *, live: bool = False
) -> nn.Module:
    """Let what is no tensor follow the removal of units, in place; return the model.

    Counts in attributes become those of the units that stay; layers that could not compute with
    fewer units are replaced by their narrow kinds, with the same parameters under the same names;
    a module that adds channels of zeros is followed by a `Select` of those that are wanted.
    Tensors are not cut: that is done before or after.

    Args:
        model: The model as the plan describes it.
        plan: Its plan.
        keep: Boolean keep per unit, every group.
        live: The model is in training and keeps the names of its state dict: what was selected is
            known from the units that are left, and is not written down.

    Raises:
        UnsupportedStructureError: If the plan asks for what a layer does not have.
    """
    entries = plan.entries(keep)
    shortened = {place for place, line in entries.items() if not bool(line.all())}
    attentions = [name for name, m in model.named_modules() if type(m) is nn.MultiheadAttention]
    cut = {tensor for (tensor, _), line in plan.lines(keep).items() if not bool(line.all())}
    for name in attentions:
        if any(tensor.startswith(f"{name}." if name else "") for tensor in cut):
            model = _replace(model, name, narrowed(model.get_submodule(name), name))
    for layer, place in sorted(shortened):
        kinds = {f.kind for g in plan.groups for f in g.fixtures if f.place == (layer, place)}
        if "count" in kinds:
            _count(model, layer, place, int(entries[layer, place].sum()))
        elif "norm" in kinds:
            model = _replace(model, layer, narrowed(model.get_submodule(layer), layer))
        elif kinds & {"padded", "passed"}:
            model = _select(model, plan, keep, (layer, place), live=live)
    return model


def _count(model: nn.Module, layer: str, name: str, value: int) -> None:
    """Set an integer attribute."""
    module = model.get_submodule(layer)
    if type(vars(module).get(name)) is not int:
        raise UnsupportedStructureError(f"layer {layer}: has no integer attribute {name!r}")
    setattr(module, name, value)


def _select(
    model: nn.Module,
    plan: Plan,
    keep: Mapping[str, Tensor],
    at: tuple[str, str],
    *,
    live: bool,
) -> nn.Module:
    """Pick what is wanted of a module's output, some of which arrives whatever is removed."""
    stays = arrives = torch.ones(0, dtype=torch.bool)
    for group in plan.groups:
        for fixture in group.fixtures:
            if fixture.place == at:
                line = fixture.kept(keep[group.name])
                if not len(stays):
                    stays = arrives = torch.ones_like(line)
                stays = stays & line
                arrives = arrives & line if fixture.kind == "passed" else arrives
    layer, place = at
    module = model.get_submodule(layer)
    if isinstance(module, nn.Sequential) and len(module) == 2 and isinstance(module[1], Select):
        # It was done before: positions are those of what the module itself returns.
        before = module[1].index.cpu()
        shift = (before[~arrives][None, :] < before[:, None]).sum(1)
        module[1].index = (before - shift)[stays].to(module[1].index.device)
        return model
    if bool((stays == arrives).all()):
        return model
    index = stays[arrives].nonzero().squeeze(1)
    pair = nn.Sequential(module, Select(index.to(_device(model)), int(place), persistent=not live))
    pair.training = pair[1].training = module.training
    return _replace(model, layer, pair)


def _device(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def _replace(model: nn.Module, name: str, new: nn.Module) -> nn.Module:
    """Put a module in the place of another, wherever the model holds it."""
    old = model.get_submodule(name)
    if old is model:
        return new
    for parent in list(model.modules()):
        for leaf, child in parent._modules.items():
            if child is old and parent is not new:
                parent._modules[leaf] = new
    return model


def update_sizes(module: nn.Module) -> None:
    """Bring the sizes that a stock layer says it has up to date with its tensors."""
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, _ConvTransposeNd):
        module.in_channels = module.weight.shape[0]
        module.out_channels = module.weight.shape[1] * module.groups
    elif isinstance(module, _ConvNd):
        module.out_channels = module.weight.shape[0]
        module.in_channels = module.weight.shape[1] * module.groups
    elif isinstance(module, _NormBase):
        tensors = (module.weight, module.bias, module.running_mean, module.running_var)
        module.num_features = max(len(t) for t in tensors if t is not None)
    elif isinstance(module, nn.GroupNorm) and module.weight is not None:
        module.num_channels = len(module.weight)
    elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)) and module.weight is not None:
        module.normalized_shape = tuple(module.weight.shape)
    elif isinstance(module, nn.Embedding):
        module.embedding_dim = module.weight.shape[1]
    elif isinstance(module, nn.PReLU):
        module.num_parameters = module.weight.numel()
