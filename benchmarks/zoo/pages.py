"""docs/zoo.md from the rows that are there."""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.zoo.networks import Network, known
from benchmarks.zoo.running import RESULTS, ROOT, code_version, read_row

PAGE = ROOT / "docs" / "zoo.md"
FRONT_ENDS = {"module": "modules", "exported": "exported programs", "onnx": "ONNX files"}
LIMITS = {"error32": 1e-5, "error64": 1e-10}
ROUNDING = 4.0
"""How many times the network's own rounding error two correct evaluations of it may differ, as in the certificates."""

PLACE = 0.99
"""What equal networks in two places of memory may differ by, as `benchmarks/bench_plain.py` found before it went by twelve places."""

TOO_MUCH = (
    "needs more than the 16 GiB that a row gets, at the one size that it takes, to be watched in float64"
)

Row = dict[str, Any]


def rows_of(front: str) -> list[tuple[Network, Row]]:
    """The kept rows of a front end, in the list's order."""
    networks = known()
    if front == "file":  # others than those of the list stand there too
        networks = [
            Network("timm", path.stem.removeprefix("timm-"), "", 0)
            for path in sorted((RESULTS / front).glob("*.json"))
        ]
    found = [(network, read_row(network, front)) for network in networks]
    return [(network, row) for network, row in found if row is not None]


def breach(row: Row) -> str | None:
    """Why a row does not count as equal; None where it does."""
    if row["outcome"] == "failed":
        return TOO_MUCH if "allocate memory" in row["why"] else row["why"]
    if row.get("failed"):
        return f"not equal by its certificate: {row['error32']:.0e}"
    for key, limit in LIMITS.items():
        own = ROUNDING * row.get(key.replace("error", "rounding"), 0.0)
        if row.get(key, 0.0) > max(limit, own):
            return f"{key.removeprefix('error')}-bit error {row[key]:.0e}, {own / ROUNDING:.0e} by the network's own rounding"
    return None


def is_raised(row: Row) -> bool:
    """The network's own rounding is above the plain limit, and so is the error."""
    return breach(row) is None and any(row.get(key, 0.0) > limit for key, limit in LIMITS.items())


def more_ops(row: Row) -> bool:
    """More ops than its library's own code leaves, or than before."""
    ops = row.get("ops", {})
    return "after" in ops and ops["after"] > min(ops["before"], ops.get("theirs", ops["before"]))


def table(headers: Sequence[str], rows: Iterable[Sequence[Any]], words: bool = False) -> list[str]:
    """Lines of Markdown; columns after the first are set to the right, unless they hold words."""
    lines = [headers, ["---"] + ["---" if words else "--:"] * (len(headers) - 1), *rows]
    return ["| " + " | ".join(str(cell) for cell in line) + " |" for line in lines] + [""]


