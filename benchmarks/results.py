"""What every benchmark does with its figures: a table on the terminal and JSON in runs/bench/."""

import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

FOLDER = Path("runs/bench")


def publish(
    name: str, headers: Sequence[str], rows: Sequence[Sequence[str]], data: Mapping[str, Any]
) -> None:
    """Print the rows and write the data, with what they were measured on, to runs/bench/NAME.json."""
    table = Table(*headers, title=name, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    Console().print(table)
    FOLDER.mkdir(parents=True, exist_ok=True)
    machine = {
        "processor": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    path = FOLDER / f"{name}.json"
    path.write_text(json.dumps({"machine": machine, **data}, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {path}")
