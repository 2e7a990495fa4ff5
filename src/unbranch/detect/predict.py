"""From pictures to boxes: decode, letterbox, network, suppression, each off the others' way."""

import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby, islice
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np
import supervision as sv
import torch
from PIL import Image
from torch import Tensor

from unbranch.detect.engines import Engine, open_engine
from unbranch.detect.errors import InputError
from unbranch.detect.letterbox import Letterbox, fill, network_input, place
from unbranch.detect.nms import USUAL, Limits, suppress, suppress_scores
from unbranch.detect.sources import (
    PictureFile,
    Pixels,
    Source,
    VideoFile,
    VideoFrame,
    find,
    frames,
    read_picture,
)
from unbranch.models.yolo import YOLO

Picture: TypeAlias = str | os.PathLike[str] | np.ndarray | Image.Image
Item: TypeAlias = PictureFile | VideoFile | VideoFrame
T = TypeVar("T")

STEPS: tuple[str, ...] = ("read", "letterbox", "network", "boxes")


@dataclass(frozen=True)
class Result:
    """One picture or frame with what was found on it; `seconds` for each of `STEPS`.

    `problem` says, in a line, why there is nothing: the picture could not be read.
    """

    item: Item
    detections: sv.Detections
    pixels: Pixels | None = field(repr=False)
    seconds: dict[str, float]
    problem: str | None = None


@dataclass(frozen=True)
class _Loaded:
    item: Item
    pixels: Pixels | None = None
    box: Letterbox | None = None
    planes: np.ndarray | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    problem: str | None = None


