"""Trained weights from a file, put into a network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from bayespare.errors import BayespareError, did_you_mean

CHECKPOINT_KEYS = ("state_dict", "model_state_dict", "model")
"""Under which a checkpoint of training holds the state dict of its network."""

WRAPPERS = ("module.", "_orig_mod.")
"""Before every name, where ``DataParallel`` and its like or ``torch.compile`` held the network."""


def load_weights(model: nn.Module, path: Path) -> None:
    """Put a state dict into a network, in place.

    Args:
        model: Of the same architecture.
        path: ``.safetensors``, or a file of ``torch.save``, read as tensors alone: a state dict, or
            a checkpoint that holds one under one of :data:`CHECKPOINT_KEYS`; the names may begin
            with :data:`WRAPPERS`.

    Raises:
        BayespareError: If it cannot be read, or does not fit; the message names the parameter.
    """
    wanted = model.state_dict()
    state = _unwrapped(_state_dict(path), wanted)
    for name, tensor in wanted.items():
        if name not in state:
            raise BayespareError(
                f"weights={path}: has no {name!r}, which the network needs"
                f"{did_you_mean(name, state)}"
            )
        if state[name].shape != tensor.shape:
            raise BayespareError(
                f"weights={path}: {name!r} has shape {tuple(state[name].shape)}, the network's "
                f"{tuple(tensor.shape)}"
            )
    extra = [name for name in state if name not in wanted]
    if extra:
        raise BayespareError(f"weights={path}: {extra[0]!r} is no parameter of the network")
    model.load_state_dict(dict(state))


def _state_dict(path: Path) -> Mapping[str, Tensor]:
    if not path.is_file():
        raise BayespareError(f"weights={path}: there is no such file")
    try:
        state: Any = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except Exception as error:  # a damaged file raises half a dozen kinds
        why = " ".join(str(error).split())
        if "Unsupported global" in why:
            raise BayespareError(
                f"weights={path}: holds Python objects, whose reading could run any code; save "
                "the tensors alone: torch.save(model.state_dict(), path)"
            ) from None
        raise BayespareError(
            f"weights={path}: is no state dict that can be read ({why[:200]})"
        ) from None
    if isinstance(state, Mapping):
        inner = [state[key] for key in CHECKPOINT_KEYS if key in state]
        for found in (state, *inner):
            if _names_tensors(found):
                return found
    raise BayespareError(
        f"weights={path}: holds no state dict (names with tensors), nor one under "
        + ", ".join(CHECKPOINT_KEYS)
    )


def _unwrapped(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The same by the names that the network has by itself, if all have those of wrappers."""
    for prefix in WRAPPERS * 2:  # one wrapper may hold the other, either way
        own = any(name.startswith(prefix) for name in wanted)
        if state and not own and all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def _names_tensors(found: Any) -> TypeGuard[Mapping[str, Tensor]]:
    return (
        isinstance(found, Mapping)
        and all(isinstance(name, str) for name in found)
        and all(isinstance(tensor, Tensor) for tensor in found.values())
    )
