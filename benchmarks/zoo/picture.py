"""docs/zoo.png: each network's ops before, after, and after its own library's fusing."""

import matplotlib as mpl

from benchmarks.zoo.pages import rows_of
from benchmarks.zoo.running import ROOT

PICTURE = ROOT / "docs" / "zoo.png"
INK, QUIET, BEFORE, AFTER, THEIRS = "#1b1f24", "#8a929c", "#c4ccd6", "#1f6f8b", "#e08a1e"


def draw() -> None:
    """One line a network, fewest ops first, by library."""
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    rows = [(n, r["ops"]) for n, r in rows_of("module") if "ops" in r]
    libraries = [
        name
        for name in ("timm", "torchvision", "ultralytics", "unbranch")
        if any(n.library == name for n, _ in rows)
    ]
    groups = [
        sorted((ops for n, ops in rows if n.library == name), key=lambda ops: ops["before"])
        for name in libraries
    ]
    figure, panels = plt.subplots(
        1, len(groups), figsize=(13, 4.8), sharey=True, width_ratios=[max(len(g), 24) for g in groups], layout="constrained"
    )  # fmt: skip
    for panel, name, group in zip(panels, libraries, groups, strict=True):
        at = range(len(group))
        panel.vlines(
            at, [o["after"] for o in group], [o["before"] for o in group], color=BEFORE, linewidth=2.2
        )
        panel.plot(at, [o["before"] for o in group], "o", color=BEFORE, markersize=3.2, label="before")
        fused = [(i, o["theirs"]) for i, o in enumerate(group) if "theirs" in o]
        panel.plot(
            *zip(*fused, strict=True) if fused else ([], []),
            "_",
            color=THEIRS,
            markersize=6,
            markeredgewidth=1.6,
            label="after the library's own fusing",
        )
        panel.plot(at, [o["after"] for o in group], "o", color=AFTER, markersize=3.2, label="after unbranch")
        panel.set_title(f"{name}, {len(group)}", loc="left", fontsize=11, color=INK)
        panel.set_xticks([])
        panel.set_yscale("log")
        panel.spines[["top", "right", "bottom"]].set_visible(False)
        panel.grid(axis="y", color="#eceff2", linewidth=0.8)
        panel.set_axisbelow(True)
    panels[0].set_ylabel("ops in a run", color=QUIET)
    panels[0].legend(frameon=False, fontsize=9, loc="upper left")
    figure.savefig(PICTURE, dpi=130)
    plt.close(figure)
