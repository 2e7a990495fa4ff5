"""`--input-size`, and the example inputs that it stands for."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from unbranch.deploy.said import first_line
from unbranch.detect.errors import InputError
from unbranch.fold.verify import RUN_ERRORS
from unbranch.frontends.modules.inputs import guesses

SEED = 20_240_229


def examples(model: nn.Module, sizes: Sequence[str] | None, batch: int | None = None) -> tuple[Tensor, ...]:
    """Seeded normal draws that the model takes: one tensor per `sizes`, or a guess of one where there are none.

    A size is `224`, `HxW`, `CxHxW` or a whole shape `NxCxHxW`; what it leaves out is the guess's.
    Raises `InputError` where the model does not run on it.
    """
    guessed = list(guesses(model))
    if sizes:
        shapes = [shape(text, guessed[0].shape if guessed else None) for text in sizes]
        try:
            tensors = tuple(_draw(_batched(one, batch), _dtype(guessed), model) for one in shapes)
        except RuntimeError as error:  # more than there is memory for
            raise InputError(
                f"--input-size {' '.join(sizes)}: cannot be made: {first_line(error)}"
            ) from error
        why = _why_not(model, tensors)
        if why:
            raise InputError(f"--input-size {' '.join(sizes)}: the model does not take it: {why}")
        return tensors
    tried = []
    for guess in guessed:
        tensors = (_draw(_batched(tuple(guess.shape), batch), guess.dtype, model),)
        why = _why_not(model, tensors)
        if not why:
            return tensors
        tried.append(f"{'x'.join(map(str, guess.shape))}: {why}")
    raise InputError(
        f"no input that the model takes could be guessed ({'; '.join(tried)}): give --input-size"
    )


def shape(text: str, base: Sequence[int] | None) -> tuple[int, ...]:
    """The shape that a size means; what it leaves out is that of `base`.

    Example:
        >>> shape("64", (1, 3, 224, 224)), shape("4x20x30", (1, 3, 224, 224))
        ((1, 3, 64, 64), (1, 4, 20, 30))
    """
    parts = text.lower().replace(",", "x").split("x")
    if not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise InputError(f"--input-size {text}: write 224, 224x320, 3x224x224 or 1x3x224x224")
    given = tuple(int(part) for part in parts)
    if base is None or len(given) >= len(base):
        return given
    if len(given) == 1 and len(base) > 2:
        given = given * (len(base) - 2)
    return (*base[: len(base) - len(given)], *given)


def _batched(shape: tuple[int, ...], batch: int | None) -> tuple[int, ...]:
    return shape if batch is None else (batch, *shape[1:])


def _dtype(guessed: Sequence[Tensor]) -> torch.dtype:
    return guessed[0].dtype if guessed else torch.float32


def _draw(shape: tuple[int, ...], dtype: torch.dtype, model: nn.Module) -> Tensor:
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    generator = torch.Generator().manual_seed(SEED)
    return torch.randn(shape, generator=generator).to(device, dtype)


def _why_not(model: nn.Module, tensors: Sequence[Tensor]) -> str | None:
    try:
        with torch.no_grad():
            model(*tensors)
    except RUN_ERRORS as error:
        return first_line(error)
    return None
