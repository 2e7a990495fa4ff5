"""The algebra's laws on random maps, in float64 at 1e-10. Every law says which share of its draws it must have accepted."""

from dataclasses import replace

import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.laws.affines import (
    CASES,
    Accepted,
    Draw,
    Shape,
    affines,
    agree,
    inputs_for,
    numbers,
    pairs,
    shapes,
)
from unbranch.affine import Affine, add, apply, compose, concat, regroup, scale, select, shift

Drawn = tuple[Shape, list[Draw]]


def maps_of(drawn: Drawn) -> tuple[Shape, list[Affine]]:
    return drawn[0], [draw.affine() for draw in drawn[1]]


@st.composite
def chains(draw: st.DrawFn, length: int) -> Drawn:
    shape = draw(shapes())
    maps, current = [], shape
    for step in range(length):
        flavours = (
            ("any", "any", "unpadded", "pointwise")[0 if length == 2 else 1 :] if length > 1 else ("any",)
        )
        plain = False if length > 1 and step == 0 and draw(st.booleans()) else None
        maps.append(draw(affines(current, flavours=flavours, biased=plain)))
        current = Shape(shape.rank, maps[-1].out)
    return shape, maps


@st.composite
def sums(draw: st.DrawFn, count: int) -> Drawn:
    """Maps that can be added: one stride, one output size, and one padding mode (or now and then several)."""
    shape = replace(draw(shapes()), out=draw(st.sampled_from([2, 4, 6])))
    stride = [draw(st.integers(1, 3)) for _ in range(shape.rank)]
    slack = [draw(st.integers(-1, 2)) for _ in range(shape.rank)]
    mode = draw(st.sampled_from(["zeros", "reflect", "replicate", "circular", None]))
    transposed = draw(st.sampled_from([False, False, True]))
    one = affines(shape, stride=stride, slack=slack, mode=mode, transposed=transposed)
    return shape, [draw(one) for _ in range(count)]


def size_of(affine: Affine, x: torch.Tensor) -> tuple[int, ...]:
    return affine.geometry.output_size(x.shape[2:])


def test_a_chain_is_its_composition() -> None:
    accepted = Accepted()

    @CASES
    @given(chains(2))
    def law(drawn: Drawn) -> None:
        shape, (a, b) = maps_of(drawn)
        both = accepted(lambda: compose(a, b))
        if both is None:
            return
        x = inputs_for(shape, a, b)
        expected = apply(b, apply(a, x))
        agree(apply(both, x), expected)
        assert size_of(both, x) == tuple(expected.shape[2:])
        assert both.geometry.biased == (both.bias is not None)

    law()
    accepted.at_least(0.3)


def test_composition_is_associative() -> None:
    accepted = Accepted()

    @CASES
    @given(chains(3))
    def law(drawn: Drawn) -> None:
        shape, (a, b, c) = maps_of(drawn)
        left = accepted(lambda: compose(compose(a, b), c))
        right = accepted(lambda: compose(a, compose(b, c)))
        if left is None or right is None:
            return
        x = inputs_for(shape, a, b, c)
        agree(apply(left, x), apply(right, x))
        agree(apply(left, x), apply(c, apply(b, apply(a, x))))

    law()
    accepted.at_least(0.2)


def test_identity_is_the_unit_of_composition() -> None:
    accepted = Accepted()

    @CASES
    @given(chains(1))
    def law(drawn: Drawn) -> None:
        shape, (a,) = maps_of(drawn)
        for make in (
            lambda: compose(Affine.identity(a.in_channels, a.rank), a),
            lambda: compose(a, Affine.identity(a.out_channels, a.rank)),
        ):
            same = accepted(make)
            assert same is not None, "the identity composes with anything"
            assert (same.kernel, same.groups, same.padding) == (a.kernel, a.groups, a.padding)
            assert torch.equal(same.weight, a.weight)
            agree(apply(same, inputs_for(shape, a)), apply(a, inputs_for(shape, a)))

    law()
    accepted.at_least(1.0)


def test_a_sum_is_its_addition() -> None:
    accepted = Accepted()

    @CASES
    @given(sums(2))
    def law(drawn: Drawn) -> None:
        shape, (a, b) = maps_of(drawn)
        both = accepted(lambda: add(a, b))
        if both is None:
            return
        x = inputs_for(shape, both)
        agree(apply(both, x), apply(a, x) + apply(b, x))
        assert size_of(both, x) == size_of(a, x)

    law()
    accepted.at_least(0.7)


