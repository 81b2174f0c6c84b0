"""Mini-batches of data in memory, and a user's ``DataLoader`` brought into memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SubsetRandomSampler
from torch.utils.data import Dataset as TorchDataset

from bayespare.data.dataset import Dataset
from bayespare.data.place import Place
from bayespare.data.target import Target
from bayespare.errors import BayespareError

Array = NDArray[Any]


class Batches:
    """Iterates over ``(x, y)`` slices of a dataset; each pass draws a new order.

    A dataset with weights gives ``(x, y, weight)``. A slice of tensors in memory costs one
    ``index_select``: no workers, no collation.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        *,
        generator: torch.Generator | None = None,
        shuffle: bool,
        drop_last: bool = False,
        passes: int = 1,
        share: slice | None = None,
    ) -> None:
        """Prepare batches.

        Args:
            dataset: The data, on any device.
            batch_size: Examples per batch; the last batch may be smaller.
            generator: Source of the order; PyTorch's global one if ``None``.
            shuffle: Draw an order for each pass; otherwise the data's own order.
            drop_last: Leave out a last batch that is smaller.
            passes: How often to go through the data, each time in a new order.
            share: Give these rows of every batch only, the others being another process's.

        Raises:
            BayespareError: If the batch size is not positive, the dataset is empty,
                ``drop_last`` would leave nothing, or a smaller batch would be shared.
        """
        if batch_size < 1:
            raise BayespareError(f"batch={batch_size}: must be 1 or more")
        if len(dataset) == 0:
            raise BayespareError("the dataset has no rows")
        if drop_last and len(dataset) < batch_size:
            raise BayespareError(
                f"batch={batch_size} is more than the {len(dataset)} rows there are; "
                "use a smaller batch"
            )
        rest = len(dataset) % batch_size
        if share is not None and rest and not drop_last:
            raise BayespareError(
                f"share=: the last of the batches has {rest} rows instead of {batch_size}, so some "
                "processes would have fewer of them or none; use drop_last=True"
            )
        self.dataset = dataset
        self.batch_size = batch_size
        self.generator = generator
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.passes = passes
        self.share = slice(None) if share is None else share

    @property
    def examples(self) -> int:
        """Number of examples in the dataset (N of the ELBO)."""
        return len(self.dataset)

    def __len__(self) -> int:
        return self.passes * self._once

    @property
    def _once(self) -> int:
        """Batches of one pass."""
        full, rest = divmod(len(self.dataset), self.batch_size)
        return full if self.drop_last or not rest else full + 1

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        for _ in range(self.passes):
            yield from self._pass()

    def _pass(self) -> Iterator[tuple[Tensor, ...]]:
        size = self.batch_size
        x, y, weight = self.dataset.x, self.dataset.y, self.dataset.weight
        parts = (x, y) if weight is None else (x, y, weight)
        starts = range(0, self._once * size, size)
        if not self.shuffle:
            for start in starts:
                yield tuple(part[start : start + size][self.share] for part in parts)
            return
        device = self.generator.device if self.generator is not None else None
        order = torch.randperm(len(y), generator=self.generator, device=device).to(y.device)
        for start in starts:
            index = order[start : start + size][self.share]
            yield tuple(part.index_select(0, index) for part in parts)


def from_loader(loader: Iterable[Any], *, like: Dataset | None = None) -> Dataset:
    """Collect a loader of ``(x, y)`` batches into a dataset in memory.

    Args:
        loader: Any ``DataLoader`` or iterable of pairs of tensors or arrays. Of a ``DataLoader``
            that shuffles, all rows are taken in the order of its data: the same in every process.
            A PyTorch ``Dataset`` of such pairs, or the one pair ``(x, y)`` of all rows, will do.
        like: The training data, when this is their validation or test data: its task, classes
            and target scale are used.

    Returns:
        Classification if ``y`` holds integers or booleans, otherwise regression with targets
        standardised. The inputs are taken as they come, as float32.

    Raises:
        BayespareError: If a batch is not a pair, the loader is empty, or values are not finite.
    """
    if isinstance(loader, tuple | list) and len(loader) == 2 and all(map(_is_array, loader)):
        return from_tensors(*loader, like=like)
    if isinstance(loader, TorchDataset):
        loader = DataLoader(loader, batch_size=1024, generator=torch.Generator())
    if not hasattr(loader, "__iter__"):
        raise BayespareError(
            f"{type(loader).__name__} gives no batches: give a pair (x, y), a torch Dataset, a "
            "DataLoader, or what bayespare.data.load reads"
        )
    xs: list[Tensor] = []
    ys: list[Tensor] = []
    for i, batch in enumerate(_in_order(loader)):
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise BayespareError(f"the loader's batch {i} is not a pair (x, y) but {_told(batch)}")
        x, y = (_as_tensor(f"the loader's batch {i}", part).cpu() for part in batch)
        if not y.ndim:
            raise BayespareError(
                f"the loader's batch {i} is a single example; give several at a time"
            )
        if not x.ndim or len(x) != len(y):
            raise BayespareError(
                f"the loader's batch {i} has x of shape {tuple(x.shape)} and y of {tuple(y.shape)}"
            )
        # A copy: a loader may use its buffers again.
        xs.append(x.to(torch.float32, copy=True))
        ys.append(y.clone())
    if not xs:
        raise BayespareError("the loader gives no batches")
    return from_tensors(torch.cat(xs), torch.cat(ys), like=like)


