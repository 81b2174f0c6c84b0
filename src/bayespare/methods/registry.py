"""The registry that methods are found in by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationError

from bayespare.errors import BayespareError, did_you_mean
from bayespare.training.method import Config, Method

_REGISTRY: dict[str, tuple[type[Method], Callable[..., Config]]] = {}


def register(
    name: str, make_config: Callable[..., Config]
) -> Callable[[type[Method]], type[Method]]:
    """Class decorator: make a method available under ``name``.

    Args:
        name: Name in the CLI and in configs.
        make_config: Builds the config from the user's keyword arguments.
    """

    def add(method: type[Method]) -> type[Method]:
        _REGISTRY[name] = (method, make_config)
        return method

    return add


def registered() -> list[str]:
    """Names of all methods."""
    return sorted(_REGISTRY)


def find(name: str) -> type[Method]:
    """The class of a registered method.

    Raises:
        BayespareError: On an unknown name.
    """
    if name not in _REGISTRY:
        raise BayespareError(f"unknown method {name!r}{did_you_mean(name, _REGISTRY)}")
    return _REGISTRY[name][0]


def offering(unit: str) -> list[str]:
    """Names of the methods that can decide about a kind of unit, as ``unit=`` names it."""
    return [name for name in registered() if unit in _REGISTRY[name][0].offers]


def most_batch(name: str) -> int | None:
    """Examples per step up to which a registered method takes the data whole."""
    return find(name).most_batch


def authors_run(name: str) -> tuple[int, int]:
    """Epochs and batch of a registered method's authors."""
    return find(name).authors_run


def fixed(setting: str, names: Mapping[str, str], own: str, changes: Mapping[str, Any]) -> None:
    """Let a method's own value of a setting pass that its name has fixed; refuse any other.

    Args:
        setting: Name of the setting.
        names: Each of its values to the method that has it.
        own: The value of the method in question.
        changes: The user's settings.

    Raises:
        BayespareError: On another value.
    """
    value = changes.get(setting, own)
    if value != own:
        other = names.get(value) if isinstance(value, str) else None
        raise BayespareError(
            f"{names[own]}: {setting}={value!r}: this method has {setting}={own}; "
            + (f"use method={other}" if other else "leave the setting out")
        )


def build(name: str, **settings: Any) -> Method:
    """Build a method from its name and settings.

    Raises:
        BayespareError: On an unknown name, an unknown setting, a value out of range, or one without
            effect.
    """
    method, (_, make_config) = find(name), _REGISTRY[name]
    try:
        config = make_config(**settings)
    except ValidationError as error:
        problem = error.errors()[0]
        key = str(problem["loc"][0]) if problem["loc"] else ""
        if problem["type"] == "extra_forbidden":
            known = method.settings_class.model_fields
            others = [
                other for other in _REGISTRY if key in find(other).settings_class.model_fields
            ]
            whose = f"; of {', '.join(sorted(others))} it is one" if others else ""
            raise BayespareError(
                f"{name}: unknown setting {key!r}{whose or did_you_mean(key, known)}"
            ) from None
        raise BayespareError(f"{name}: {key}={problem['input']!r}: {problem['msg']}") from None
    usual = make_config(**{key: settings[key] for key in ("settings",) if key in settings})
    for key, why in config.idle().items():
        # At its usual value it may come from the whole config of a run.
        if key in settings and getattr(config, key) != getattr(usual, key):
            raise BayespareError(f"{name}: {key}={settings[key]!r} would have no effect: {why}")
    return method(config)
