"""Example calls of every ATen spelling that the table reads: a spelling without one fails `test_aten_contract`.

An example is a function of a random generator that returns the call's arguments. What depends on the network's input is wrapped in `X`.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class X:
    """An argument that depends on the network's input."""

    value: Tensor


@dataclass(frozen=True, eq=False)
class Call:
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)


Example = Callable[[random.Random], Call]


def t(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def call(*args: Any, **kwargs: Any) -> Call:
    return Call(args, kwargs)


def image(rng: random.Random, channels: int = 4, rank: int = 2) -> X:
    return X(t(rng.choice([1, 2]), channels, *(rng.randint(7, 9) for _ in range(rank))))


def each(rng: random.Random, rank: int, low: int, high: int) -> list[int]:
    return [rng.randint(low, high) for _ in range(rank)]


def convolution(rng: random.Random) -> Call:
    rank, groups, transposed = rng.randint(1, 3), rng.choice([1, 2]), rng.random() < 0.4
    stride = each(rng, rank, 1, 3)
    extra = [rng.randint(0, s - 1) for s in stride] if transposed else [0] * rank
    shape = (4, 6 // groups) if transposed else (6, 4 // groups)
    bias = rng.choice([None, t(6)])
    weight = t(*shape, *each(rng, rank, 1, 3))
    padding, dilation = each(rng, rank, 0, 2), each(rng, rank, 1, 2)
    return call(image(rng, 4, rank), weight, bias, stride, padding, dilation, transposed, extra, groups)


def plain_convolution(rank: int, padding: str | None = None) -> Example:
    def example(rng: random.Random) -> Call:
        groups = rng.choice([1, 2, 4])
        weight, bias = t(8, 4 // groups, *each(rng, rank, 1, 4)), rng.choice([None, t(8)])
        stride = rng.choice([[1], each(rng, rank, 1, 2)]) if padding is None else each(rng, rank, 1, 1)
        pad = padding or rng.choice([[1], each(rng, rank, 0, 2)])
        return call(image(rng, 4, rank), weight, bias, stride, pad, each(rng, rank, 1, 2), groups)

    return example


def transposed_convolution(rank: int) -> Example:
    def example(rng: random.Random) -> Call:
        groups, stride = rng.choice([1, 2, 4]), each(rng, rank, 1, 3)
        weight, bias = t(4, 8 // groups, *each(rng, rank, 1, 3)), rng.choice([None, t(8)])
        extra = [rng.randint(0, s - 1) for s in stride]
        pads, dilation = each(rng, rank, 0, 2), each(rng, rank, 1, 2)
        return call(image(rng, 4, rank), weight, bias, stride, pads, extra, groups, dilation)

    return example


def norm(*flags: Any) -> Example:
    def example(rng: random.Random) -> Call:
        x = rng.choice([image(rng, 4, rng.randint(1, 3)), X(t(5, 4))])
        affine = rng.choice([(None, None), (t(4), t(4)), (t(4), None)])
        return call(x, *affine, t(4), t(4).abs() + 0.3, *flags, 0.1, rng.choice([1e-5, 1e-3, 0.5]))

    return example


def batch_norm(rng: random.Random) -> Call:
    whole = norm(False)(rng)
    return Call((*whole.args, False))


def average(rank: int) -> Example:
    def example(rng: random.Random) -> Call:
        kernel, x = each(rng, rank, 2, 3), image(rng, 4, rank)
        stride = rng.choice([[], each(rng, rank, 1, 3)])
        padded = rng.random() < 0.5
        args = [
            x,
            kernel,
            stride,
            each(rng, rank, 0, 1) if padded else [0] * rank,
            False,
            padded or rng.random() < 0.5,
        ]
        if rank > 1:
            args.append(rng.choice([None, 5]))
        return call(*args)

    return example


def two(*, alpha: bool = False) -> Example:
    """Value with value, value with constant either way round, value with number."""

    def example(rng: random.Random) -> Call:
        shape = (2, 4, 5, 6)
        constant = rng.choice([t(4, 1, 1), t(1, 4, 1, 1), t(1), t(1, 1)])
        pair = rng.choice(
            [
                (X(t(*shape)), X(t(*shape))),
                (X(t(*shape)), constant),
                (constant, X(t(*shape))),
                (X(t(*shape)), t(6)),
            ]
        )
        return call(*pair, **({"alpha": rng.choice([1, 2, -0.5])} if alpha else {}))

    return example


def in_place(*, alpha: bool = False, constant_only: bool = False) -> Example:
    def example(rng: random.Random) -> Call:
        other = rng.choice([t(4, 1, 1), t(1)] if constant_only else [t(4, 1, 1), X(t(2, 4, 5, 6))])
        return call(X(t(2, 4, 5, 6)), other, **({"alpha": -1.5} if alpha else {}))

    return example


def scaling(rng: random.Random) -> Call:
    x, constant = X(t(2, 4, 5, 6)), rng.choice([t(4, 1, 1), t(1, 4, 1, 1), t(1, 1), t(6)])
    return call(*rng.choice([(x, constant), (constant, x)]))


def scaling_by(rng: random.Random) -> Call:
    return call(X(t(2, 4, 5, 6)), rng.choice([t(4, 1, 1), t(1, 4, 1, 1), t(1, 1), t(6)]))


def with_number(*names: str) -> Example:
    def example(rng: random.Random) -> Call:
        number = rng.choice([-2, 0.75, 3])
        return call(image(rng), number, *(rng.choice([1, 2, -0.5]) for _ in names))

    return example


def only_value(rng: random.Random) -> Call:
    return call(image(rng))


def dropped(rng: random.Random) -> Call:
    return call(image(rng), rng.choice([0.0, 0.3]), False)


def mirrored(rank: int) -> Example:
    return lambda rng: call(image(rng, 3, rank), each(rng, 2 * rank, -1, 3))


def circular(rng: random.Random) -> Call:
    rank = rng.randint(1, 3)
    return call(image(rng, 3, rank), each(rng, 2 * rank, *rng.choice([(-2, 0), (0, 3)])))


def padded(rng: random.Random) -> Call:
    rank = rng.randint(1, 3)
    mode = rng.choice(["constant", "reflect", "replicate", "circular"])
    value = rng.choice([None, 0.5, 2]) if mode == "constant" else None
    return call(image(rng, 3, rank), each(rng, 2 * rank, 0, 3), mode, value)


def cut(rng: random.Random) -> Call:
    start, end = rng.choice([(None, None), (1, None), (0, -1), (-3, None), (1, 3), (0, 2**63 - 1), (-4, -1)])
    return call(image(rng, 6), rng.choice([1, 2, -1]), start, end, rng.choice([1, 2]))


EXAMPLES: dict[str, Example] = {
    "aten.view.default": lambda rng: call(
        X(t(2, 6, 5, 4)), rng.choice([[2, 3, 2, 5, 4], [2, -1, 20], [-1, 4]])
    ),
    "aten._unsafe_view.default": lambda rng: call(
        X(t(2, 6, 5)), rng.choice([[2, 30], [12, 5], [2, 3, 2, 5]])
    ),
    "aten.reshape.default": lambda rng: call(X(t(2, 6, 5, 4)), rng.choice([[2, 3, -1, 5, 4], [2, 6, 20]])),
    "aten.reshape_as.default": lambda rng: call(X(t(2, 6, 5)), X(t(2, 3, 2, 5))),
    "aten.view_as.default": lambda rng: call(X(t(2, 6, 5)), X(t(12, 5))),
    "aten.flatten.using_ints": lambda rng: call(X(t(2, 3, 4, 5)), *rng.choice([(), (1,), (1, 2), (-3, -2)])),
    "aten.unflatten.int": lambda rng: call(
        X(t(2, 6, 5)), rng.choice([1, -2]), rng.choice([[2, 3], [-1, 2], [3, -1]])
    ),
    "aten.unsqueeze.default": lambda rng: call(X(t(2, 6, 5)), rng.choice([0, 1, -1, -2])),
    "aten.squeeze.dim": lambda rng: call(X(t(2, 1, 5, 1)), rng.choice([1, -1, 2])),
    "aten.squeeze.dims": lambda rng: call(X(t(2, 1, 5, 1)), rng.choice([[1], [1, -1], [2, 3]])),
    "aten.squeeze.default": lambda rng: call(X(t(2, 1, 5, 1))),
    "aten.permute.default": lambda rng: call(
        X(t(2, 3, 4, 5)), rng.choice([[0, 2, 3, 1], [3, 0, -3, 2], [0, 1, 3, 2]])
    ),
    "aten.movedim.int": lambda rng: call(X(t(2, 3, 4, 5)), rng.choice([1, -1]), rng.choice([0, 2, -1])),
    "aten.moveaxis.int": lambda rng: call(X(t(2, 3, 4, 5)), rng.choice([1, -1]), rng.choice([0, 2, -1])),
    "aten.transpose.int": lambda rng: call(X(t(2, 3, 4, 5)), rng.choice([1, -3]), rng.choice([2, -1, 0])),
    "aten.swapaxes.default": lambda rng: call(X(t(2, 3, 4, 5)), rng.choice([1, -3]), rng.choice([2, -1, 0])),
    "aten.swapdims.default": lambda rng: call(X(t(2, 3, 4, 5)), rng.choice([1, -3]), rng.choice([2, -1, 0])),
    "aten.t.default": lambda rng: call(X(t(5, 3))),
    "aten.channel_shuffle.default": lambda rng: call(image(rng, 12), rng.choice([1, 2, 3, 6])),
    "aten.native_channel_shuffle.default": lambda rng: call(image(rng, 12), rng.choice([2, 3, 6])),
    **dict.fromkeys(
        ("aten.cat.default", "aten.concat.default", "aten.concatenate.default"),
        lambda rng: call([X(t(2, 4, 5)) for _ in range(rng.randint(1, 3))], rng.choice([0, 1, -1])),
    ),
    "aten.avg_pool1d.default": average(1),
    "aten.avg_pool2d.default": average(2),
    "aten.avg_pool3d.default": average(3),
    "aten.native_batch_norm.default": norm(False),
    "aten._native_batch_norm_legit.default": norm(False),
    "aten._native_batch_norm_legit_no_training.default": norm(),
    "aten.batch_norm.default": batch_norm,
    "aten.convolution.default": convolution,
    "aten.conv1d.default": plain_convolution(1),
    "aten.conv2d.default": plain_convolution(2),
    "aten.conv3d.default": plain_convolution(3),
    "aten.conv1d.padding": plain_convolution(1, "same"),
    "aten.conv2d.padding": plain_convolution(2, "same"),
    "aten.conv3d.padding": lambda rng: plain_convolution(3, rng.choice(["same", "valid"]))(rng),
    "aten.conv_transpose1d.default": transposed_convolution(1),
    "aten.conv_transpose2d.input": transposed_convolution(2),
    "aten.conv_transpose3d.input": transposed_convolution(3),
    "aten.add.Tensor": two(alpha=True),
    "aten.add_.Tensor": in_place(alpha=True),
    "aten.add.Scalar": with_number(),
    "aten.add_.Scalar": with_number(),
    "aten.sub.Tensor": two(alpha=True),
    "aten.sub_.Tensor": in_place(alpha=True),
    "aten.sub.Scalar": with_number(),
    "aten.sub_.Scalar": with_number(),
    "aten.subtract.Tensor": two(alpha=True),
    "aten.subtract_.Tensor": in_place(alpha=True),
    "aten.rsub.Tensor": two(alpha=True),
    "aten.rsub.Scalar": with_number("alpha"),
    "aten.mul.Tensor": scaling,
    "aten.mul_.Tensor": in_place(constant_only=True),
    "aten.mul.Scalar": with_number(),
    "aten.mul_.Scalar": with_number(),
    "aten.multiply.Tensor": scaling,
    "aten.multiply_.Tensor": in_place(constant_only=True),
    "aten.div.Tensor": scaling_by,
    "aten.div_.Tensor": in_place(constant_only=True),
    "aten.div.Scalar": with_number(),
    "aten.div_.Scalar": with_number(),
    "aten.divide.Tensor": scaling_by,
    "aten.divide_.Tensor": in_place(constant_only=True),
    "aten.true_divide.Tensor": scaling_by,
    **dict.fromkeys(
        (
            "aten.neg.default",
            "aten.neg_.default",
            "aten.negative.default",
            "aten.negative_.default",
            "aten.alias.default",
            "aten.detach.default",
            "aten.detach_.default",
            "aten.lift_fresh.default",
            "aten.lift_fresh_copy.default",
            "aten.positive.default",
        ),
        only_value,
    ),
    "aten.clone.default": lambda rng: call(image(rng), memory_format=rng.choice([None, torch.channels_last])),
    "aten.contiguous.default": lambda rng: call(image(rng), memory_format=torch.channels_last),
    "aten.to.dtype": lambda rng: call(image(rng), torch.float64),
    "aten.to.dtype_layout": lambda rng: call(image(rng), dtype=torch.float64),
    "aten._to_copy.default": lambda rng: call(image(rng), dtype=torch.float64),
    "aten.type_as.default": lambda rng: call(image(rng), t(1)),
    "aten.expand.default": lambda rng: call(X(t(2, 3, 4)), rng.choice([[2, 3, 4], [-1, 3, -1]])),
    **dict.fromkeys(
        (
            "aten.dropout.default",
            "aten.dropout_.default",
            "aten.feature_dropout.default",
            "aten.feature_dropout_.default",
            "aten.alpha_dropout.default",
            "aten.feature_alpha_dropout.default",
            "aten.native_dropout.default",
        ),
        dropped,
    ),
    "aten.linear.default": lambda rng: call(
        X(t(*rng.choice([(3, 4), (2, 5, 4)]))), t(6, 4), rng.choice([None, t(6)])
    ),
    "aten.addmm.default": lambda rng: call(
        rng.choice([t(6), t(1)]), X(t(3, 4)), t(4, 6), beta=0.5, alpha=rng.choice([1, -2])
    ),
    "aten.mm.default": lambda rng: call(X(t(3, 4)), t(4, 6)),
    "aten.matmul.default": lambda rng: call(X(t(*rng.choice([(3, 4), (2, 5, 4)]))), t(4, 6)),
    "aten.constant_pad_nd.default": lambda rng: call(
        image(rng), each(rng, 4, -2, 3), rng.choice([0, 0.5, -1])
    ),
    "aten.pad.default": padded,
    "aten.reflection_pad1d.default": mirrored(1),
    "aten.reflection_pad2d.default": mirrored(2),
    "aten.reflection_pad3d.default": mirrored(3),
    "aten.replication_pad1d.default": mirrored(1),
    "aten.replication_pad2d.default": mirrored(2),
    "aten.replication_pad3d.default": mirrored(3),
    "aten._pad_circular.default": circular,
    "aten.slice.Tensor": cut,
    "aten.narrow.default": lambda rng: call(image(rng, 6), rng.choice([1, -1]), rng.choice([0, 2, -3]), 3),
    "aten.split.Tensor": lambda rng: call(image(rng, 6), rng.choice([1, 2, 4, 6]), 1),
    "aten.unsafe_split.Tensor": lambda rng: call(image(rng, 6), rng.choice([2, 4]), rng.choice([1, -3])),
    "aten.split_with_sizes.default": lambda rng: call(image(rng, 6), [1, 2, 3], 1),
    "aten.split.sizes": lambda rng: call(
        image(rng, 6), rng.choice([[6], [2, 4], [1, 2, 3]]), rng.choice([1, -3])
    ),
    "aten.unsafe_split_with_sizes.default": lambda rng: call(image(rng, 6), [2, 4], 1),
    "aten.chunk.default": lambda rng: call(image(rng, 7), rng.choice([1, 2, 3, 5, 9]), rng.choice([1, -3])),
    "aten.unsafe_chunk.default": lambda rng: call(image(rng, 7), rng.choice([2, 3, 5]), 1),
    "aten.tensor_split.sections": lambda rng: call(image(rng, 7), rng.choice([2, 3, 5]), 1),
    "aten.index_select.default": lambda rng: call(
        image(rng, 6), rng.choice([1, -1]), torch.tensor([3, 0, 0, 5])
    ),
    "aten.index.Tensor": lambda rng: call(
        image(rng, 4), [None, rng.choice([torch.tensor([3, -1, 0]), torch.tensor([True, False, True, True])])]
    ),
    "aten.slice_scatter.default": lambda rng: call(
        X(t(2, 4, 6, 5)),
        t(*rng.choice([(2, 4, 2, 5)])),
        2,
        *rng.choice([(0, 2), (-2, None), (1, 3), (-3, -1)]),
    ),
    "aten.select_scatter.default": lambda rng: call(X(t(2, 4, 6)), t(2, 4), 2, rng.choice([0, 5, -1, -6])),
}

UNRUN = {
    "aten.cudnn_batch_norm.default": norm(False),
    "aten.miopen_batch_norm.default": norm(False),
}
"""Ops of other devices, whose calls are read but not run here: they are held against `batch_norm` instead."""