class Detector:
    """Finds objects: `Detector("best.safetensors")(images)` gives supervision Detections.

    weights: a `YOLO`, a `.safetensors` of ours, an `.onnx` file, or OpenVINO's `.xml` or its folder.
    Weights in training form are folded on loading; `notes` say so. size: the longer side of the network's
    input, in pixels (fixed by files with a fixed input). rectangular: pad to the stride only, where the file
    allows it; otherwise to a square.

    Raises `InputError` for weights and settings that cannot be used.

    >>> Detector("best.safetensors")("bus.jpg").xyxy.shape  # doctest: +SKIP
    (5, 4)
    """

    def __init__(
        self,
        weights: YOLO[Any] | str | os.PathLike[str],
        size: int = 640,
        limits: Limits = USUAL,
        rectangular: bool = True,
        device: str = "cpu",
    ) -> None:
        self.engine: Engine = open_engine(weights, device)
        signature = self.engine.signature
        if size < 1 or size % signature.stride:
            nearest = max(round(size / signature.stride), 1) * signature.stride
            raise InputError(
                f"size {size}: the network needs a multiple of {signature.stride}, such as {nearest}"
            )
        beyond = [c for c in limits.classes or () if not 0 <= c < len(signature.names)]
        if beyond:
            raise InputError(f"class {beyond[0]}: the network knows classes 0 to {len(signature.names) - 1}")
        self.size = signature.size or (size, size)
        self.rectangular = rectangular and signature.size is None
        self.limits = limits

    @property
    def names(self) -> tuple[str, ...]:
        """The classes' names, in the order of their indices."""
        return self.engine.signature.names

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines about what was done to the weights on loading."""
        return self.engine.notes

    def __call__(self, images: Picture | Sequence[Picture]) -> sv.Detections | list[sv.Detections]:
        """The objects on one picture, or a list of them for a list of pictures, boxes in the picture's own
        pixels.

        A picture is a path, an (H, W, 3) array of 8 bits as OpenCV has it (blue, green, red), or a PIL image.
        Raises `InputError` for what is none of these.
        """
        single = isinstance(images, str | os.PathLike | np.ndarray | Image.Image)
        pictures = (
            [images] if isinstance(images, str | os.PathLike | np.ndarray | Image.Image) else list(images)
        )
        boxes = self.boxes([_pixels(picture, i) for i, picture in enumerate(pictures)])
        found = [self.as_detections(rows) for rows in boxes]
        return found[0] if single else found

    def boxes(self, pictures: Sequence[Pixels]) -> list[Tensor]:
        """Rows of x1, y1, x2, y2 (pixels of the picture), score, class, best first, for each (H, W, 3)
        array.
        """
        places = [self.place(picture) for picture in pictures]
        planes = [network_input(fill(picture, box)) for picture, box in zip(pictures, places, strict=True)]
        return self._find(self.engine, planes, places)[0]

    def stream(
        self, source: Source | Sequence[Source], batch: int = 1, workers: int | None = None
    ) -> Iterator[Result]:
        """Every picture and frame of `source`, in order, as results become ready.

        Pictures are decoded and letterboxed by threads of their own, ahead of the network; a file runs in as
        many copies as there are `workers` (the cores, by default), each on one core. A picture that cannot be
        read gives a result with a `problem`. Raises `InputError` at once where nothing is found.
        """
        items = find(source)
        count = max(workers or len(os.sched_getaffinity(0)), 1)
        if batch < 1:
            raise InputError(f"batch {batch}: at least one picture")
        return self._stream(items, batch, count)

    def _stream(self, items: list[PictureFile | VideoFile], batch: int, count: int) -> Iterator[Result]:
        engine = self.engine.spread(count)
        runners = 1 if engine is self.engine else count
        waiting: deque[Future[list[Result]]] = deque()
        with ThreadPoolExecutor(count, "read") as readers, ThreadPoolExecutor(runners, "run") as runner:
            try:
                for group in _batched(_opened(items), batch):
                    loaded = [readers.submit(self._load, entry) for entry in group]
                    waiting.append(runner.submit(self._run, engine, loaded))
                    if len(waiting) > 2 * count:
                        yield from waiting.popleft().result()
                while waiting:
                    yield from waiting.popleft().result()
            finally:
                for pool in (runner, readers):
                    pool.shutdown(wait=False, cancel_futures=True)

    def place(self, picture: Pixels) -> Letterbox:
        """Where a picture lies in the network's input."""
        height, width = picture.shape[:2]
        return place(height, width, self.size, self.engine.signature.stride, self.rectangular)

    def _load(self, entry: PictureFile | VideoFrame | _Loaded) -> _Loaded:
        if isinstance(entry, _Loaded):
            return entry
        started = time.perf_counter()
        try:
            pixels = entry.read()
        except InputError as error:
            return _Loaded(entry, problem=str(error))
        read = time.perf_counter()
        box = self.place(pixels)
        planes = network_input(fill(pixels, box))
        return _Loaded(
            entry, pixels, box, planes, {"read": read - started, "letterbox": time.perf_counter() - read}
        )

    def _run(self, engine: Engine, waiting: list[Future[_Loaded]]) -> list[Result]:
        loaded = [future.result() for future in waiting]
        sound = [one for one in loaded if one.planes is not None and one.box is not None]
        rows, seconds = self._find(engine, [one.planes for one in sound], [one.box for one in sound])  # pyright: ignore[reportArgumentType]
        found = {id(one): boxes for one, boxes in zip(sound, rows, strict=True)}
        nothing = torch.empty(0, 6)
        return [
            Result(
                one.item,
                self.as_detections(found.get(id(one), nothing)),
                one.pixels,
                {**one.seconds, **seconds} if one.planes is not None else {},
                one.problem,
            )
            for one in loaded
        ]

    def _find(
        self, engine: Engine, planes: list[np.ndarray], places: list[Letterbox]
    ) -> tuple[list[Tensor], dict[str, float]]:
        """The boxes of each letterboxed picture, and the seconds a picture took; pictures of one shape run
        together.
        """
        rows: list[Tensor] = [torch.empty(0, 6)] * len(planes)
        network = boxes = 0.0
        order = sorted(range(len(planes)), key=lambda i: planes[i].shape)
        for _, group in groupby(order, key=lambda i: planes[i].shape):
            for indices in _chunks(list(group), engine.signature.batch):
                started = time.perf_counter()
                output = _padded_run(engine, [planes[i] for i in indices])
                ran = time.perf_counter()
                for i, found in zip(indices, self._standing(engine, output, len(indices)), strict=True):
                    rows[i] = torch.cat((places[i].to_picture(found[:, :4]), found[:, 4:]), dim=1)
                network += ran - started
                boxes += time.perf_counter() - ran
        share = max(len(planes), 1)
        return rows, {"network": network / share, "boxes": boxes / share}

    def _standing(self, engine: Engine, output: Tensor, count: int) -> list[Tensor]:
        if engine.signature.output == "predictions":
            return suppress(output[:count], self.limits)
        if engine.signature.output == "scores":
            return suppress_scores(output[:count], self.limits)
        return [self._kept(output[output[:, 0] == picture, 1:]) for picture in range(count)]

    def _kept(self, rows: Tensor) -> Tensor:
        """Of boxes that the file itself suppressed: those that our limits allow."""
        rows = rows[rows[:, 4] > self.limits.confidence]
        if self.limits.classes is not None:
            rows = rows[torch.isin(rows[:, 5], torch.tensor(self.limits.classes, dtype=rows.dtype))]
        return rows[: self.limits.most]

    def as_detections(self, rows: Tensor) -> sv.Detections:
        """Rows of x1, y1, x2, y2, score, class as supervision Detections, class names in their data."""
        table = rows.numpy()
        classes = table[:, 5].astype(int)
        return sv.Detections(
            xyxy=table[:, :4].astype(np.float32),
            confidence=table[:, 4].astype(np.float32),
            class_id=classes,
            data={"class_name": np.array(self.names, dtype=str)[classes]},
        )