def test_addition_is_commutative_and_associative() -> None:
    accepted = Accepted()

    @CASES
    @given(sums(3))
    def law(drawn: Drawn) -> None:
        shape, (a, b, c) = maps_of(drawn)
        once = accepted(lambda: add(a, b, c))
        left, right, turned = (
            accepted(lambda: add(add(a, b), c)),
            accepted(lambda: add(a, add(b, c))),
            accepted(lambda: add(c, b, a)),
        )
        assert (once is None) == (turned is None), "whether a sum is linear depends on its order"
        if once is None:
            return
        x = inputs_for(shape, once)
        for other in (left, right, turned):
            if other is not None:
                agree(apply(once, x), apply(other, x))
                assert once.geometry == other.geometry

    law()
    accepted.at_least(0.6)


def test_composition_distributes_over_addition() -> None:
    accepted = Accepted()

    @CASES
    @given(sums(2), st.data())
    def law(drawn: Drawn, data: st.DataObject) -> None:
        shape, (a, b) = maps_of(drawn)
        after = data.draw(
            affines(
                Shape(shape.rank, a.out_channels), biased=False, flavours=("unpadded", "pointwise", "any")
            )
        ).affine()
        before = data.draw(
            affines(Shape(shape.rank, shape.into, shape.into), biased=False, flavours=("pointwise", "any"))
        ).affine()
        outer = accepted(lambda: compose(add(a, b), after))
        parts = accepted(lambda: add(compose(a, after), compose(b, after)))
        if outer is not None and parts is not None:
            x = inputs_for(shape, add(a, b), after)
            agree(apply(outer, x), apply(parts, x))
        inner = accepted(lambda: compose(before, add(a, b)))
        parts = accepted(lambda: add(compose(before, a), compose(before, b)))
        if inner is not None and parts is not None:
            x = inputs_for(shape, before, add(a, b))
            agree(apply(inner, x), apply(parts, x))

    law()
    accepted.at_least(0.2)


def test_regrouping_changes_nothing() -> None:
    accepted = Accepted()

    @CASES
    @given(chains(1), st.data())
    def law(drawn: Drawn, data: st.DataObject) -> None:
        shape, (a,) = maps_of(drawn)
        groups = data.draw(st.sampled_from([g for g in range(1, a.groups + 1) if a.groups % g == 0]))
        wide = accepted(lambda: regroup(a, groups))
        assert wide is not None
        assert wide.groups == groups
        agree(apply(wide, inputs_for(shape, a)), apply(a, inputs_for(shape, a)))

    law()
    accepted.at_least(1.0)


def test_concatenation_stacks_and_selection_chooses() -> None:
    accepted = Accepted()

    @CASES
    @given(sums(2), st.data())
    def law(drawn: Drawn, data: st.DataObject) -> None:
        shape, (a, b) = maps_of(drawn)
        both = accepted(lambda: concat(a, b))
        if both is None:
            return
        x = inputs_for(shape, both)
        stacked = torch.cat([apply(a, x), apply(b, x)], dim=1)
        agree(apply(both, x), stacked)
        for whole, value in ((both, stacked), (a, apply(a, x))):
            some = data.draw(st.lists(st.integers(0, whole.out_channels - 1), min_size=1, max_size=8))
            agree(apply(select(whole, some), x), value[:, some])
        agree(apply(select(both, range(a.out_channels, both.out_channels)), x), apply(b, x))

    law()
    accepted.at_least(0.7)


def test_selection_keeps_the_groups_that_it_can() -> None:
    """A channel shuffle of a grouped map mixes its groups; a permutation within each group, or a choice from each, does not."""
    a = Affine(numbers(0, 3, 4, 2, 3), None, (1,), ((1, 1),), (1,))
    assert select(a, [c + 4 * g for g in range(3) for c in (2, 0)]).groups == 3
    assert select(a, [4, 5, 6, 7, 0, 1, 2, 3, 8, 9, 10, 11]).groups == 1
    assert select(a, [g * 4 + c for c in range(4) for g in range(3)]).groups == 1


