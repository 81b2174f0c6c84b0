"""Weights of a network that was held by another module when they were saved."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from bayespare.cli.weights import load_weights
from bayespare.errors import BayespareError


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1))


@pytest.mark.parametrize("file", ["w.pt", "w.safetensors", "training.pt"])
@pytest.mark.parametrize(
    "prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."]
)
def test_names_of_wrappers_are_taken_off(tmp_path: Path, prefix: str, file: str) -> None:
    state = {prefix + name: tensor for name, tensor in network(1).state_dict().items()}
    if file == "w.safetensors":
        save_file(state, tmp_path / file)
    else:
        torch.save({"state_dict": state} if file == "training.pt" else state, tmp_path / file)
    model = network()
    load_weights(model, tmp_path / file)
    torch.testing.assert_close(model.state_dict(), network(1).state_dict(), rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch.compile's own
def test_wrappers_themselves_are_read(tmp_path: Path) -> None:
    torch.save(nn.DataParallel(torch.compile(network(1))).state_dict(), tmp_path / "w.pt")
    model = network()
    load_weights(model, tmp_path / "w.pt")
    assert torch.equal(model[0].weight, network(1)[0].weight)


def test_a_network_keeps_names_of_its_own(tmp_path: Path) -> None:
    """A wrapper that is part of the network is, and one name without it is another network's."""
    model = nn.DataParallel(network())
    torch.save(nn.DataParallel(network(1)).state_dict(), tmp_path / "w.pt")
    load_weights(model, tmp_path / "w.pt")
    assert torch.equal(model.module[0].weight, network(1)[0].weight)
    state = {f"module.{name}": tensor for name, tensor in network(1).state_dict().items()}
    torch.save(state | {"extra": torch.ones(1)}, tmp_path / "w.pt")
    with pytest.raises(BayespareError, match=r"has no '0\.weight', which the network needs"):
        load_weights(network(), tmp_path / "w.pt")