def _pixels(picture: Picture, index: int) -> Pixels:
    if isinstance(picture, str | os.PathLike):
        return read_picture(Path(picture))
    if isinstance(picture, Image.Image):
        return np.ascontiguousarray(np.asarray(picture.convert("RGB"))[..., ::-1])
    if (
        not isinstance(picture, np.ndarray)
        or picture.ndim != 3
        or picture.shape[2] != 3
        or picture.dtype != np.uint8
    ):
        kind = (
            f"{picture.dtype} array of shape {picture.shape}"
            if isinstance(picture, np.ndarray)
            else type(picture).__name__
        )
        raise InputError(
            f"picture {index}: a {kind}; a path, an (H, W, 3) array of uint8 or a PIL image is needed"
        )
    if not picture.size:
        raise InputError(f"picture {index}: an array of shape {picture.shape} has no pixels")
    return picture


def _opened(items: Sequence[PictureFile | VideoFile]) -> Iterator[PictureFile | VideoFrame | _Loaded]:
    """Pictures as they are, videos frame by frame; a video's problem stands where its frames end."""
    for item in items:
        if isinstance(item, PictureFile):
            yield item
            continue
        try:
            yield from frames(item)
        except InputError as error:
            yield _Loaded(item, problem=str(error))


def _batched(entries: Iterator[T], count: int) -> Iterator[list[T]]:
    while group := list(islice(entries, count)):
        yield group


def _chunks(indices: list[int], fixed: int | None) -> Iterator[list[int]]:
    """Runs of at most as many as a file with a fixed batch takes."""
    step = fixed or max(len(indices), 1)
    for start in range(0, len(indices), step):
        yield indices[start : start + step]


def _padded_run(engine: Engine, planes: list[np.ndarray]) -> Tensor:
    """Run the pictures together; a fixed batch is filled up by repeating the last one, which nobody looks
    at.
    """
    missing = (engine.signature.batch or len(planes)) - len(planes)
    filled = [*planes, *planes[-1:] * missing]
    return engine.run(filled[0][None] if len(filled) == 1 else np.stack(filled))
