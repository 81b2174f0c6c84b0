"""The table of networks that have a name, filled by one decorator line in each network's file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import nn

from bayespare.errors import BayespareError, did_you_mean

MAX_WIDTH = 2**20


@dataclass(frozen=True)
class Options:
    """What follows the colon of a network's name: ``mlp:400,400,act=silu``.

    Attributes:
        spec: The whole text, for error messages.
        words: The plain values, in order: ``("400", "400")``.
        keys: The named values: ``{"act": "silu"}``.
    """

    spec: str
    words: tuple[str, ...] = ()
    keys: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, spec: str, text: str) -> Options:
        """Split ``text`` (what follows the colon of ``spec``) at its commas.

        Raises:
            BayespareError: If a value is empty or a key is given twice.
        """
        words: list[str] = []
        keys: dict[str, str] = {}
        for part in (piece.strip() for piece in text.split(",")) if text else ():
            key, equals, value = (piece.strip() for piece in part.partition("="))
            if not key or (equals and not value):
                raise BayespareError(f"net {spec!r}: an option is empty")
            if not equals:
                words.append(key)
            elif key in keys:
                raise BayespareError(f"net {spec!r}: option {key!r} is given twice")
            else:
                keys[key] = value
        return cls(spec, tuple(words), keys)

    def refuse_unknown(self, *, known: tuple[str, ...] = (), words: bool = False) -> None:
        """Raise if a key is not among ``known``, or if there are plain values that nobody reads."""
        for key in self.keys:
            if key not in known:
                hint = did_you_mean(key, known) if known else " (it takes none)"
                raise BayespareError(f"net {self.spec!r}: unknown option {key!r}{hint}")
        if self.words and not words:
            raise BayespareError(
                f"net {self.spec!r}: takes no widths, got {','.join(self.words)!r}"
            )

    def widths(self) -> list[int]:
        """The plain values as whole numbers.

        Raises:
            BayespareError: If one is not a whole number from 1 to 2**20.
        """
        return [self._number("width", word, MAX_WIDTH) for word in self.words]

    def whole(self, key: str, default: int, *, most: int = MAX_WIDTH) -> int:
        """The whole number, 1 or more, that a key gives.

        Raises:
            BayespareError: If it is none, or larger than ``most``.
        """
        return self._number(key, self.keys[key], most) if key in self.keys else default

    def choose(
        self, key: str, default: str, known: Iterable[str], *, what: str | None = None
    ) -> str:
        """The word that a key gives, one of ``known``.

        Args:
            key: The key.
            default: The word when the key is not given.
            known: The words there are.
            what: What a word is called in the message; the key when left out.

        Raises:
            BayespareError: If it is another word.
        """
        word, words = self.keys.get(key, default), tuple(known)
        if word not in words:
            raise BayespareError(
                f"net {self.spec!r}: unknown {what or key} {word!r}{did_you_mean(word, words)}"
            )
        return word

    def share(self, key: str) -> float:
        """The number from 0 up to (not including) 1 that a key gives; 0 without the key.

        Raises:
            BayespareError: If it is none.
        """
        text = self.keys.get(key, "0")
        try:
            number = float(text)
        except ValueError:
            number = -1.0
        if not 0 <= number < 1:
            raise BayespareError(
                f"net {self.spec!r}: {key} {text!r} is not a number from 0 up to 1"
            )
        return number

    def _number(self, what: str, text: str, most: int) -> int:
        # Long runs of digits are refused before int() would: it has a limit of its own.
        if not (text.isascii() and text.isdigit()) or len(text) > 12 or not 0 < int(text) <= most:
            raise BayespareError(
                f"net {self.spec!r}: {what} {text!r} is not a whole number from 1 to {most}"
            )
        return int(text)


class NetBuilder(Protocol):
    """Makes one network for inputs of shape ``inputs`` (no batch dimension)."""

    def __call__(self, options: Options, *, inputs: tuple[int, ...], outputs: int) -> nn.Module:
        """Return the network; raise :class:`BayespareError` when the inputs do not fit it."""
        ...


_BUILDERS: dict[str, NetBuilder] = {}


def register(name: str) -> Callable[[NetBuilder], NetBuilder]:
    """Decorate a builder so that :func:`bayespare.nets.build` knows it by ``name``."""

    def add(builder: NetBuilder) -> NetBuilder:
        _BUILDERS[name] = builder
        return builder

    return add


def known() -> tuple[str, ...]:
    """Names of all registered networks."""
    return tuple(_BUILDERS)


def builder(name: str) -> NetBuilder | None:
    """The builder registered under ``name``, if any."""
    return _BUILDERS.get(name)
