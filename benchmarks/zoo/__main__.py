"""The command line of the zoo."""

import argparse
import fnmatch
import math

from benchmarks.zoo import networks, pages, picture
from benchmarks.zoo.running import read_row, run

FRONT_ENDS = ("module", "exported", "onnx")
TIMINGS = ("time", "file")


def main() -> None:
    """Fold what is missing."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.zoo", description=__doc__)
    parser.add_argument(
        "--front",
        default=",".join(FRONT_ENDS),
        help="comma-separated; time and file are timings, for a machine at rest",
    )
    parser.add_argument("--only", default="*", help="a glob on library-name, such as 'timm-repvgg*'")
    parser.add_argument("--shard", type=shard, default="1/1", help="I/N: every N-th network from the I-th")
    parser.add_argument(
        "--again", choices=("missing", "stale", "all"), default="missing", help="which rows to make"
    )
    parser.add_argument("--find", action="store_true", help="go through the libraries and make the list anew")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no row after this time")
    parser.add_argument("--page", action="store_true", help="write the page and the picture whatever was run")
    asked = parser.parse_args()
    fronts = [front for front in asked.front.split(",") if front]
    if strange := set(fronts) - {*FRONT_ENDS, *TIMINGS}:
        parser.error(f"--front {', '.join(sorted(strange))}: there are {', '.join((*FRONT_ENDS, *TIMINGS))}")
    chosen = networks.find() if asked.find else networks.known()
    part, parts = asked.shard
    chosen = [n for n in chosen if fnmatch.fnmatch(n.key, asked.only)][part - 1 :: parts]
    for front in fronts:
        some = {"time": changed, "file": multi_branch}.get(front, list)(chosen)
        run(some, [front], asked.again, asked.minutes)
    if asked.front == ",".join(FRONT_ENDS) or asked.page:
        pages.write()
        picture.draw()


def shard(text: str) -> tuple[int, int]:
    """Of "I/N". Raises argparse.ArgumentTypeError for what is none of 1/N to N/N."""
    part, _, parts = text.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise argparse.ArgumentTypeError(f"{text!r}: give I/N, such as 1/2 and 2/2")
    return int(part), int(parts)


def changed(chosen: list[networks.Network]) -> list[networks.Network]:
    """Those whose ops folding changed, the ones that their own library folds too first."""
    rows = [(network, read_row(network, "module") or {}) for network in chosen]
    found = [
        (n, row["ops"]) for n, row in rows if "ops" in row and row["ops"]["after"] != row["ops"]["before"]
    ]
    found.sort(key=lambda pair: pair[1].get("theirs", pair[1]["before"]) == pair[1]["before"])
    return [network for network, _ in found]


def multi_branch(chosen: list[networks.Network]) -> list[networks.Network]:
    """timm's that timm itself folds, and the one in which branches cost most."""
    found = [network for network in changed(chosen) if network.library == "timm"]
    rows = [(network, (read_row(network, "module") or {})["ops"]) for network in found]
    found = [network for network, ops in rows if ops.get("theirs", ops["before"]) < ops["before"]]
    return [networks.Network("timm", "mobileone_s0", "mobileone", 0), *found]


if __name__ == "__main__":
    main()
