"""Values of keys: from what is typed to numbers, times, switches, choices and shapes."""

from __future__ import annotations

import math
from typing import Any, get_args

from pydantic import BeforeValidator

from bayespare.errors import BayespareError, did_you_mean
from bayespare.training.pace import seconds_in

YES = ("true", "on", "yes", "1")
NO = ("false", "off", "no", "0")


def whole(least: int) -> BeforeValidator:
    """A whole number of at least ``least``: ``10000``, ``10_000`` or ``1e4``."""

    def parse(value: Any) -> Any:
        return None if value is None else _whole(value, least)

    return BeforeValidator(parse)


def positive(*words: str, below: float = math.inf) -> BeforeValidator:
    """A number above zero (and below ``below``), or one of the words."""

    def parse(value: Any) -> Any:
        if value is None or value in words:
            return value
        number = _number(value)
        others = "".join(f", or {word}" for word in words)
        if number is None:
            raise ValueError(f"must be a number{others}")
        if not 0 < number < below:
            limits = "above 0" if below == math.inf else f"between 0 and {below:g}"
            raise ValueError(f"must be a number {limits}{others}")
        return float(number)

    return BeforeValidator(parse)


def switch() -> BeforeValidator:
    """True or false."""

    def parse(value: Any) -> Any:
        if isinstance(value, bool):
            return value
        word = str(value).lower()
        if word not in YES + NO:
            raise ValueError("must be true or false (or on, off, yes, no, 1, 0)")
        return word in YES

    return BeforeValidator(parse)


def choice(literal: Any) -> BeforeValidator:
    """One of the words of a ``Literal`` type."""
    words = get_args(literal)

    def parse(value: Any) -> Any:
        if value is not None and value not in words:
            raise ValueError(f"must be {' or '.join(words)}{_near(str(value), words)}")
        return value

    return BeforeValidator(parse)


def shape() -> BeforeValidator:
    """Sizes with commas between them: ``1,28,28``."""

    def parse(value: Any) -> Any:
        if value is None:
            return None
        try:
            return tuple(_whole(part.strip(), 1) for part in str(value).split(","))
        except ValueError:
            raise ValueError(
                "must be sizes of 1 or more with commas between them, such as 1,28,28"
            ) from None

    return BeforeValidator(parse)


def duration() -> BeforeValidator:
    """Seconds, from ``90``, ``90s``, ``10m`` or ``2h``."""

    def parse(value: Any) -> Any:
        if value is None:
            return None
        try:
            return seconds_in(value)
        except BayespareError as error:
            raise ValueError(str(error).partition(": ")[2]) from None

    return BeforeValidator(parse)


def names() -> BeforeValidator:
    """Names with commas between them: ``conv1,fc1``."""

    def parse(value: Any) -> Any:
        parts = value.split(",") if isinstance(value, str) else list(value)
        found = tuple(str(part).strip() for part in parts)
        if "" in found:
            raise ValueError("must be names with commas between them, such as conv1,fc1")
        return found

    return BeforeValidator(parse)


def shares() -> BeforeValidator:
    """Numbers between 0 and 1 with commas between them: ``0.5,0.9``."""

    def parse(value: Any) -> Any:
        parts = value.split(",") if isinstance(value, str) else value
        found = [_number(part) for part in (parts if isinstance(parts, list | tuple) else [parts])]
        if not all(number is not None and 0 < number < 1 for number in found):
            raise ValueError(
                "must be numbers between 0 and 1 with commas between them, such as 0.5,0.9"
            )
        return tuple(found)

    return BeforeValidator(parse)


def several(*words: str) -> BeforeValidator:
    """Some of the words, each once, with commas between them."""

    def parse(value: Any) -> Any:
        parts = value.split(",") if isinstance(value, str) else list(value)
        found = tuple(dict.fromkeys(str(part).strip() for part in parts))
        for word in found:
            if word not in words:
                raise ValueError(f"must be some of {','.join(words)}{_near(word, words)}")
        return found

    return BeforeValidator(parse)


def name_groups() -> BeforeValidator:
    """Names joined by plus signs, commas between the groups: ``lag1+lag2,red+green+blue``."""

    def parse(value: Any) -> Any:
        parts = value.split(",") if isinstance(value, str) else list(value)
        split = (part.split("+") if isinstance(part, str) else part for part in parts)
        found = tuple(tuple(str(name).strip() for name in part) for part in split)
        if any(len(group) < 2 or "" in group for group in found):
            raise ValueError("must be columns that go together, such as lag1+lag2,red+green+blue")
        return found

    return BeforeValidator(parse)


def _whole(value: Any, least: int) -> int:
    number = _number(value)
    if number is None or number != int(number):
        raise ValueError("must be a whole number, such as 10000, 10_000 or 1e4")
    if number < least:
        raise ValueError(f"must be {least} or more")
    if number >= 2**63:
        raise ValueError("must be below 2^63")
    return int(number)


def _number(value: Any) -> int | float | None:
    """The finite number that was typed, exact if it is whole; None if it is none."""
    if isinstance(value, bool):
        return None
    try:
        return int(value) if not isinstance(value, float) else _finite(value)
    except (TypeError, ValueError):
        pass
    try:
        return _finite(float(value))
    except (TypeError, ValueError):
        return None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _near(word: str, words: tuple[str, ...]) -> str:
    hint = did_you_mean(word, words)
    return hint if "did you mean" in hint else ""
