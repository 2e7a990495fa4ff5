"""Borders and lattices case by case, with the sizes of the errors that a wrong rule would make; the laws draw the rest."""

import pytest
import torch

from tests.support import fold_error
from unbranch.affine import Affine, NotLinear, add, apply, compose, concat, select
from unbranch.affine.geometry import Geometry


def t(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64)


def conv(
    out: int, into: int, *kernel: int, pad: int = 0, bias: bool = False, stride: int = 1, mode: str = "zeros"
) -> Affine:
    rank = len(kernel)
    weight, b = t(1, out, into, *kernel), t(out) if bias else None
    return Affine(weight, b, (stride,) * rank, ((pad, pad),) * rank, (1,) * rank, mode)


def test_a_bias_before_a_padded_kernel_is_the_trap() -> None:
    """Inside, the naive composition is right; at the border it is off by the bias that the padding does not have."""
    first, second = conv(8, 4, 1, 1, bias=True), conv(4, 8, 3, 3, pad=1)
    with pytest.raises(NotLinear, match="after a bias"):
        compose(first, second)
    bare = Affine(first.weight, None, first.stride, first.padding, first.dilation)
    naive = compose(bare, second)
    x = t(1, 4, 9, 9)
    gap = (apply(second, apply(first, x)) - apply(naive, x)).abs()
    assert float((gap - gap[..., 4:5, 4:5]).abs()[..., 1:-1, 1:-1].max()) < 1e-10
    assert float((gap - gap[..., 4:5, 4:5]).abs().max()) > 0.1


@pytest.mark.parametrize("stride", [1, 2])
def test_a_bare_pointwise_map_before_a_padded_kernel_composes(stride: int) -> None:
    first, second = conv(8, 4, 1, 1, stride=stride), conv(4, 8, 3, 3, pad=1, stride=2)
    for size in (9, 10, 11, 12):
        x = t(1, 4, size, size)
        both = compose(first, second)
        assert fold_error(apply(both, x), apply(second, apply(first, x))) <= 1e-12


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        (conv(4, 4, 3, 3), conv(4, 4, 3, 3, pad=1), "would compute a value"),
        (conv(4, 4, 3, 3, pad=1), conv(4, 4, 3, 3, pad=1), "would compute a value"),
        (conv(4, 4, 1, 1, pad=1, mode="reflect"), conv(4, 4, 3, 3, pad=1), "with padding"),
        (conv(4, 4, 1, 1, pad=-1), conv(4, 4, 3, 3, pad=1), "with padding"),
        (conv(4, 4, 3, 3), conv(4, 4, 3, 3, pad=1, mode="reflect"), "not pointwise"),
        (conv(4, 4, 1, 1, stride=2), conv(4, 4, 3, 3, pad=1, mode="circular"), "not pointwise"),
    ],
)
def test_borders_that_do_not_compose(first: Affine, second: Affine, reason: str) -> None:
    with pytest.raises(NotLinear, match=reason):
        compose(first, second)


def test_circular_padding_of_a_cropped_end_is_refused() -> None:
    """Torch crops before it wraps, a chain after: the entries that come round are others."""
    first = Affine(t(1, 4, 4, 1), None, (1,), ((0, 2),), (1,), "circular")
    crop = Affine(t(1, 4, 4, 1), None, (1,), ((-1, 0),), (1,))
    with pytest.raises(NotLinear, match="wraps around a cropped end"):
        compose(first, crop)
    with pytest.raises(NotLinear, match="wraps around a cropped end"):
        Affine(t(1, 4, 4, 1), None, (1,), ((-1, 2),), (1,), "circular")


def test_even_kernels_align_by_where_they_sample() -> None:
    wide = Affine(t(1, 4, 4, 4), None, (1,), ((1, 2),), (1,))
    narrow = Affine(t(1, 4, 4, 2), None, (1,), ((0, 1),), (1,))
    left = Affine(t(1, 4, 4, 2), None, (1,), ((1, 0),), (1,))
    x = t(2, 4, 9)
    for part in (narrow, left):
        both = add(wide, part)
        assert both.kernel == (4,)
        assert fold_error(apply(both, x), apply(wide, x) + apply(part, x)) <= 1e-12


