"""Several processes that train one network: what they share, and whose word counts.

Every process (a rank, as ``torchrun`` starts them) runs the same program. Each has the whole
network and takes its share of the rows of every batch; gradients are averaged before every step, so
the KL counts once and a step means the same whatever the number of ranks. Noise is drawn by each
rank for itself; orders of batches and everything a decision rests on come from one common stream.
Decisions are rank 0's, and all ranks cut their networks alike. In a single process nothing here
does anything.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bayespare.bayes.sharded import is_sharded
from bayespare.errors import BayespareError

T = TypeVar("T")

_alone: ContextVar[bool] = ContextVar("alone", default=False)


class LostRankError(BayespareError):
    """Another process has stopped, or does not answer."""


class Noisy(Protocol):
    """What draws noise from a generator."""

    generator: torch.Generator | None


# ---------------------------------------------------------------------- who is there
@contextmanager
def joined(seconds: float = 600.0) -> Iterator[None]:
    """Meet the other processes ``torchrun`` has started, and part from them at the end.

    NCCL carries what is on GPUs, gloo the rest. Without ``torchrun`` nothing is done.

    Args:
        seconds: How long ranks wait for each other before they give up.
    """
    if not dist.is_torchelastic_launched() or int(os.environ["WORLD_SIZE"]) == 1:
        yield
        return
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=timedelta(seconds=seconds))
    try:
        yield
    finally:
        dist.destroy_process_group()


def world() -> int:
    """Number of ranks; 1 in a single process."""
    return dist.get_world_size() if _connected() else 1


def rank() -> int:
    """Number of this rank, from 0."""
    return dist.get_rank() if _connected() else 0


def first() -> bool:
    """Whether this is the rank that decides, and the only one that writes files."""
    return rank() == 0


def _connected() -> bool:
    return dist.is_available() and dist.is_initialized() and not _alone.get()


# ---------------------------------------------------------------------- shares
def share(rows: int) -> slice:
    """Which of a number of rows are this rank's: a run of them, as long as everyone's or by one."""
    most, more = divmod(rows, world())
    start = rank() * most + min(rank(), more)
    return slice(start, start + most + (rank() < more))


def whole(batch: int) -> int:
    """The largest batch, up to a given one, of which every rank gets equally many rows.

    Raises:
        BayespareError: If there is none.
    """
    if batch < world():
        raise BayespareError(f"{batch} rows a step are fewer than the {world()} processes")
    return batch - batch % world()


@contextmanager
def own_noise(method: Noisy | None = None) -> Iterator[None]:
    """Let every rank draw its own noise for a while; afterwards streams are common again.

    Seeded from the common stream, so a run that is resumed draws what it would have drawn.

    Args:
        method: Draws from its generator; layers such as dropout draw from PyTorch's.
    """
    if world() == 1:
        yield
        return
    seed = int(torch.randint(2**62, ())) + rank()
    common, stream = None if method is None else method.generator, torch.get_rng_state()
    torch.manual_seed(seed)
    if method is not None and common is not None:
        method.generator = torch.Generator(common.device).manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(stream)
        if method is not None:
            method.generator = common


# ---------------------------------------------------------------------- sums
def mean_gradients(parameters: Iterable[nn.Parameter], *values: Tensor) -> Tensor:
    """Average gradients over all ranks in place, in one message.

    Args:
        parameters: Those without a gradient are passed over; they are the same on every rank. So
            are sharded ones, whose gradients are averaged already.
        *values: Scalars that are averaged with them.

    Returns:
        The averaged values, stacked, without a graph.
    """
    stacked = torch.stack(values).detach()
    if world() == 1:
        return stacked
    grads = [p.grad for p in parameters if p.grad is not None and not is_sharded(p)]
    flat = torch.cat([stacked, *(grad.reshape(-1) for grad in grads)])
    _reduce(flat)
    flat /= world()
    averaged: Tensor
    averaged, *parts = torch.split(flat, [len(stacked), *(grad.numel() for grad in grads)])
    torch._foreach_copy_(grads, [p.view(g.shape) for p, g in zip(parts, grads, strict=True)])
    return averaged


def summed(tensor: Tensor) -> Tensor:
    """The sum over all ranks."""
    if world() == 1:
        return tensor
    total = tensor.clone()
    _reduce(total)
    return total


@torch.no_grad()
def align(network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Bring all ranks to one state: rank 0's, and the mean of what layers have counted themselves.

    Parameters and moments are the same already where all machines round alike. Batch norms have
    seen each rank's own rows.

    Args:
        network: Its buffers of floating numbers are averaged.
        optimizer: Over all parameters.
    """
    if world() == 1:
        return
    counted = [buffer for buffer in network.buffers() if buffer.is_floating_point()]
    if counted:
        flat = summed(torch.cat([buffer.reshape(-1) for buffer in counted])) / world()
        _scatter(flat, counted)
    parameters = [p for g in optimizer.param_groups for p in g["params"] if not is_sharded(p)]
    state = [value for p in parameters for value in optimizer.state.get(p, {}).values()]
    broadcast([*parameters, *(value for value in state if isinstance(value, Tensor))])


