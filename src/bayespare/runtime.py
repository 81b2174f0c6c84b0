"""A runtime for networks of single weights: linear layers as CSR, where that measures faster."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bayespare.errors import BayespareError
from bayespare.measure import latency
from bayespare.measure.latency import batch_of
from bayespare.structure.stack import evaluating

LEAST_SPARSITY = 0.95
"""Share of zeros from which a layer is tried: with more weights CSR seldom pays."""

TOLERANCE = 1e-5
"""Largest difference to the dense layer, relative to its largest output: the sums' order."""


class CSRLinear(nn.Module):
    """A linear layer that multiplies with its non-zero weights alone; on a CPU, for inference.

    Args:
        layer: The dense layer; not changed.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # CSR is called beta
            weight = layer.weight.detach().to_sparse_csr()
        # Three plain tensors, which can be copied and saved; CSR ones cannot.
        self.register_buffer("starts", weight.crow_indices())
        self.register_buffer("columns", weight.col_indices())
        self.register_buffer("values", weight.values())
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach().clone())
        self.starts: Tensor
        self.columns: Tensor
        self.values: Tensor
        self.bias: Tensor | None

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., in_features)`` to ``(..., out_features)``; no gradient passes."""
        size = (self.out_features, self.in_features)
        weight = torch.sparse_csr_tensor(
            self.starts, self.columns, self.values, size, check_invariants=False
        )
        rows = x.reshape(-1, self.in_features).t()
        out = weight @ rows if self.bias is None else torch.addmm(self.bias[:, None], weight, rows)
        return out.t().reshape(*x.shape[:-1], self.out_features)


@dataclass(frozen=True)
class LayerTime:
    """How long one layer takes.

    Attributes:
        sparsity: Share of its weights that are zero.
        dense_ms: Milliseconds a call as it is.
        csr_ms: Milliseconds a call as CSR.
    """

    sparsity: float
    dense_ms: float
    csr_ms: float


@dataclass(frozen=True, eq=False)
class SparseRuntime:
    """What :func:`sparse_runtime` found.

    Attributes:
        model: A copy with CSR layers where they pay; where they do not, a copy as it was.
        layers: Every layer that was tried, by name.
        taken: Names of those that are CSR in ``model``.
        batch: Rows of the calls that were timed.
        dense_ms: Milliseconds a call of the model as it was; None where no layer was faster.
        sparse_ms: Milliseconds a call with the faster layers as CSR; None likewise.
    """

    model: nn.Module
    layers: Mapping[str, LayerTime]
    taken: tuple[str, ...]
    batch: int
    dense_ms: float | None = None
    sparse_ms: float | None = None

    def __str__(self) -> str:
        if not self.layers:
            return f"CSR is not tried: no linear layer is {LEAST_SPARSITY:.0%} zero"
        if not self.taken or self.dense_ms is None or self.sparse_ms is None:
            return f"CSR does not pay at batch {self.batch} on this machine: " + "; ".join(
                f"{name} takes {time.csr_ms:.3g} ms, dense {time.dense_ms:.3g} ms"
                for name, time in self.layers.items()
            )
        return (
            f"CSR for {', '.join(self.taken)}: {self.sparse_ms:.3g} ms at batch {self.batch}, "
            f"dense {self.dense_ms:.3g} ms ({self.dense_ms / self.sparse_ms:.2f}x faster)"
        )


def sparse_runtime(
    model: nn.Module, example: Tensor | tuple[Tensor, ...], *, batch: int = 1
) -> SparseRuntime:
    """Put CSR layers where linear layers are mostly zero and that measures faster on this CPU.

    Every ``nn.Linear`` with 95 % zeros or more is timed both ways on the input that reaches it, on
    one thread, calls of both in turn; then the whole network is. Whatever does not measure faster
    stays dense. The result says the same to 1e-5 and is for inference: save and export the model
    it was made from.

    Args:
        model: On the CPU, such as the model of a run with ``unit=weight``; it is not changed.
        example: Rows of input, or a tuple of the model's arguments; repeated to fill the batch.
        batch: Rows a call will have: what pays depends on it.

    Raises:
        BayespareError: If the model is not on the CPU, or does not run on the example.
    """
    examples = example if isinstance(example, tuple) else (example,)
    inputs = tuple(batch_of(x, batch) for x in examples)
    model = copy.deepcopy(model).eval()
    if any(tensor.device.type != "cpu" for tensor in model.state_dict().values()):
        raise BayespareError("sparse_runtime: the model is not on the CPU; call model.cpu() first")
    reached = _inputs(model, inputs)
    layers, faster = {}, {}
    for name, x in reached.items():
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        sparse = CSRLinear(layer)
        times = latency({"dense": layer, "csr": sparse}, x, batches=(len(x),), seconds=0.5)
        dense_ms, csr_ms = (next(iter(times[kind].values())) for kind in ("dense", "csr"))
        zeros = 1 - int(layer.weight.count_nonzero()) / layer.weight.numel()
        layers[name] = LayerTime(zeros, dense_ms, csr_ms)
        if csr_ms < dense_ms and _same(layer, sparse, x):
            faster[name] = sparse
    if not faster:
        return SparseRuntime(model, layers, (), batch)
    mixed = copy.deepcopy(model)
    for name, sparse in faster.items():
        mixed.set_submodule(name, sparse)
    runs = {"dense": _Bound(model, inputs), "csr": _Bound(mixed, inputs)}
    whole = latency(runs, inputs[0], batches=(batch,), seconds=1.0)
    dense_ms, sparse_ms = whole["dense"][str(batch)], whole["csr"][str(batch)]
    if sparse_ms >= dense_ms:
        return SparseRuntime(model, layers, (), batch, dense_ms, sparse_ms)
    return SparseRuntime(mixed, layers, tuple(faster), batch, dense_ms, sparse_ms)


@torch.no_grad()
def _same(layer: nn.Module, sparse: nn.Module, x: Tensor) -> bool:
    """Whether both say the same; NaN is never the same."""
    expected, got = layer(x), sparse(x)
    return bool((expected - got).abs().max() <= TOLERANCE * expected.abs().max())


class _Bound(nn.Module):
    """A model with the arguments it is timed on."""

    def __init__(self, model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        super().__init__()
        self.model, self.inputs = model, inputs

    def forward(self, x: Tensor) -> Any:
        return self.model(*self.inputs)


@torch.no_grad()
def _inputs(model: nn.Module, inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """What reaches every linear layer that is sparse enough, by its name."""
    reached: dict[str, Tensor] = {}
    hooks = []
    for name, layer in model.named_modules():
        if type(layer) is nn.Linear and _is_sparse(layer.weight):

            def note(name: str, layer: nn.Module, arguments: tuple[Tensor, ...]) -> None:
                reached[name] = arguments[0].detach().clone()

            hooks.append(layer.register_forward_pre_hook(partial(note, name)))
    try:
        with evaluating(model):
            model(*inputs)
    except (IndexError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise BayespareError(
            f"sparse_runtime: the model does not run on the example ({reason})"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    return reached


def _is_sparse(weight: Tensor) -> bool:
    return int(weight.count_nonzero()) <= (1 - LEAST_SPARSITY) * weight.numel()
