"""Networks that one device cannot hold: FSDP spreads them over the ranks.

Parameters, gradients and the optimiser's moments lie on all ranks, a part on each. A block is
gathered while it runs, forwards and backwards; its weights are drawn then and there, and the KL is
taken of the parts. A curvature pass leaves each rank its part of every diagonal. The method's own
parameters are on every rank: with ``settings=default`` they are a number per unit.

Nothing can be cut from a sharded network: that needs all of it in one place (the memory of the
host will do), as :func:`whole_state` gives it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from bayespare.bayes.sharded import is_sharded, whole
from bayespare.errors import UnsupportedStructureError
from bayespare.training.method import Method


def shard(
    network: nn.Module,
    method: Method | None = None,
    *,
    blocks: Iterable[nn.Module] | None = None,
    device: torch.device | str | None = None,
) -> None:
    """Spread a network's parameters over all ranks, in place.

    The optimiser is made afterwards. ``torch.distributed`` has to be initialised.

    Args:
        network: Equal on all ranks; it may lie in the host's memory, and goes to the device block
            by block.
        method: Attached to the network.
        blocks: Parts that are gathered one at a time, each called as a module; what is in none is
            gathered with the first. Default: :func:`members`, as the blocks of a transformer.
        device: Where the parts go; default: where the network is.

    Raises:
        UnsupportedStructureError: If the method's posterior would be whole on every rank.
    """
    # Imported here: it takes as long as all the rest of the package.
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    parts = members(network) if blocks is None else list(blocks)
    if method is not None:
        method.draw_within(parts)
    place = torch.device(device or next(network.parameters()).device)
    mesh = init_device_mesh(place.type, (torch.distributed.get_world_size(),))
    for part in (*parts, network):
        # Of the whole network, too: the KL is taken of parts.
        fully_shard(part, mesh=mesh, reshard_after_forward=True)
    if method is None:
        return
    method.to(place)
    if method.generator is not None and method.generator.device.type != place.type:
        seed = method.generator.initial_seed()
        method.generator = torch.Generator(place).manual_seed(seed)


def members(network: nn.Module) -> list[nn.Module]:
    """The members of a network's outermost lists of modules; without lists, of its sequences.

    A member that is itself one is taken apart; beside members of several layers, single layers are
    left out, and so is what has no parameters.
    """
    listed = any(isinstance(module, nn.ModuleList) for module in network.modules())
    kind = nn.ModuleList if listed else nn.Sequential
    found = [m for m in _members(network, kind) if next(m.parameters(), None) is not None]
    return [member for member in found if next(member.children(), None) is not None] or found


def _members(network: nn.Module, kind: type[nn.Module]) -> Iterator[nn.Module]:
    for child in network.children():
        # Not subclasses: those are modules of their own kind.
        if type(network) is kind and type(child) is not kind:
            yield child
        else:
            yield from _members(child, kind)


def whole_state(network: nn.Module) -> dict[str, Tensor]:
    """The state of a sharded network as plain tensors in the host's memory; every rank calls it.

    Loaded into a network like it was before :func:`shard`, beside the method's own state, it can be
    decided and cut.
    """
    return {name: whole(value).cpu() for name, value in network.state_dict().items()}


def refuse_cuts(network: nn.Module) -> None:
    """Refuse to cut a sharded network.

    Raises:
        UnsupportedStructureError: If it is one.
    """
    for name, parameter in network.named_parameters():
        if is_sharded(parameter):
            raise UnsupportedStructureError(
                f"{name}: is sharded over the ranks (FSDP), and nothing can be cut from it there; "
                "load whole_state(network) into a plain network with the method, and decide that"
            )