# ---------------------------------------------------------------------- rank 0's word
@torch.no_grad()
def broadcast(tensors: Iterable[Tensor]) -> None:
    """Overwrite tensors by rank 0's, in one message per kind of number and device."""
    if world() == 1:
        return
    kinds: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in tensors:
        kinds.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    for same in kinds.values():
        flat = torch.cat([tensor.reshape(-1) for tensor in same])
        _send(flat)
        _scatter(flat, same)


def agreed(keep: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What rank 0 decides: its boolean lines, of the same names and sizes as everyone's."""
    if world() == 1:
        return dict(keep)
    lines = {name: line.to(torch.uint8) for name, line in keep.items()}
    broadcast(lines.values())
    return {name: line.bool() for name, line in lines.items()}


def from_first(compute: Callable[[], T]) -> T:
    """What rank 0 computes, on every rank; the others wait, and get it as JSON gives it back.

    For what the clock has a say in, and for what is done once, such as making a folder.

    Raises:
        BayespareError: On the other ranks, if rank 0 fails.
    """
    if world() == 1:
        return compute()
    if not first():
        answer = json.loads(_text(""))
        if "failed" in answer:
            raise BayespareError(answer["failed"])
        found: T = answer["value"]
        return found
    token = _alone.set(True)
    try:
        value = compute()
    except Exception as error:
        _alone.reset(token)
        _text(json.dumps({"failed": " ".join(str(error).split()) or type(error).__name__}))
        raise
    _alone.reset(token)
    _text(json.dumps({"value": value}))
    return value


def check_same(what: str, value: Any) -> None:
    """Make sure that all ranks began with the same.

    Args:
        what: Its name in the message.
        value: Compared as text.

    Raises:
        BayespareError: If it differs from rank 0's.
    """
    theirs = from_first(lambda: str(value))
    differ = summed(torch.tensor(int(theirs != str(value))))
    if bool(differ):
        raise BayespareError(
            f"{what} of {int(differ)} of the {world()} processes differs from rank 0's (here: "
            f"{value}); start all with the same command, data and folder"
        )


# ---------------------------------------------------------------------- messages
def _text(text: str) -> str:
    """Rank 0's text."""
    data = torch.tensor(list(text.encode()), dtype=torch.uint8)
    size = torch.tensor(len(data))
    _send(size)
    data = data if first() else data.new_empty(int(size))
    _send(data)
    return bytes(data.tolist()).decode()


def _scatter(flat: Tensor, tensors: list[Tensor]) -> None:
    for part, tensor in zip(torch.split(flat, [t.numel() for t in tensors]), tensors, strict=True):
        tensor.copy_(part.view(tensor.shape))


def _reduce(tensor: Tensor) -> None:
    with _carried(tensor) as message:
        dist.all_reduce(message)


def _send(tensor: Tensor) -> None:
    with _carried(tensor) as message:
        dist.broadcast(message, 0)


@contextmanager
def _carried(tensor: Tensor) -> Iterator[Tensor]:
    """A tensor where it can be sent from, and back; says plainly that another process is gone."""
    # NCCL alone carries only what is on a GPU.
    message = tensor.cuda() if dist.get_backend() == "nccl" else tensor
    try:
        yield message
        if message is not tensor:
            tensor.copy_(message)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise LostRankError(
            f"rank {rank()} of {world()}: another process has stopped or does not answer ({reason})"
        ) from error
