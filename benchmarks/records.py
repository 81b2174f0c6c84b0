"""How results are kept: one JSON file each, as it was or as it is, never half of it."""

import json
from pathlib import Path


def write(path: Path, record: object) -> None:
    """Write a record, its folder made; a kill leaves the file before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".part")
    aside.write_text(json.dumps(record, indent=1) + "\n")
    aside.replace(path)
