"""From the text of ``net=`` to a network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from bayespare.errors import BayespareError, did_you_mean
from bayespare.nets.factory import call_factory, import_factory
from bayespare.nets.registry import Options, builder, known


def build(
    spec: str, *, inputs: tuple[int, ...], outputs: int, seed: int | None = None
) -> nn.Module:
    """Build a network by name or by import path.

    Args:
        spec: ``mlp:400,400``, ``lenet5``, ``resnet20``, ``vit:depth=4`` or another name that
            :func:`bayespare.nets.known` lists, with its options, or ``module:factory`` for a
            function or class of the user's own, found from the current directory. It is
            called with ``inputs=`` and ``outputs=`` if it takes them.
        inputs: Shape of one example, without the batch dimension.
        outputs: Number of classes, or 1 for regression.
        seed: Seed of the initial weights; PyTorch's global generators are left as they were.
            Without it the weights come from the global generator.

    Raises:
        BayespareError: If the name is unknown, an option is wrong, the inputs do not fit the
            network, or the user's factory fails or returns something else.
    """
    if not inputs or min(inputs) < 1 or outputs < 1:
        raise BayespareError(
            f"net {spec!r}: inputs {inputs} and outputs {outputs} must all be 1 or more"
        )
    inputs = tuple(inputs)
    name, colon, rest = spec.partition(":")
    make = builder(name)
    if make is not None:
        options = Options.parse(spec, rest)
        with _seeded(seed):
            return make(options, inputs=inputs, outputs=outputs)
    if colon and _is_path(name) and _is_path(rest):
        # Imported before the seed is set: what a module draws at import must not matter.
        factory = import_factory(spec, name, rest)
        with _seeded(seed):
            return call_factory(spec, factory, inputs=inputs, outputs=outputs)
    raise BayespareError(
        f"unknown net {spec!r}{did_you_mean(name, known())}; your own: net=module:factory"
    )


def _is_path(text: str) -> bool:
    return all(part.isidentifier() for part in text.split("."))


@contextmanager
def _seeded(seed: int | None) -> Iterator[None]:
    """Seed the CPU generator for a while, then put its state back; ``None`` changes nothing."""
    if seed is None:
        yield
        return
    state = torch.random.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.random.set_rng_state(state)
