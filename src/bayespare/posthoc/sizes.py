"""The network after each round, and which of them measured evidence speaks for."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from bayespare.posthoc.settings import WEIGHTS_OF_LOSS


@dataclass(eq=False)
class Size:
    """The network after a round.

    Attributes:
        name: Short name.
        model: Shapes whole; what was removed is zero.
        masks: Which entries are there, by parameter name.
        keep: Which units are there, by group.
        gain: Occam gain of all that was removed so far, nats.
        rise: Realised rise of the training loss so far, after the survivor update, nats; what the
            first training adds to the loss by its other aim is none of it.
        log_odds: Of the units that are gone, in the round they went; infinite for those that stay,
            whose case is decided by what is measured.
        round: After which it is what it is; a fraction lies between two.
    """

    name: str
    model: nn.Module
    masks: dict[str, Tensor]
    keep: dict[str, Tensor]
    gain: float = 0.0
    rise: float = 0.0
    log_odds: dict[str, Tensor] = field(default_factory=dict)
    round: float = 0.0

    @property
    def nonzeros(self) -> int:
        """Parameters that are not zero."""
        return sum(int(p.count_nonzero()) for p in self.model.parameters())

    def evidence(self, weight: float) -> float:
        """Gain minus ``weight`` times the rise, nats."""
        return self.gain - weight * self.rise

    def tensors(self) -> dict[str, Tensor]:
        """All that is no number, as :meth:`restored` takes it."""
        parts = {
            "model": self.model.state_dict(),
            "masks": self.masks,
            "keep": self.keep,
            "log_odds": self.log_odds,
        }
        return {f"{part}.{n}": t for part, tensors in parts.items() for n, t in tensors.items()}

    @classmethod
    def restored(
        cls, name: str, like: nn.Module, tensors: Mapping[str, Tensor], **numbers: float
    ) -> Size:
        """A size as it was kept.

        Args:
            name: Its name.
            like: A network of the same shapes, on the device it is to be on; not changed.
            tensors: From :meth:`tensors`.
            **numbers: Its gain, rise and round.
        """
        device = next(like.parameters()).device
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "masks": {}, "keep": {}, "log_odds": {}}
        for key, tensor in tensors.items():
            part, _, leaf = key.partition(".")
            if part in parts:
                parts[part][leaf] = tensor
        model = copy.deepcopy(like)
        model.load_state_dict(parts["model"])
        masks = {n: mask.to(device) for n, mask in parts["masks"].items()}
        return cls(name, model, masks, parts["keep"], **numbers, log_odds=parts["log_odds"])


def summits(sizes: Sequence[Size]) -> list[Size]:
    """The size of highest measured evidence, for each weight of the loss."""

    def summit(weight: float) -> Size:
        return max(sizes, key=lambda size: size.evidence(weight))

    return [summit(weight) for weight in WEIGHTS_OF_LOSS]


def up_to_summit(sizes: Sequence[Size]) -> list[Size]:
    """The sizes up to the last summit: what lies behind it no weight of the loss speaks for."""
    names = {size.name for size in summits(sizes)}
    last = max(i for i, size in enumerate(sizes) if size.name in names)
    return list(sizes[: last + 1])


def past_summits(sizes: Sequence[Size]) -> bool:
    """Whether every summit lies two rounds or more behind."""
    return len(sizes) > 2 and all(size not in sizes[-2:] for size in summits(sizes))


def find_last(count: int, start: int, good: Callable[[int], bool]) -> None:
    """Try places until the last good one and the one behind it have been; all before it are good.

    From the first in doubling strides to one on the other side, then between the two by halves.

    Args:
        count: How many places there are.
        start: Where to try first; the nearer, the fewer tries.
        good: Tries a place; called once for each at most.
    """
    last, bad, at, stride = -1, count, start, 1
    while bad - last > 1:
        if good(at):
            last = at
        else:
            bad = at
        if last >= 0 and bad < count:
            at = (last + bad) // 2
            continue
        at = min(last + stride, count - 1) if last >= 0 else max(bad - stride, 0)
        stride *= 2
