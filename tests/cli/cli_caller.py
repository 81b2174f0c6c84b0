"""What a command line said, and what lies in a folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

QUICK = ("net=mlp:16,8", "epochs=2", "baseline=false")


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def error(self) -> str:
        """The one line on standard error."""
        assert self.err.startswith("bayespare: "), self.err
        assert self.err.count("\n") == 1, self.err
        return self.err.removeprefix("bayespare: ").rstrip()


Caller = Callable[..., Said]


def files(folder: Path) -> dict[str, bytes]:
    """Every file under a folder with its bytes."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}