def test_dilations_meet_on_the_coarsest_lattice_that_holds_both() -> None:
    two = Affine(t(1, 4, 4, 3), None, (1,), ((2, 2),), (2,))
    four = Affine(t(1, 4, 4, 3), None, (1,), ((4, 4),), (4,))
    three = Affine(t(1, 4, 4, 3), None, (1,), ((3, 3),), (3,))
    assert (add(two, two).kernel, add(two, two).dilation) == ((3,), (2,))
    assert (add(two, four).kernel, add(two, four).dilation) == ((5,), (2,))
    assert (add(two, three).kernel, add(two, three).dilation) == ((7,), (1,))
    x = t(2, 4, 13)
    for a, b in ((two, four), (two, three), (four, three)):
        assert fold_error(apply(add(a, b), x), apply(a, x) + apply(b, x)) <= 1e-12


@pytest.mark.parametrize(
    ("a", "b", "reason"),
    [
        (conv(4, 4, 3, pad=1), conv(4, 4, 3, pad=1, stride=2), "strides differ"),
        (conv(4, 4, 3, pad=1), conv(4, 4, 3), "output sizes differ"),
        (conv(4, 4, 3, pad=1, mode="reflect"), conv(4, 4, 3, pad=1), "different padding modes"),
        (conv(4, 4, 3, pad=1), conv(1, 4, 3, pad=1), "broadcasts"),
    ],
)
def test_sums_that_are_no_convolution(a: Affine, b: Affine, reason: str) -> None:
    with pytest.raises(NotLinear, match=reason):
        add(a, b)


def test_a_branch_that_never_reads_the_border_adds_to_any_mode() -> None:
    big, small = conv(4, 4, 3, pad=1, mode="reflect"), conv(4, 4, 1)
    x = t(2, 4, 9)
    both = add(small, big)
    assert both.mode == "reflect"
    assert fold_error(apply(both, x), apply(big, x) + apply(small, x)) <= 1e-12


def test_an_identity_in_a_grouped_sum_sits_on_each_groups_diagonal() -> None:
    grouped = Affine(t(3, 2, 2, 3), None, (1,), ((1, 1),), (1,))
    both = add(grouped, Affine.identity(6, 1))
    assert both.groups == 3
    x = t(2, 6, 9)
    assert fold_error(apply(both, x), apply(grouped, x) + x) <= 1e-12


def test_what_does_not_fit_is_an_error_and_no_refusal() -> None:
    for make in (
        lambda: compose(conv(4, 4, 3), conv(4, 8, 3)),
        lambda: compose(conv(4, 4, 3), conv(4, 4, 3, 3)),
        lambda: add(conv(4, 4, 3), conv(4, 8, 3)),
        lambda: select(conv(4, 4, 3), [4]),
        lambda: Affine(t(1, 4, 4, 3), t(5), (1,), ((0, 0),), (1,)),
        lambda: Affine(t(1, 4, 4, 3), None, (1, 1), ((0, 0),), (1,)),
        lambda: Affine(t(1, 4, 4, 3), None, (1,), ((0, 0),), (1,), "mirror"),
        lambda: Affine(t(1, 4, 4, 3, 3, 3, 3), None, (1,) * 4, ((0, 0),) * 4, (1,) * 4),
    ):
        with pytest.raises(ValueError, match=r".") as caught:
            make()
        assert not isinstance(caught.value, NotLinear)


def test_transposed_weights_keep_their_groups() -> None:
    """A grouped transposed layer's weight is (in, out / groups): scaling its outputs must not go along its first axis."""
    layer = torch.nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, groups=2, bias=False, dtype=torch.float64)
    weight = layer.weight.detach().unflatten(0, (2, -1)).transpose(1, 2)
    turned = Affine(weight, None, (2, 2), ((1, 0), (1, 0)), (1, 1), transposed=True)
    x, by = t(2, 4, 5, 7), t(6)
    assert fold_error(apply(turned, x), layer(x)) <= 1e-12
    scaled = compose(turned, Affine.diagonal(by, None, 2))
    assert tuple(scaled.module_weight().shape) == (4, 3, 3, 3)
    assert fold_error(apply(scaled, x), layer(x) * by.reshape(-1, 1, 1)) <= 1e-12
    joined = concat(turned, turned)
    assert fold_error(apply(joined, x), torch.cat([layer(x)] * 2, 1)) <= 1e-12


def test_a_geometry_says_itself() -> None:
    shape = Geometry(64, 128, 4, (3, 5), (2, 2), ((1, 1), (2, 2)), (2, 2), "reflect")
    assert str(shape) == "conv 3x5 64->128 /2 groups 4 dilation 2 reflect"
    assert str(Affine.pointwise(t(1, 3, 5), rank=0).geometry) == "linear 5->3"
