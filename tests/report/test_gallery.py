"""The gallery: every public block, drawn from itself."""

import inspect
from pathlib import Path

import pytest
from PIL import Image
from torch import nn

from unbranch import blocks
from unbranch.blocks import Block, Branches, DilatedReparamBlock, OREPABlock, RepMixer
from unbranch.report.gallery import deployed, draw_block, example_of, page, public_blocks
from unbranch.report.sketch import in_words, sketch

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_in_the_docs_is_what_the_blocks_say() -> None:
    written = (DOCS / "blocks.md").read_text(encoding="utf-8")
    assert written == page(public_blocks()), "run: python -m unbranch.report.gallery docs"
    offered = [vars(blocks)[name] for name in blocks.__all__]
    for one in offered:
        if inspect.isclass(one) and issubclass(one, Block) and one is not Block:
            assert f"\n## {one.__name__}\n" in written
            with Image.open(DOCS / "blocks" / f"{one.__name__}.png") as drawing:
                assert min(drawing.size) > 100


@pytest.mark.parametrize("kind", public_blocks(), ids=lambda kind: kind.__name__)
def test_every_block_is_sketched(kind: type[Block]) -> None:
    block = example_of(kind)
    drawn = sketch(block.branches)
    assert drawn.rows
    assert not [
        name for row in drawn.rows for name in row if name.startswith(("Sequential", "Conv", "Bordered"))
    ]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (blocks.RepVGGBlock, "3x3 → norm + 1x1 → norm + x → norm"),
        (blocks.QARepVGGBlock, "3x3 → norm + 1x1 + x, then norm"),
        (blocks.ImplicitConv, "+ a → 1x1 → · m"),
        (RepMixer, "3x3 → norm → scale + 1x1 → norm → scale + x → norm → scale + x → norm → − scale + x"),
    ],
)
def test_in_words(kind: type[Block], words: str) -> None:
    assert in_words(sketch(example_of(kind).branches)) == words


def test_the_one_kernel_and_its_name() -> None:
    kernel, said = deployed(example_of(DilatedReparamBlock))
    assert (kernel.shape, said) == ((8, 1, 13, 13), "one 13x13, depthwise")


def test_a_drawing(tmp_path: Path) -> None:
    draw_block(example_of(OREPABlock), tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as drawing:
        assert drawing.width > 2 * drawing.height
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_branches_that_nobody_described() -> None:
    class Other(Branches):
        pass

    with pytest.raises(TypeError, match="nobody said what Other looks like"):
        sketch(Other())
    assert isinstance(Other(), nn.Module)