def write() -> None:
    """The page."""
    parts: list[Callable[[], list[str]]] = [_head, _breaches, _files, _contest, _times, _networks]
    text = "\n".join(line for part in parts for line in part())
    part = PAGE.with_suffix(".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, PAGE)


def _head() -> list[str]:
    total = len(known())
    lines = [
        "# The zoo",
        "",
        f"{total} networks: the smallest of every architecture family of timm and torchvision that convolves, every network that",
        "ultralytics describes, and our own. Weights are random, batch-norm statistics drawn around those of the input. `make zoo` makes",
        "the rows and this page; rows stand in `benchmarks/zoo/results`.",
        "",
        "![Ops before and after](zoo.png)",
        "",
    ]
    body = []
    for front, title in FRONT_ENDS.items():
        rows = [row for _, row in rows_of(front)]
        ran = [row for row in rows if row["outcome"] in ("folded", "unchanged")]
        theirs = [row for row in ran if "theirs" in row.get("ops", {})]
        fold = sorted(row["fold_seconds"]["ours"] for row in ran)
        body.append(
            (
                title,
                f"{len(rows)} of {total}",
                sum(row["outcome"] == "folded" for row in rows),
                sum(row["outcome"] == "unchanged" for row in rows),
                sum(row["outcome"] == "not exported" for row in rows),
                sum(breach(row) is not None for row in rows),
                f"{_worst(ran, 'error64')}",
                f"{_worst(ran, 'error32')}",
                f"{sum(row['ops']['after'] < row['ops']['theirs'] for row in theirs)} / "
                f"{sum(row['ops']['after'] == row['ops']['theirs'] for row in theirs)} / {sum(map(more_ops, theirs))}",
                f"{fold[len(fold) // 2]:.2f} / {fold[-1]:.2f}" if fold else "",
            )
        )
    headers = (
        "front end", "ran", "folded", "nothing to gain", "not exportable", "failures", "worst float64", "worst float32",
        "fewer / as many / more ops than theirs", "seconds to fold, median / most",
    )  # fmt: skip
    return (
        lines
        + table(headers, body)
        + [
            "An error is max|a − b| / max(1, max|b|) of an output, at two sizes where the network takes two. The limits are 1e-10 in",
            "float64 and 1e-5 in float32, or four times what rounding alone does to the network as it was. Outputs that a search orders",
            "(topk, sort, non-maximum suppression) are held in float64 only, or, in a file, by the numbers that go into the search.",
            "Ops are those that compute or copy, counted while the network runs, of the outputs that both forms give; `theirs` is",
            "timm's `reparameterize_model`, ultralytics' `fuse`, and for",
            "torchvision, which has none, torch's own fx fusing. Times to fold are CPU seconds on one thread, without recording,",
            "exporting and verifying. ONNX rows run in ONNX Runtime, which has these networks' ops in float32 only; ONNX's reference",
            "implementation has float64 and takes minutes for one of them, so the tests hold small random networks there to 1e-10.",
            "",
        ]
    )


def _worst(rows: list[Row], key: str) -> str:
    found = [row[key] for row in rows if key in row]
    return f"{max(found):.0e}" if found else "–"


def _breaches() -> list[str]:
    lines = ["## What went wrong, and what was refused", ""]
    wrong: list[tuple[str, str, str]] = []
    notes: list[str] = []
    for front, title in FRONT_ENDS.items():
        rows = rows_of(front)
        wrong += [(network.key, title, why) for network, row in rows if (why := breach(row))]
        wrong += [
            (network.key, title, f"{row['ops']['after']} ops where {min(v for k, v in row['ops'].items() if k != 'after')} would do")
            for network, row in rows
            if more_ops(row)
        ]  # fmt: skip
        wrong += [
            (network.key, title, note)
            for network, row in rows
            for note in row.get("notes", [])
            if "second fold" in note
        ]
        raised = [network.key for network, row in rows if is_raised(row)]
        if raised:
            notes.append(f"Above the plain limit by their own rounding, as {title}: {', '.join(raised)}.")
    lines += (
        table(("network", "as", "what"), wrong, words=True)
        if wrong
        else ["Nothing: every row that ran is equal, with no op too many.", ""]
    )
    lines += [*notes, ""]
    refused = Counter(
        _plain(reason)
        for front in FRONT_ENDS
        for _, row in rows_of(front)
        for reason in row.get("refusals", {})
    )
    lines += ["Reasons for which places were left alone, by the rows that met them:", ""]
    lines += table(("reason", "rows"), refused.most_common(12))
    absent = [
        (network.key, title, row["why"].replace("|", "/")[:110])
        for front, title in FRONT_ENDS.items()
        for network, row in rows_of(front)
        if row["outcome"] == "not exported"
    ]
    if absent:
        lines += ["Networks that torch does not export; as modules they fold:", ""]
        lines += table(("network", "as", "torch says"), absent, words=True)
    return lines


def _plain(reason: str) -> str:
    """Without the numbers and names of one network."""
    if reason.startswith("exact as one"):
        return "exact as one convolution, but more work"
    if "not trusted" in reason:
        return "its forward reads or branches on the input's size, or on data"
    path, colon, rest = reason.partition(": ")
    if colon and " " not in path:
        reason = rest
    if "shape" in reason or "(" in reason:
        return reason.partition(" of shape")[0].partition(" (")[0].partition(";")[0]
    return reason.partition(";")[0][:90]


def _ratio(found: Any) -> str:
    return f"{found['ratio']:.2f} ({found['low']:.2f}–{found['high']:.2f})" if found else "–"


def _files() -> list[str]:
    rows = rows_of("file")
    if not rows:
        return []
    titles = {"onnxruntime": "ONNX Runtime's optimizer", "both": "that, of ours"}
    forms = ("unfolded", "timm", "onnxsim", "onnxslim", "onnxruntime", "both", "ours")
    lines = [
        "## An un-folded ONNX file, folded as a file",
        "",
        "timm's multi-branch networks at 224 px, exported as they are. Convolutions / ops left by each tool, then how many times",
        "longer a run of its file takes than one of ours: paired runs in turn, one thread, batch 1, median and 95 % interval. `timm`",
        "is its own reparameterize, then exported. ONNX Runtime's optimizer works on every file that it runs, ours too, and puts ops of",
        "its own for some, such as activations within convolutions, which other runtimes do not read. Ops are those of the newest code.",
        "",
    ]
    timed = [(n, r) for n, r in rows if r["outcome"] == "timed"]
    older = [n.name for n, r in timed if r["code"] != code_version()]
    if older:
        again = "`python -m benchmarks.zoo --front file --again stale` takes them anew"
        lines += [f"Times of {len(older)} of the {len(timed)} are those of older code: {again}.", ""]
    lines += table(
        ("network", *(titles.get(form, form) for form in forms)),
        [[n.name, *(f"{r['convolutions'][f]} / {r['ops'][f]}" if f in r["ops"] else "–" for f in forms)] for n, r in timed],
    )  # fmt: skip
    for runtime, title in (("onnxruntime", "ONNX Runtime"), ("openvino", "OpenVINO")):
        lines += table(
            (f"in {title}, over ours", "unfolded", "timm", "onnxsim", "onnxslim", "ours, ms"),
            [
                [n.name, *(_ratio(r["ratios"][runtime].get(f)) for f in forms[:4]), f"{r['ratios'][runtime]['unfolded']['after']:.1f}"]
                for n, r in timed
            ],
        )  # fmt: skip
    return lines


def _contest() -> list[str]:
    path: Path = RESULTS / "contest.json"
    if not path.is_file():
        return []
    found = json.loads(path.read_text(encoding="utf-8"))
    lines = [
        "## RepVGG and its rivals, all folded",
        "",
        "224 px, batch 1, one thread, exported with torch.onnx; all networks run in turn. Milliseconds are medians.",
        "",
    ]
    lines += table(
        ("network", "ONNX Runtime ms", "OpenVINO ms", "multiply-adds, G", "parameters, M"),
        [
            (n, f"{r['onnxruntime']:.1f}", f"{r['openvino']:.1f}", f"{r['multiply_adds'] / 1e9:.2f}", f"{r['parameters'] / 1e6:.1f}")
            for n, r in found["networks"].items()
        ],
    )  # fmt: skip
    pairs = []
    for name, pair in found["pairs"].items():
        cells = [f"{pair[r][0]:.2f} ({pair[r][1]:.2f}–{pair[r][2]:.2f})" for r in ("onnxruntime", "openvino")]
        pairs.append((name, *cells))
    return lines + table(("time over time", "ONNX Runtime", "OpenVINO"), pairs)


def _times() -> list[str]:
    rows = [(network, row) for network, row in rows_of("time") if row["outcome"] == "timed"]
    if not rows:
        return []
    lines = [
        "## Speed",
        "",
        "How many times longer a run takes un-folded, and fused by its own library, than folded by us: paired runs in turn, one",
        "thread, batch 1, median and 95 % interval. ONNX Runtime is timed where the number of convolutions changed: conv + norm it",
        "folds by itself. In torch, `theirs` is timed against ours with `unwrap=True`, as it drops its containers too; un-folded against",
        "the default form.",
        "",
    ]
    fewer = {n.key for n, _ in rows if "outputs compared" in (read_row(n, "module") or {})}
    slower = [
        n.key
        for n, r in rows
        for part in ("torch", "onnxruntime")
        for form, found in r.get(part, {}).items()
        if found["high"] < PLACE and (form, n.key in fewer) != ("theirs", True)
    ]
    lines += [
        f"Slower than one of them, beyond the noise and the {1 - PLACE:.0%} that the place in memory alone makes of two equal networks:",
        f"{', '.join(dict.fromkeys(slower)) or 'none'} of {len(rows)} timed.",
        "A star: its own library's fusing also drops outputs, such as a head that only training reads, so that it does less.",
        "",
    ]
    cells = [
        [
            _ratio(r.get(part, {}).get(form)) + " \\*" * (form == "theirs" and n.key in fewer and part in r)
            for part in ("torch", "onnxruntime")
            for form in ("unfolded", "theirs")
        ]
        for n, r in rows
    ]
    return lines + table(
        ("network", "torch: un-folded", "torch: theirs", "ONNX Runtime: un-folded", "ONNX Runtime: theirs"),
        [(n.key, *some) for (n, _), some in zip(rows, cells, strict=True)],
    )


def _networks() -> list[str]:
    lines = [
        "## Every network",
        "",
        "Ops before → after (theirs); `=` is nothing to gain. Errors of the module: float64, float32.",
        "",
    ]
    by_front = {front: dict(rows_of(front)) for front in FRONT_ENDS}
    body = []
    for network in known():
        row = by_front["module"].get(network)
        cells = [_cell(by_front[front].get(network)) for front in FRONT_ENDS]
        errors = " ".join(f"{row[key]:.0e}" for key in ("error64", "error32") if row and key in row)
        body.append(
            (
                network.key,
                *cells,
                errors,
                f"{row['fold_seconds']['ours']:.2f}" if row and "fold_seconds" in row else "",
            )
        )
    return lines + table(("network", "module", "exported", "ONNX", "errors", "fold s"), body)


def _cell(row: Row | None) -> str:
    if row is None:
        return "not run"
    if "ops" not in row:
        return row["outcome"]
    ops = row["ops"]
    theirs = f" ({ops['theirs']})" if "theirs" in ops else ""
    return (
        f"= {ops['before']}" if row["outcome"] == "unchanged" else f"{ops['before']} → {ops['after']}{theirs}"
    )
