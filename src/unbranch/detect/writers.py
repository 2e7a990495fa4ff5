"""What is kept of a run: annotated pictures and videos, YOLO text, COCO JSON, CSV. Drawn and encoded by
threads of their own.
"""

import csv
import json
import os
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeAlias

import cv2
import numpy as np
import supervision as sv

from unbranch.detect.errors import InputError
from unbranch.detect.files import replacing
from unbranch.detect.predict import Result
from unbranch.detect.sources import Pixels, VideoFrame

Kind: TypeAlias = Literal["pictures", "txt", "coco", "csv"]
KINDS: tuple[Kind, ...] = ("pictures", "txt", "coco", "csv")

LIGHT = 140
CSV_COLUMNS = ("picture", "frame", "class", "name", "score", "x1", "y1", "x2", "y2")


@dataclass(frozen=True)
class Box:
    """One object: class index and name, score, corners in pixels."""

    index: int
    name: str
    score: float
    corners: tuple[float, float, float, float]


def boxes_of(detections: sv.Detections) -> list[Box]:
    """The rows of supervision Detections as plain values, best first as they come."""
    if detections.class_id is None or detections.confidence is None:
        raise ValueError("detections without classes and scores")
    rows = zip(
        detections.class_id.tolist(),
        detections.data["class_name"],
        detections.confidence.tolist(),
        detections.xyxy.tolist(),
        strict=True,
    )
    return [Box(index, str(name), score, (x1, y1, x2, y2)) for index, name, score, (x1, y1, x2, y2) in rows]


def _readable_on(colour: sv.Color) -> sv.Color:
    """Black on light colours, white on dark ones (luma of Rec. 601)."""
    luma = 0.299 * colour.r + 0.587 * colour.g + 0.114 * colour.b
    return sv.Color.BLACK if luma > LIGHT else sv.Color.WHITE


_READABLE = sv.ColorPalette([_readable_on(colour) for colour in sv.ColorPalette.DEFAULT.colors])


