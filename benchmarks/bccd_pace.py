"""Seconds an epoch of each network of `benchmarks.bccd`, in turn on one machine: a round is an epoch of each.

    python -m benchmarks.bccd_pace ../shared/data/bccd/BCCD --out runs/bccd --seed 0

Each training is a process group of its own, stopped while it is not its turn, so that whatever else the machine
does hits all of them. An epoch is what passes between two rows of its results.csv: training, validation on the
`val` split, and what is written. The first epoch, with all that is made once, does not count. All are trained to
their end, and their rows are those of `benchmarks.bccd`.
"""

import argparse
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.bccd import OURS, PEER
from benchmarks.results import publish

POLL = 0.005
STARTING = 240.0


class Training:
    """One network's training, which runs only while an epoch of it is asked for."""

    def __init__(self, network: str, asked: argparse.Namespace) -> None:
        self.network, self.out = network, asked.out.absolute()
        self.out.mkdir(parents=True, exist_ok=True)
        self.log = (self.out / f"{network}.log").open("w")
        words = [str(asked.data), "--out", str(self.out), "--networks", network, "--seeds", str(asked.seed)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.bccd", *words, "--epochs", str(asked.epochs)],
            stdout=self.log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    def rows(self) -> int:
        """Epochs that its results.csv tells of."""
        tables = list(self.out.glob(f"{self.network}-*/results.csv"))
        return max(len(tables[0].read_text().splitlines()) - 1, 0) if tables else 0

    def epoch(self) -> float:
        """Let it run until its table has a row more; the seconds that took."""
        before, start = self.rows(), time.perf_counter()
        os.killpg(self.process.pid, signal.SIGCONT)
        while self.rows() == before:
            if self.process.poll() is not None or time.perf_counter() - start > STARTING:
                raise RuntimeError(f"{self.network} ended early: {Path(self.log.name).read_text()[-2000:]}")
            time.sleep(POLL)
        spent = time.perf_counter() - start
        os.killpg(self.process.pid, signal.SIGSTOP)
        return spent

    def finish(self) -> None:
        """Let it run to its end."""
        os.killpg(self.process.pid, signal.SIGCONT)
        self.process.wait(STARTING)

    def end(self) -> None:
        """End it, wherever it is."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.log.close()


def main() -> None:
    """Start all, take turns, print and publish."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="the folder BCCD, Pascal VOC")
    parser.add_argument("--networks", nargs="+", choices=[*OURS, PEER], default=["plain", PEER, "repvgg"])
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out", type=Path, default=Path("runs/bccd-pace"), help="an empty folder, or none yet"
    )
    asked = parser.parse_args()
    if asked.out.is_dir() and any(asked.out.iterdir()):
        parser.error(f"{asked.out} is not empty: epochs that are done cannot be timed")
    trainings: list[Training] = []
    seconds: dict[str, list[float]] = {network: [] for network in asked.networks}
    try:
        for network in asked.networks:
            trainings.append(Training(network, asked))
            print(f"{network}: {trainings[-1].epoch():.1f} s with the first epoch", flush=True)
        for _ in range(asked.epochs - 1):
            for training in trainings:
                seconds[training.network].append(training.epoch())
            print("  ".join(f"{name} {spent[-1]:.2f} s" for name, spent in seconds.items()), flush=True)
        for training in trainings:
            training.finish()
    finally:
        for training in trainings:
            training.end()
    rows = [(network, *compared(seconds, network)) for network in seconds]
    publish(
        "bccd_pace", ("network", "s an epoch", "least", "most", f"of {PEER}'s"), rows, {"seconds": seconds}
    )


def compared(seconds: dict[str, list[float]], network: str) -> tuple[str, str, str, str]:
    """Median, least and most of a network's epochs, and the median of its ratios to the peer's beside it."""
    own = seconds[network]
    ratio = "-"
    if PEER in seconds and network != PEER:
        ratios = sorted(a / b for a, b in zip(own, seconds[PEER], strict=True))
        ratio = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})"
    return f"{statistics.median(own):.2f}", f"{min(own):.2f}", f"{max(own):.2f}", ratio


if __name__ == "__main__":
    main()