def _told(batch: object) -> str:
    """What a batch is instead of a pair, and what to do."""
    kind = type(batch).__name__
    if isinstance(batch, Tensor | np.ndarray):
        return f"{kind}; of whole tensors make a pair (x, y)"
    if isinstance(batch, tuple | list):
        return f"{kind} of {len(batch)}; a network that takes several inputs needs them in one"
    if isinstance(batch, Mapping):
        keys = ", ".join(str(key) for key in batch)
        return f"{kind} ({keys}); give the DataLoader a collate_fn that returns two of them"
    return kind


def _in_order(loader: Iterable[Any]) -> Iterable[Any]:
    """Of a loader that shuffles, one that does not; any other as it is."""
    if not isinstance(loader, DataLoader) or type(loader).__iter__ is not DataLoader.__iter__:
        return loader
    batches, sampler = loader.batch_sampler, loader.sampler
    if batches is not None:
        if type(batches) is not BatchSampler:
            return loader
        sampler = batches.sampler
    order: Any
    if type(sampler) is SubsetRandomSampler:
        order = sampler.indices
    elif (
        type(sampler) is RandomSampler
        and not sampler.replacement
        and sampler.num_samples == len(sampler.data_source)
    ):
        order = range(sampler.num_samples)
    else:
        return loader
    return DataLoader(
        loader.dataset,
        batch_size=None if batches is None else batches.batch_size,
        sampler=order,
        collate_fn=loader.collate_fn,
        num_workers=loader.num_workers,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        prefetch_factor=loader.prefetch_factor,
        # Its own, of a fixed seed: otherwise the user's stream gives the workers theirs.
        generator=torch.Generator(),
    )


def _is_array(values: object) -> bool:
    """Whether it is a tensor or an array, also one of pandas."""
    return isinstance(values, Tensor) or hasattr(values, "__array__")


def _as_tensor(what: str, values: Any) -> Tensor:
    """Of a tensor or an array, without its gradient."""
    try:
        if not isinstance(values, Tensor) and _is_array(values):
            values = np.require(values, requirements="W")  # what pandas shows is read-only
            if values.dtype.kind in "OSU":
                raise BayespareError(
                    f"{what} holds text or objects: give numbers, for classes their indices from 0 "
                    "(numpy.unique(y, return_inverse=True)[1]); bayespare.data.load reads tables"
                )
        return torch.as_tensor(values).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise BayespareError(f"{what} holds what makes no tensor: {error}") from error


def from_tensors(
    x: Tensor | Array, y: Tensor | Array, *, like: Dataset | None = None, tokens: bool = False
) -> Dataset:
    """Make a dataset of tensors, or arrays, that are ready for a network.

    Args:
        x: Shape ``(N, ...)``.
        y: Shape ``(N,)`` or ``(N, 1)``: class indices from 0, or numbers for regression.
        like: As in :func:`from_loader`.
        tokens: Whether ``x`` holds whole numbers that a network looks up, such as token ids.

    Raises:
        BayespareError: If the shapes do not fit, a value is not finite, a class index is
            negative or not one of ``like``'s, or the target is constant.
    """
    x, y = _as_tensor("x", x), _as_tensor("y", y)
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim > 1 and x.ndim and len(x) == len(y):
        raise BayespareError(
            f"y of shape {tuple(y.shape)} holds several targets a row, which no network is fitted "
            "to at once: give one class index or number a row, shape (N,)"
        )
    if y.ndim != 1 or not x.ndim or len(x) != len(y) or not len(y):
        raise BayespareError(
            f"x of shape {tuple(x.shape)} and y of shape {tuple(y.shape)} do not make a dataset: "
            "give (N, ...) and (N,)"
        )
    x = x.to(torch.int64 if tokens else torch.float32)
    for name, values in (("x", x), ("y", y)):
        finite = torch.isfinite(values).reshape(len(values), -1).all(dim=1)
        if not finite.all():
            row = int(finite.to(torch.uint8).argmin())
            raise BayespareError(f"{name} is not finite in row {row} (counting from 0)")
    if like is not None:
        target = Target(like.task, like.classes, like.target_scale)
    elif y.is_floating_point():
        target = Target.fit(y.double().numpy(), "regression", place=Place("y"))
    else:
        target = _indexed_classes(y)
    if target.task == "classification" and y.is_floating_point():
        raise BayespareError("y holds decimals, the training data hold class indices")
    return Dataset(
        x,
        _checked_index(y, target)
        if target.task == "classification"
        else target.encode(y.double().numpy(), Place("y")),
        target.task,
        classes=target.classes,
        features=like.features if like is not None else (),
        feature_groups=like.feature_groups if like is not None else None,
        target_scale=target.scale,
    )


def _indexed_classes(y: Tensor) -> Target:
    """Classes 0, 1, ... up to the largest index."""
    if y.min() == y.max():
        raise BayespareError(f"y holds one class only ({int(y[0])})")
    return Target("classification", tuple(str(i) for i in range(int(y.max()) + 1)))


def _checked_index(y: Tensor, target: Target) -> Tensor:
    index = y.to(torch.int64)
    wrong = (index < 0) | (index >= len(target.classes))
    if wrong.any():
        row = int(wrong.to(torch.uint8).argmax())
        raise BayespareError(
            f"y holds {int(index[row])} in row {row} (counting from 0): "
            f"not a class index from 0 to {len(target.classes) - 1}"
        )
    return index
