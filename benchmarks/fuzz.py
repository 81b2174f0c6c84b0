"""A coverage-guided fuzzer for every file that is read: ``fuzz.py [TARGET ...] [seconds=60]``.

Targets are those of ``tests/faults``, and so is what may happen: a file is read or refused in a
line. Atheris (``pip install -c constraints.txt -e '.[fuzz]'``, or ``make fuzz``) changes them as
its counters of the library's branches say, and half of the time as the tests do, inside gzip, zip
and safetensors, which it would hardly get into. What it found goes on growing in
``bench-results/fuzz``; ``results/faults/fuzz.json`` says how often each was tried and what broke.
"""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

from records import write

ROOT = Path(__file__).parent
RECORD = ROOT / "results/faults/fuzz.json"
KEPT = ROOT.parent / "bench-results/fuzz"


def main() -> None:
    """Each target for so many seconds in a process of its own, which libFuzzer ends as it likes."""
    words = [word.partition("=") for word in sys.argv[1:]]
    seconds = next((int(value) for name, _, value in words if name == "seconds"), 60)
    sys.path.insert(0, str(ROOT.parent / "tests/faults"))
    from fault_inputs import TARGETS, make_samples

    named = [name for name, is_key, _ in words if not is_key]
    record: dict[str, Any] = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    with tempfile.TemporaryDirectory() as place:
        warnings.simplefilter("ignore")
        make_samples(Path(place) / "samples")
        for name in named or TARGETS:
            corpus = KEPT / name
            corpus.mkdir(parents=True, exist_ok=True)
            command = [sys.executable, __file__, "one", name, place, str(corpus), str(seconds)]
            ended = subprocess.run(command, capture_output=True, text=True, check=False)
            record[name] = summed(record.get(name), found(Path(place), name, ended))
            write(RECORD, record)
            print(name, json.dumps(record[name])[:400], flush=True)


def found(place: Path, name: str, ended: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """What one process reports."""
    edges = [int(cover) for cover in re.findall(r"cov: (\d+)", ended.stderr)]
    path = place / f"{name}.json"
    if not edges or not path.exists():
        raise SystemExit(f"{name}: the fuzzer did not get going:\n{ended.stderr[-2000:]}")
    noted: dict[str, Any] = json.loads(path.read_text())
    if ended.returncode != 0:
        noted["bad"].append(f"exit code {ended.returncode}: {ended.stderr[-300:]}")
    return {**noted, "edges_of_samples": edges[0], "edges": edges[-1]}


def summed(before: dict[str, Any] | None, now: dict[str, Any]) -> dict[str, Any]:
    """This run's counts added to those of former runs."""
    if before is None:
        return now
    total = {key: before[key] + now[key] for key in ("read", "refused", "seconds", "bad")}
    slowest = max(before["slowest_s"], now["slowest_s"])
    return {**now, **total, "slowest_s": slowest, "edges_of_samples": before["edges_of_samples"]}


def one(name: str, place: Path, corpus: Path, seconds: int) -> None:
    """Fuzz a target; the first byte of an input says which of its files the rest is."""
    import atheris

    sys.path.insert(0, str(ROOT.parent / "tests/faults"))
    warnings.simplefilter("ignore")
    with atheris.instrument_imports(include=["bayespare"]):
        import fault_inputs as files

    samples = place / "samples"
    paths = files.TARGETS[name].files(samples / name)[:256]
    for number, path in enumerate(paths):
        (corpus / f"sample-{number}").write_bytes(bytes([number]) + path.read_bytes())
    noted: dict[str, Any] = {"read": 0, "refused": 0, "bad": [], "slowest_s": 0.0}
    started = last = time.monotonic()

    def test(data: bytes) -> None:
        nonlocal last
        if not data:
            return
        path, began = paths[data[0] % len(paths)], time.monotonic()
        draw = random.Random(data)
        try:
            end = files.try_content(samples, name, path, data[1:], draw, place / f"in-{name}")
            noted[end] += 1
        except Exception as error:  # whatever may not happen; the fuzzer goes on
            kept = f"bad-{random.Random(data).getrandbits(32):08x}"
            (corpus / kept).write_bytes(data)
            noted["bad"].append(f"{kept}: {path.name}: {type(error).__name__}: {error}"[:300])
        now = time.monotonic()
        noted["slowest_s"] = max(noted["slowest_s"], now - began)
        if now - last > 1 or now - started >= seconds:
            last = now
            aside = place / f"{name}.part"
            aside.write_text(json.dumps({**noted, "seconds": round(now - started)}))
            aside.replace(place / f"{name}.json")
        if now - started >= seconds:
            sys.stderr.flush()
            os._exit(0)

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        draw = random.Random(seed)
        if len(data) < 2 or draw.random() < 0.5:
            return atheris.Mutate(data, most)
        suffix = paths[data[0] % len(paths)].suffix
        try:
            return (data[:1] + files.damaged_file(data[1:], suffix, draw))[:most]
        except Exception:  # its container is damaged already
            return atheris.Mutate(data, most)

    largest = max(path.stat().st_size for path in paths)
    atheris.Setup(
        [
            "fuzz",
            str(corpus),
            f"-max_len={2 * largest + 64}",
            "-timeout=0",
            "-rss_limit_mb=0",
            f"-artifact_prefix={corpus}/crash-",
        ],
        test,
        custom_mutator=mutate,
    )
    atheris.Fuzz()


if __name__ == "__main__":
    if sys.argv[1:2] == ["one"]:
        one(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]), int(sys.argv[5]))
    else:
        main()