def draw(pixels: Pixels, detections: sv.Detections) -> Pixels:
    """A copy of the picture with its boxes, each with its class and score.

    >>> draw(pixels, detector(pixels)).shape == pixels.shape  # doctest: +SKIP
    True
    """
    size = (pixels.shape[1], pixels.shape[0])
    thickness = sv.calculate_optimal_line_thickness(size)
    text = sv.calculate_optimal_text_scale(size)
    labels = [f"{box.name} {box.score:.2f}" for box in boxes_of(detections)]
    scene: Any = sv.BoxAnnotator(thickness=thickness).annotate(np.array(pixels), detections)  # pyright: ignore[reportArgumentType]
    annotator = sv.LabelAnnotator(
        text_color=_READABLE, text_scale=text, text_thickness=max(thickness // 2, 1), text_padding=4
    )
    return np.asarray(annotator.annotate(scene, detections, labels))


class Writers:
    """Takes results in order and writes what was asked for below `folder`; a `with` block finishes the files.

    pictures: `NAME` with boxes drawn (videos as .mp4). txt: `labels/NAME.txt`, a line `class x y w h score`
    for each box, centre and size as fractions of the picture. coco: `detections.json`. csv: `detections.csv`,
    corners in pixels. An interrupted run keeps what it has found. Raises `InputError` where something cannot
    be written.
    """

    def __init__(self, folder: Path, names: Sequence[str], kinds: Iterable[Kind]) -> None:
        self.folder = folder
        self.names = tuple(names)
        self.kinds = frozenset(kinds)
        threads = len(os.sched_getaffinity(0))
        self._pictures = ThreadPoolExecutor(threads, "draw")
        self._video = ThreadPoolExecutor(1, "video")
        self._waiting: deque[Future[None]] = deque()
        self._most_waiting = 4 * threads
        self._open_video: _VideoSink | None = None
        self._labels: dict[Path, str] = {}
        self._rows: list[tuple[Any, ...]] = []
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def write(self, result: Result) -> None:
        """Take one result; a picture that could not be read leaves nothing."""
        if result.pixels is None:
            return
        boxes = boxes_of(result.detections)
        frame = result.item.index if isinstance(result.item, VideoFrame) else None
        height, width = result.pixels.shape[:2]
        if "pictures" in self.kinds:
            self._draw(result)
        if "txt" in self.kinds:
            self._text(result.item.name, frame, boxes, width, height)
        if "coco" in self.kinds:
            self._coco(result.item.name, frame, boxes, width, height)
        if "csv" in self.kinds:
            shown = "" if frame is None else frame
            self._rows += [
                (
                    result.item.name,
                    shown,
                    box.index,
                    box.name,
                    f"{box.score:.6f}",
                    *(f"{c:.3f}" for c in box.corners),
                )
                for box in boxes
            ]

    def close(self) -> None:
        """Finish every file; files of a whole run (JSON, CSV, videos) get their names only here."""
        with ExitStack() as finishing:
            finishing.callback(self._pictures.shutdown)
            finishing.callback(self._video.shutdown)
            if "csv" in self.kinds:
                finishing.callback(self._write_csv)
            if "coco" in self.kinds:
                finishing.callback(self._write_coco)
            if self._open_video is not None:
                finishing.callback(self._open_video.close)
            while self._waiting:
                self._waiting.popleft().result()

    def _draw(self, result: Result) -> None:
        if isinstance(result.item, VideoFrame):
            video = self._sink(result.item, result.item.pixels)
            self._waiting.append(self._video.submit(video.add, result.item.pixels, result.detections))
        elif result.pixels is not None:
            target = self.folder / result.item.name
            self._waiting.append(
                self._pictures.submit(_draw_picture, target, result.pixels, result.detections)
            )
        while len(self._waiting) > self._most_waiting:
            self._waiting.popleft().result()

    def _sink(self, frame: VideoFrame, pixels: Pixels) -> "_VideoSink":
        target = self.folder / Path(frame.name).with_suffix(".mp4")
        if self._open_video is None or self._open_video.target != target:
            if self._open_video is not None:
                self._waiting.append(self._video.submit(self._open_video.close))
            self._open_video = _VideoSink(target, frame.rate, (pixels.shape[1], pixels.shape[0]))
        return self._open_video

    def _text(self, name: str, frame: int | None, boxes: list[Box], width: int, height: int) -> None:
        lines = []
        for box in boxes:
            x1, y1, x2, y2 = box.corners
            values = (
                (x1 + x2) / 2 / width,
                (y1 + y2) / 2 / height,
                (x2 - x1) / width,
                (y2 - y1) / height,
                box.score,
            )
            lines.append(" ".join((str(box.index), *(f"{value:.6f}" for value in values))))
        with replacing(self._label_file(name, frame)) as part:
            part.write_text("".join(f"{line}\n" for line in lines))

    def _label_file(self, name: str, frame: int | None) -> Path:
        """`bus.jpg` → `labels/bus.txt`; where `bus.png` has that name already, `labels/bus.jpg.txt`."""
        file = self.folder / "labels" / Path(name).with_suffix(".txt")
        if self._labels.setdefault(file, name) != name:
            file = file.with_name(f"{Path(name).name}.txt")
        return file if frame is None else file.with_stem(f"{file.stem}_{frame}")

    def _coco(self, name: str, frame: int | None, boxes: list[Box], width: int, height: int) -> None:
        image = {"id": len(self._images) + 1, "file_name": name, "width": width, "height": height}
        self._images.append(image if frame is None else {**image, "frame": frame})
        for box in boxes:
            x1, y1, x2, y2 = box.corners
            self._annotations.append(
                {
                    "id": len(self._annotations) + 1,
                    "image_id": image["id"],
                    "category_id": box.index + 1,
                    "bbox": [round(value, 3) for value in (x1, y1, x2 - x1, y2 - y1)],
                    "area": round((x2 - x1) * (y2 - y1), 3),
                    "score": round(box.score, 6),
                    "iscrowd": 0,
                }
            )

    def _write_coco(self) -> None:
        categories = [{"id": index + 1, "name": name} for index, name in enumerate(self.names)]
        whole = {"images": self._images, "annotations": self._annotations, "categories": categories}
        with replacing(self.folder / "detections.json") as part:
            part.write_text(json.dumps(whole))

    def _write_csv(self) -> None:
        with replacing(self.folder / "detections.csv") as part, part.open("w", newline="") as stream:
            table = csv.writer(stream)
            table.writerow(CSV_COLUMNS)
            table.writerows(self._rows)


class _VideoSink:
    """An .mp4 that grows under another name and gets its own when it is closed."""

    def __init__(self, target: Path, rate: float, size: tuple[int, int]) -> None:
        self.target = target
        self.rate = rate
        self.size = size
        self.stack = ExitStack()
        self.stream: cv2.VideoWriter | None = None

    def add(self, pixels: Pixels, detections: sv.Detections) -> None:
        if self.stream is None:
            part = self.stack.enter_context(replacing(self.target))
            self.stream = cv2.VideoWriter(str(part), cv2.VideoWriter.fourcc(*"mp4v"), self.rate, self.size)
            self.stack.callback(self.stream.release)
            if not self.stream.isOpened():
                raise InputError(f"{self.target}: this video cannot be written")
        self.stream.write(draw(pixels, detections))

    def close(self) -> None:
        self.stack.close()


def _draw_picture(target: Path, pixels: Pixels, detections: sv.Detections) -> None:
    try:
        fine, content = cv2.imencode(target.suffix, draw(pixels, detections))
    except cv2.error as error:
        raise InputError(f"{target}: cannot be encoded: {' '.join(str(error).split())}") from error
    if not fine:
        raise InputError(f"{target}: cannot be encoded as {target.suffix}")
    with replacing(target) as part:
        part.write_bytes(content.tobytes())
