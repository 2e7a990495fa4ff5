"""Each row in a process of its own, with a limit on its time and memory: a crash or a hang is a row and not the end."""

import hashlib
import json
import multiprocessing
import os
import resource
import time
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.zoo.networks import Network

RESULTS = Path(__file__).with_name("results")
ROOT = Path(__file__).parents[2]
SECONDS = 480
MEMORY = 16 * 2**30
"""Of the heap."""
CODE = ("affine", "ops", "fold", "frontends", "runtimes", "verbs.py")


def code_version() -> str:
    """Of what folds: rows of other versions are out of date."""
    digest = hashlib.sha256()
    for part in CODE:
        path = ROOT / "src" / "unbranch" / part
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def row_path(network: Network, front: str) -> Path:
    """Where a row is kept."""
    return RESULTS / front / f"{network.key}.json"


def read_row(network: Network, front: str) -> dict[str, Any] | None:
    """The kept row."""
    path = row_path(network, front)
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def write_row(network: Network, front: str, row: dict[str, Any]) -> None:
    """Keep a row; numbers to four digits."""
    path = row_path(network, front)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".part{os.getpid()}")
    part.write_text(json.dumps(_short(row), indent=1) + "\n", encoding="utf-8")
    os.replace(part, path)


def _short(tree: Any) -> Any:
    if isinstance(tree, float):
        return float(f"{tree:.4g}")
    if isinstance(tree, dict):
        return {key: _short(value) for key, value in tree.items()}
    return [_short(value) for value in tree] if isinstance(tree, list) else tree


def _work(network: Network, front: str, version: str) -> None:
    """In the row's own process."""
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 5))
    from benchmarks.zoo.rows import first_line, fold_row

    start = time.process_time()
    row: dict[str, Any] = {"network": network.key, "front end": front, "code": version}
    try:
        row |= fold_row(network, front)
    except Exception as error:  # noqa: BLE001
        # Whatever it is, it is this row's result.
        frames = traceback.extract_tb(error.__traceback__)
        ours = [f for f in frames if "/unbranch/" in f.filename] or frames
        place = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}"
        row |= {"outcome": "failed", "why": f"{type(error).__name__} at {place}: {first_line(error)}"}
    row["seconds"] = time.process_time() - start
    row["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    write_row(network, front, row)


def run(networks: Iterable[Network], fronts: Iterable[str], again: str, minutes: float) -> None:
    """Make the rows that are missing; `again` "stale" those of other code too, "all" every one. None begins after `minutes`."""
    end = time.time() + 60 * minutes
    version = code_version()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.zoo.preloaded"])
    networks = list(networks)
    for front in fronts:
        for network in networks:
            kept = read_row(network, front)
            fresh = kept is not None and (again == "missing" or kept["code"] == version)
            if (again != "all" and fresh) or time.time() > end:
                continue
            process = context.Process(target=_work, args=(network, front, version))
            started = time.time()
            process.start()
            for _ in range(SECONDS * 2):  # counted in joins, so that a stopped parent counts nothing
                process.join(1)
                if process.exitcode is not None:
                    break
            else:
                process.kill()
                process.join()
            if process.exitcode != 0:
                limit = process.exitcode in (-9, -24)
                why = f"more than {SECONDS} s" if limit else f"died with exit status {process.exitcode}"
                row = {"network": network.key, "front end": front, "code": version}
                write_row(network, front, row | {"outcome": "failed", "why": why, "seconds": SECONDS})
            print(_line(front, network, read_row(network, front) or {}, time.time() - started), flush=True)


def _line(front: str, network: Network, row: dict[str, Any], seconds: float) -> str:
    errors = [f"{row[key]:.1e}" for key in ("error32", "error64") if key in row]
    parts = (
        front,
        network.key,
        row["outcome"],
        row.get("why", ""),
        *errors,
        row.get("ops", ""),
        f"{seconds:.0f} s",
    )
    return " ".join(str(part) for part in parts if part != "")
