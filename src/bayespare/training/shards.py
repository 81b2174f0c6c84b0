"""Networks whose state one device cannot hold: FSDP spreads it over the ranks.

Parameters between steps, gradients after them and the optimiser's moments lie on all ranks, a part
on each; during a step every rank has the parameters and gradients of the whole network. (Gathering
block by block is not possible: a method draws all weights, and takes its KL of all, at once.) The
method's own parameters are not sharded: with ``settings=default`` they are a number per unit.

Sharded networks can be trained and their curvature measured. Nothing can be cut from them: that
needs the whole network in place, as :func:`whole_state` gives it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from bayespare.errors import UnsupportedStructureError


def shard(network: nn.Module) -> None:
    """Spread a network's parameters over all ranks, in place.

    A method is attached before, and the optimiser made afterwards. ``torch.distributed`` has to be
    initialised.

    Args:
        network: Equal on all ranks, on this rank's device.
    """
    # Imported here: it takes as long as all the rest of the package.
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    device = next(network.parameters()).device.type
    mesh = init_device_mesh(device, (torch.distributed.get_world_size(),))
    fully_shard(network, mesh=mesh, reshard_after_forward=False)


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is spread over the ranks."""
    return hasattr(tensor, "placements")


@contextmanager
def gathered(network: nn.Module) -> Iterator[None]:
    """Have the whole of every parameter on every rank for a while, to measure curvature."""
    from torch.distributed.fsdp import FSDPModule

    assert isinstance(network, FSDPModule)
    # Otherwise a backward pass would end it.
    network.set_reshard_after_backward(False)
    network.set_requires_gradient_sync(False)
    network.unshard()
    try:
        yield
    finally:
        network.set_reshard_after_backward(True)
        network.set_requires_gradient_sync(True)
        network.reshard()


def whole_state(network: nn.Module) -> dict[str, Tensor]:
    """The state of a sharded network as plain tensors; every rank has to call it.

    Loaded into a network like it was before :func:`shard`, beside the method's own state, it can be
    decided and cut.
    """
    return {
        name: value.full_tensor() if is_sharded(value) else value
        for name, value in network.state_dict().items()
    }


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
