"""What runs survive, and what several processes cost."""

import json
from pathlib import Path
from typing import Any

from forms import ratio, table, whole

Record = dict[str, Any]


def robustness(results: Path) -> list[str]:
    """Kills, full disks, damaged files, repeated fits; then the time of two processes."""
    text = ["## Nothing lost", ""]
    parts = {
        path.stem: json.loads(path.read_text()) for path in (results / "faults").glob("*.json")
    }
    lines = {"kills": _kills, "disk": _disk, "repeats": _repeats}
    text += [f"- {line(parts[name])}" for name, line in lines.items() if name in parts]
    text += ["", "Damaged files, `read` or `refused` in one line; anything else, 10 seconds or"]
    text += ["1.5 GB more memory would be `bad`. Fuzzer: guided by the library's branches."]
    text += ["", *_files(parts.get("inputs", {}), parts.get("fuzz", {})), ""]
    return text + _ranks(results / "ranks") + _shards(results / "shards" / "vit.json")


def _kills(record: Record) -> str:
    signals = ", ".join(f"{n} {name}" for name, n in sorted(record["signals"].items()))
    return (
        f"`benchmarks/faults.py kills`: {record['runs_killed']} runs of all methods in turn, killed"
        f" {record['kills']} times at random moments ({signals}) and resumed:"
        f" {record['identical']} ended bit-identical to the undisturbed run,"
        f" {record['runs_with_stray_files']} left a stray file."
    )


def _disk(record: Record) -> str:
    return (
        f"`disk`: {record['runs']} runs with too little room, {record['on_a_small_file_system']} of"
        f" them on a small file system: {record['out_of_room']} ran out of it,"
        f" {record['said_in_one_line']} of these said so in one line,"
        f" {record['with_temporary_files_left']} left temporary files,"
        f" {record['identical_after_resume']} ended bit-identical with more room."
    )


def _repeats(record: Record) -> str:
    return (
        f"`repeats`: {record['fits']} fits in one process: {record['bytes_per_fit']:.0f} bytes of"
        f" memory a fit more, {record['files_end'] - record['files_warm']} open files more."
    )


def _files(inputs: Record, fuzz: Record) -> list[str]:
    tried = inputs.get("outcomes", {})
    rows = []
    for name in fuzz or tried:
        random, guided = tried.get(name, {}), fuzz.get(name, {})
        rows.append(
            [
                name,
                whole(random.get("read", 0)),
                whole(random.get("refused", 0)),
                whole(random.get("bad", 0)),
                *(whole(guided[key]) for key in ("read", "refused") if guided),
                *([whole(len(guided["bad"]))] if guided else []),
                *([f"{guided['edges_of_samples']:,} → {guided['edges']:,}"] if guided else []),
            ]
        )
    head = ["file", "read", "refused", "bad", "fuzzer: read", "refused", "bad", "branches"]
    return table(head, rows) if rows else ["Not run yet."]


def _ranks(folder: Path) -> list[str]:
    rows = []
    for path in sorted(folder.glob("*.json")):
        record = json.loads(path.read_text())
        rows.append(
            [
                record["data"],
                record["net"],
                record["method"],
                whole(record["rows"]),
                whole(record["epochs"]),
                whole(record["ranks"]),
                str(len(record["seconds"]["ddp"])),
                ratio(record["wall"]),
                ratio(record["cpu"]),
                f"{record['load_average']:.1f}",
            ]
        )
    if not rows:
        return []
    head = ["data", "network", "method", "rows", "epochs", "processes", "rounds"]
    head += ["time", "processor time", "load"]
    return [
        "`benchmarks/ranks.py`: a whole run, choice included, over plain DDP training of the dense",
        "network with as many epochs, in turn in the same processes (gloo); medians.",
        "",
        *table(head, rows),
    ]


def _shards(path: Path) -> list[str]:
    if not path.is_file():
        return []
    rows = [
        [
            whole(record["ranks"]),
            whole(record["parameters"]),
            *(whole(record[f"{kind}_here"]) for kind in ("parameters", "moments", "curvature")),
            *(f"{record[f'peak_bytes_{kind}'] / 1e6:,.0f}" for kind in ("training", "curvature")),
            f"{record['load_average']:.1f}",
        ]
        for record in json.loads(path.read_text())
    ]
    head = ["processes", "parameters", "of them here", "moments here", "curvature here"]
    head += ["peak MB, training", "peak MB, curvature", "load"]
    return [
        "",
        "`benchmarks/shards.py`: a transformer under FSDP, gathered block by block; what a process",
        "holds between the steps, and the most memory it had (one process: without FSDP).",
        "",
        *table(head, rows),
    ]
