"""``config``: the keys of ``fit`` as a file that ``fit cfg=FILE`` reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bayespare.cli.help import config_text
from bayespare.cli.keys import ConfigKeys, FitKeys
from bayespare.cli.output import Output


def config(keys: ConfigKeys, output: Output) -> Mapping[str, Any]:
    """Print all keys with their defaults and meanings."""
    output.say(config_text())
    return {
        key: {"default": FitKeys.default_of(key), "meaning": field.description}
        for key, field in FitKeys.model_fields.items()
    }
