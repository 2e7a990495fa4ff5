"""A script that trains in one or two processes and notes what each of them saw, held and wrote."""

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from unbranch.detect.data.batches import Batch
from unbranch.detect.training import train
from unbranch.detect.training.module import DetectionModule

SEEN: list[list[int]] = []
WRITTEN: list[str] = []


def digest(network: nn.Module) -> str:
    content = b"".join(
        value.detach().contiguous().numpy().tobytes() for value in network.state_dict().values()
    )
    return hashlib.sha256(content).hexdigest()


class Witness(DetectionModule):
    """Notes which pictures each epoch showed, and what this rank holds in the end."""

    def training_step(self, batch: Batch, index: int) -> None:
        while len(SEEN) <= batch.key.epoch:
            SEEN.append([])
        SEEN[batch.key.epoch] += batch.key.pictures
        super().training_step(batch, index)

    def on_train_end(self) -> None:
        about = {
            "seen": SEEN, "written": WRITTEN, "network": digest(self.network), "average": digest(self.average.network),
        }  # fmt: skip
        Path(f"{NOTES}.rank{self.global_rank}.json").write_text(json.dumps(about))


def note_writes(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "os.rename" and str(arguments[1]).startswith(str(Path(OUT))):
        WRITTEN.append(str(arguments[1]))
    if (
        event == "open"
        and str(arguments[0]).startswith(str(Path(OUT)))
        and set(str(arguments[1])) & set("wax+")
    ):
        WRITTEN.append(str(arguments[0]))


if __name__ == "__main__":
    DATA, OUT, NOTES, CHANGES = sys.argv[1:]
    sys.addaudithook(note_writes)
    torch.set_num_threads(1)
    import unbranch.detect.training.run as run

    run.DetectionModule = Witness  # pyright: ignore[reportPrivateImportUsage]
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    train(DATA, folder=OUT, quiet=True, **json.loads(CHANGES))