def test_scale_and_shift() -> None:
    accepted = Accepted()

    @CASES
    @given(chains(1), st.booleans())
    def law(drawn: Drawn, number: bool) -> None:
        shape, (a,) = maps_of(drawn)
        x = inputs_for(shape, a)
        by = -1.75 if number else numbers(5, a.out_channels)
        wide = by.reshape(-1, *(1,) * a.rank) if isinstance(by, torch.Tensor) else by
        scaled = accepted(lambda: scale(a, by))
        shifted = accepted(lambda: shift(a, by))
        assert scaled is not None
        assert shifted is not None
        agree(apply(scaled, x), apply(a, x) * wide)
        agree(apply(shifted, x), apply(a, x) + wide)
        assert scaled.groups == a.groups, "a scale is diagonal and keeps the groups"

    law()
    accepted.at_least(1.0)


def test_a_plain_convolution_is_what_torch_computes() -> None:
    """`apply` is every other test's oracle, so it is held against torch's own layers."""
    accepted = Accepted()
    layers = {
        (1, False): torch.nn.Conv1d,
        (2, False): torch.nn.Conv2d,
        (3, False): torch.nn.Conv3d,
        (1, True): torch.nn.ConvTranspose1d,
        (2, True): torch.nn.ConvTranspose2d,
        (3, True): torch.nn.ConvTranspose3d,
    }

    @CASES
    @given(chains(1), st.data())
    def law(drawn: Drawn, data: st.DataObject) -> None:
        shape, (a,) = maps_of(drawn)
        sides = tuple(data.draw(st.integers(0, 2)) for _ in range(a.rank))
        extra = tuple(min(1, s - 1) for s in a.stride)
        pads = tuple((p, p - e if a.transposed else p) for p, e in zip(sides, extra, strict=True))
        a = replace(a, padding=pads)
        layer = layers[a.rank, a.transposed](
            a.in_channels,
            a.out_channels,
            a.kernel,
            a.stride,
            sides,
            dilation=a.dilation,
            groups=a.groups,
            bias=a.bias is not None,
            dtype=torch.float64,
            **({"output_padding": extra} if a.transposed else {"padding_mode": a.mode}),
        )
        with torch.no_grad():
            layer.weight.copy_(a.module_weight())
            if layer.bias is not None and a.bias is not None:
                layer.bias.copy_(a.bias)
            x = inputs_for(shape, a)
            held = accepted(lambda: a)
            assert held is not None
            agree(apply(held, x), layer(x))

    law()
    accepted.at_least(1.0)


def test_gradients_pass() -> None:
    """Folding is differentiable in every weight and bias that it takes."""
    a = Affine(numbers(0, 2, 2, 1, 1, 1), numbers(1, 4), (1, 1), ((0, 0), (0, 0)), (1, 1))
    b = Affine(numbers(2, 1, 2, 4, 3, 2), numbers(3, 2), (2, 1), ((0, 0), (0, 0)), (1, 2))
    c = Affine(numbers(4, 2, 1, 1, 2, 1), numbers(5, 2), (2, 1), ((0, -1), (0, -2)), (1, 1))

    def fold(*tensors: torch.Tensor) -> torch.Tensor:
        first, second, third = (
            replace(m, weight=w, bias=s)
            for m, w, s in zip((a, b, c), tensors[::2], tensors[1::2], strict=True)
        )
        whole = shift(scale(add(compose(first, second), third), numbers(6, 2)), numbers(7, 2))
        joined = select(concat(whole, third), [3, 0])
        return torch.cat([joined.weight.flatten(), joined.bias if joined.bias is not None else numbers(0)])

    tensors = [t.clone().requires_grad_() for m in (a, b, c) for t in (m.weight, m.bias) if t is not None]
    assert torch.autograd.gradcheck(fold, tensors)


@CASES
@given(chains(1), pairs(-2, 3), st.integers(1, 3), st.integers(1, 9))
def test_the_output_size_is_the_one_that_torch_computes(
    drawn: Drawn, pad: tuple[int, int], stride: int, size: int
) -> None:
    shape, (a,) = maps_of(drawn)
    a = replace(a, mode="zeros", stride=(stride,) * a.rank, padding=(pad,) * a.rank)
    expected = a.geometry.output_size([size + 12] * a.rank)
    assert tuple(apply(a, numbers(0, 1, shape.into, *([size + 12] * a.rank))).shape[2:]) == expected
