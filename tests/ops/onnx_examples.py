"""Example calls of every ONNX spelling that the table reads: a spelling without one fails `test_onnx_contract`.

An example is a function of a random generator that returns a node's inputs and attributes. What depends on the network's
input is wrapped in `X`.
"""

import random
from collections.abc import Callable

import torch
from torch import Tensor

from tests.ops.examples import Call, X, call, each, image, t

Example = Callable[[random.Random], Call]


def ints(*numbers: int) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int64)


def window(rng: random.Random, rank: int, kernel: list[int]) -> dict[str, object]:
    """Strides, dilations and padding of a convolution or a pool, given in one of three ways."""
    attributes: dict[str, object] = {"strides": each(rng, rank, 1, 3), "dilations": each(rng, rank, 1, 2)}
    way = rng.choice(["pads", "pads", "SAME_UPPER", "SAME_LOWER", "VALID"])
    if way == "pads":
        attributes["pads"] = [rng.randint(0, max(0, k - 1)) for k in kernel * 2]
    else:
        attributes["auto_pad"] = way
    if rng.random() < 0.3:
        del attributes["strides"]
    return attributes


def conv(rng: random.Random) -> Call:
    rank, groups = rng.randint(1, 3), rng.choice([1, 2, 4])
    kernel = each(rng, rank, 1, 3)
    inputs = [image(rng, 4, rank), t(8, 4 // groups, *kernel)] + ([t(8)] if rng.random() < 0.5 else [])
    return call(*inputs, group=groups, **window(rng, rank, kernel))


def conv_transpose(rng: random.Random) -> Call:
    rank, groups = rng.randint(1, 2), rng.choice([1, 2])
    kernel, strides = each(rng, rank, 2, 3), each(rng, rank, 1, 3)
    attributes: dict[str, object] = {"strides": strides, "group": groups, "dilations": each(rng, rank, 1, 2)}
    attributes["pads"] = [rng.randint(0, k - 1) for k in kernel * 2]
    attributes["output_padding"] = [rng.randint(0, s - 1) for s in strides]
    return call(image(rng, 4, rank), t(4, 6 // groups, *kernel), t(6), **attributes)


def batch_norm(rng: random.Random) -> Call:
    return call(
        image(rng),
        t(4),
        t(4),
        t(4),
        torch.rand(4).double() + 0.5,
        epsilon=rng.choice([2.0**-17, 2.0**-10]),
        momentum=0.5,
    )


def average_pool(rng: random.Random) -> Call:
    rank = rng.randint(1, 2)
    kernel = each(rng, rank, 2, 3)
    pads = [rng.randint(0, 1) for _ in range(2 * rank)]
    attributes: dict[str, object] = {"kernel_shape": kernel, "strides": each(rng, rank, 1, 2), "pads": pads}
    attributes["count_include_pad"] = 1 if any(pads) else rng.randint(0, 1)
    attributes["dilations"] = each(rng, rank, 1, 2)
    return call(image(rng, 4, rank), **attributes)


def gemm(rng: random.Random) -> Call:
    transposed, bias = rng.randint(0, 1), rng.choice([(5,), (1, 5), (1,), ()])
    weight = t(5, 4) if transposed else t(4, 5)
    return call(
        X(t(3, 4)),
        weight,
        t(*bias),
        alpha=rng.choice([1.0, 0.5]),
        beta=rng.choice([1.0, 2.0]),
        transB=transposed,
    )


def matmul(rng: random.Random) -> Call:
    if rng.random() < 0.3:
        return call(t(5, 4), X(t(2, 4, 3)))
    return call(X(rng.choice([t(3, 4), t(2, 3, 4), t(2, 2, 3, 4)])), t(4, 5))


def binary(rng: random.Random) -> Call:
    x = image(rng)
    other = rng.choice([X(t(*x.value.shape)), t(4, 1, 1), t(1), t(), t(1, 4, 1, 1)])
    return call(x, other) if rng.random() < 0.6 else call(other, x)


def product(rng: random.Random) -> Call:
    x, factor = image(rng), rng.choice([t(4, 1, 1), t(1), t(), t(1, 4, 1, 1)])
    return call(x, factor) if rng.random() < 0.6 else call(factor, x)


def division(rng: random.Random) -> Call:
    return call(image(rng), rng.choice([t(4, 1, 1), t(1), t()]).abs() + 0.5)


def sum_of_many(rng: random.Random) -> Call:
    x = image(rng)
    if rng.random() < 0.3:
        return call(t(4, 1, 1), x, t(1))
    return call(x, *(X(t(*x.value.shape)) for _ in range(rng.randint(0, 3))))


def pad(rng: random.Random) -> Call:
    x = image(rng)
    mode = rng.choice(["constant", "constant", "reflect", "edge", "wrap"])
    if rng.random() < 0.5:
        sides = ints(*(rng.randint(0, 2) for _ in range(4)))
        return call(x, sides, t() if mode == "constant" else None, ints(2, -1), mode=mode)
    sides = ints(0, 0, *each(rng, 2, 0, 2), 0, 0, *each(rng, 2, 0, 2))
    return call(x, sides, t(), mode="constant") if mode == "constant" else call(x, sides, mode=mode)


def concat(rng: random.Random) -> Call:
    x = image(rng)
    if rng.random() < 0.4:
        fill, (n, c, h, _) = t(4), x.value.shape
        edge = fill.reshape(1, 4, 1, 1).expand(n, c, h, rng.randint(1, 2))
        return call(edge, x, edge[..., :1], axis=3)
    return call(x, X(t(*x.value.shape)), axis=rng.choice([1, -3]))


def reshape(rng: random.Random) -> Call:
    n, c, h, w = 2, 4, 3, 5
    target = rng.choice([(0, 2, 2, 0, -1), (n, c, h * w), (0, -1), (-1, c, 1, h, w), (n, 2, c // 2, h, w)])
    return call(X(t(n, c, h, w)), ints(*target))


def slices(rng: random.Random) -> Call:
    x = image(rng)
    axis = rng.choice([1, 2, -1])
    start, stop = rng.choice([(0, 2), (1, 2**63 - 1), (1, -1), (-2, 2**63 - 1), (-3, -1), (0, 1000)])
    step = [ints(rng.choice([1, 2]))] if rng.random() < 0.5 else []
    return call(x, ints(start), ints(stop), ints(axis), *step)


def split(rng: random.Random) -> Call:
    x = X(t(2, 7, 3, 4))
    if rng.random() < 0.5:
        return call(x, ints(*rng.choice([(1, 6), (2, 2, 3), (3, 1, 1, 2)])), axis=1)
    return call(x, axis=1, num_outputs=rng.choice([1, 2, 3, 4]))


def scatter(rng: random.Random) -> Call:
    shape = (3, 4, 5, 6)
    axis = rng.choice([0, 2, 3])
    length = rng.randint(1, 2)
    start = rng.choice([0, shape[axis] - length])
    spans = [range(n) if i != axis else range(start, start + length) for i, n in enumerate(shape)]
    depth = axis + 1
    points = torch.cartesian_prod(*(torch.tensor(list(span)) for span in spans[:depth])).reshape(-1, depth)
    lead = [len(span) for span in spans[:depth]]
    return call(X(t(*shape)), points.reshape(*lead, depth), t(*lead, *shape[depth:]))


def transpose(rng: random.Random) -> Call:
    order = list(range(4))
    rng.shuffle(order)
    return call(image(rng), perm=order) if rng.random() < 0.8 else call(image(rng))


EXAMPLES: dict[str, Example] = {
    "onnx.Add": binary,
    "onnx.AveragePool": average_pool,
    "onnx.BatchNormalization": batch_norm,
    "onnx.Cast": lambda rng: call(image(rng), to=11),
    "onnx.CastLike": lambda rng: call(image(rng), t(1)),
    "onnx.Concat": concat,
    "onnx.Conv": conv,
    "onnx.ConvTranspose": conv_transpose,
    "onnx.Div": division,
    "onnx.Dropout": lambda rng: call(image(rng), *([torch.tensor(0.3)] if rng.random() < 0.5 else [])),
    "onnx.Expand": lambda rng: call(X(t(2, 4, 3)), rng.choice([ints(2, 4, 3), ints(1), ints(1, 1, 3)])),
    "onnx.Flatten": lambda rng: call(image(rng), axis=rng.choice([0, 1, 2, -1])),
    "onnx.Gather": lambda rng: call(image(rng), ints(*each(rng, 3, -4, 3)), axis=rng.choice([1, -3])),
    "onnx.Gemm": gemm,
    "onnx.Identity": lambda rng: call(image(rng)),
    "onnx.MatMul": matmul,
    "onnx.Mul": product,
    "onnx.Neg": lambda rng: call(image(rng)),
    "onnx.Pad": pad,
    "onnx.Reshape": reshape,
    "onnx.ScatterND": scatter,
    "onnx.Slice": slices,
    "onnx.Split": split,
    "onnx.SplitToSequence": lambda rng: call(
        X(t(2, 6, 3)), rng.choice([ints(2, 4), torch.tensor(4)]), axis=1
    ),
    "onnx.Squeeze": lambda rng: call(X(t(2, 4, 1, 1)), rng.choice([ints(2), ints(2, -1)])),
    "onnx.Sub": binary,
    "onnx.Sum": sum_of_many,
    "onnx.Transpose": transpose,
    "onnx.Unsqueeze": lambda rng: call(image(rng), rng.choice([ints(0), ints(-1), ints(1, 3)])),
}
