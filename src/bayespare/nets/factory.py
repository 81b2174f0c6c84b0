"""Networks of the user's own, named by import path: ``module:factory``."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from torch import nn

from bayespare.errors import BayespareError, did_you_mean
from bayespare.nets.registry import known


def import_factory(spec: str, module: str, attribute: str) -> Callable[..., Any]:
    """Import ``module``, looking in the current directory too, and find its ``attribute``.

    Raises:
        BayespareError: If the import fails, or there is no such function or class.
    """
    with _current_directory_importable():
        return _find(spec, _import(spec, module), attribute)


def call_factory(
    spec: str, factory: Callable[..., Any], *, inputs: tuple[int, ...], outputs: int
) -> nn.Module:
    """Call a factory with those of ``inputs`` and ``outputs`` that it takes.

    Raises:
        BayespareError: If the call fails, or the result is not an ``nn.Module``.
    """
    name = spec.rpartition(":")[2]
    keywords = _accepted(factory, {"inputs": inputs, "outputs": outputs})
    with _current_directory_importable():
        try:
            model = factory(**keywords)
        except Exception as error:
            call = f"{name}({', '.join(f'{key}={value!r}' for key, value in keywords.items())})"
            raise BayespareError(f"net {spec!r}: {call} failed: {_one_line(error)}") from error
    if not isinstance(model, nn.Module):
        raise BayespareError(
            f"net {spec!r}: {name} returned {type(model).__name__}, not a torch.nn.Module"
        )
    return model


def _import(spec: str, module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and (module + ".").startswith(error.name + "."):
            raise BayespareError(
                f"net {spec!r}: no net and no module is called {module!r} here"
                f"{did_you_mean(module, known())}"
            ) from error
        raise BayespareError(f"net {spec!r}: {module} cannot be imported: {error}") from error
    except Exception as error:
        raise BayespareError(
            f"net {spec!r}: {module} cannot be imported: {_one_line(error)}"
        ) from error


def _find(spec: str, module: ModuleType, attribute: str) -> Callable[..., Any]:
    value: Any = module
    for part in attribute.split("."):
        if not hasattr(value, part):
            names = [name for name in vars(value) if not name.startswith("_")]
            raise BayespareError(
                f"net {spec!r}: {module.__name__} has no {attribute!r}{did_you_mean(part, names)}"
            )
        value = getattr(value, part)
    if isinstance(value, nn.Module) or not callable(value):
        raise BayespareError(
            f"net {spec!r}: {attribute} is {type(value).__name__}; "
            "name a function or class that makes the network"
        )
    made: Callable[..., Any] = value
    return made


def _accepted(factory: Callable[..., Any], keywords: dict[str, Any]) -> dict[str, Any]:
    """Those of the keywords that the factory's signature takes."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except ValueError:  # a callable written in C may have no signature
        return {}
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return keywords
    names = {p.name for p in parameters if p.kind is not p.POSITIONAL_ONLY}
    return {name: value for name, value in keywords.items() if name in names}


@contextmanager
def _current_directory_importable() -> Iterator[None]:
    here = os.getcwd()
    sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(here)


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
