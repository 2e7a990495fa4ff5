"""Train a detector: from a data set and a network's name to weights, figures and pictures in one folder."""

import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning
import torch
import yaml
from lightning.fabric.utilities.rank_zero import _get_rank
from lightning.pytorch.strategies import DDPStrategy

from unbranch.detect.anchors import Choice, choose_anchors, training_sides
from unbranch.detect.checkpoint import load_model
from unbranch.detect.data.check import Split, check_splits
from unbranch.detect.data.spec import open_spec
from unbranch.detect.errors import InputError
from unbranch.detect.evaluation import validate
from unbranch.detect.files import clear_parts, replacing
from unbranch.detect.forms import take_form
from unbranch.detect.metrics import Metrics
from unbranch.detect.schedule import Plan
from unbranch.detect.training.branches import begin, calibrated
from unbranch.detect.training.checkpoints import (
    BEST_WEIGHTS,
    LAST,
    LAST_WEIGHTS,
    Keep,
    WholeFiles,
    read_last,
    read_network,
)
from unbranch.detect.training.console import Console, Narrator
from unbranch.detect.training.data_module import DetectionData, suitable_workers
from unbranch.detect.training.devices import fast_precision, pick_device
from unbranch.detect.training.history import History
from unbranch.detect.training.logs import EventLog, Pictures, require_tensorboard, write_figures
from unbranch.detect.training.module import DetectionModule
from unbranch.detect.training.settings import Job, Settings
from unbranch.models.yolo import YOLO, YOLODescription, build, describe

DEFAULT_MODEL = "yolov5n"


@dataclass(frozen=True)
class TrainResult:
    """What a training left: its folder, the two weight files, the measures of the best one, and the
    history."""

    folder: Path
    best: Path
    last: Path
    metrics: Metrics
    history: History


def train(
    data: str | Path | Mapping[str, Any] | None = None,
    model: str | Path | Mapping[str, Any] | YOLODescription | None = None,
    folder: str | Path = "runs/train",
    resume: bool = False,
    quiet: bool = False,
    **settings: Any,
) -> TrainResult:
    """Train a detector on `data`; everything it leaves lies in `folder`.

    data: a data.yaml, a folder (VOC, COCO, YOLO), or a mapping, see `data.open_spec`. model: a name
    (`yolov5n`, `yolov7-tiny` …), weights to start from (`.safetensors`), a description, or a YAML file of one. settings: see
    `Settings`; the same names are the command line's options. resume: go on with the training in `folder`
    from its last whole epoch; data, model and settings are then its own.

    Repeatable: the same data, settings and number of threads give the same weights, interrupted or not.

    Raises InputError, in one line, for anything that the caller has to put right; what was written stays
    whole.

    Example:
        >>> options = {"block": "repvgg"}
        >>> result = train("cells.yaml", "yolov5n", epochs=12, network=options)  # doctest: +SKIP
        >>> result.metrics.map50 > 0.5  # doctest: +SKIP
        True
    """
    out = Path(folder)
    if resume:
        if data is not None or model is not None or settings:
            raise InputError("a resumed training has its own data, model and settings; give only its folder")
        job = Job.read(out)
    else:
        job = _new_job(out, data, DEFAULT_MODEL if model is None else model, settings)
    if _is_first():
        clear_parts(out)
    narrator = Narrator(quiet or not _is_first())
    with _quiet_lightning():
        return _run(job, out, narrator)


def _new_job(out: Path, data: Any, model: Any, options: Mapping[str, Any]) -> Job:
    """Everything that can be wrong without a look at the pictures is found here, before a file is written."""
    if data is None:
        raise InputError("no data: give a data.yaml or a data set's folder")
    settings = Settings.from_options(options)
    if str(model).endswith(".safetensors"):
        settings = replace(settings, weights=str(model))
    described = description_of(model)
    description = describe_for(described, open_spec(data).names, settings.network)
    stride = description.strides[-1]
    if settings.size % stride:
        nearest = -(-settings.size // stride) * stride
        raise InputError(
            f"size is {settings.size}; this network needs a multiple of {stride}, such as {nearest}"
        )
    begin(build(description), _source(settings), settings)
    if settings.tensorboard:
        require_tensorboard()
    pick_device(settings.accelerator).ranks(settings.devices, settings.nodes)
    if settings.precision == "auto":
        settings = replace(settings, precision=fast_precision(pick_device(settings.accelerator)))
    job = Job(_lasting(data), described, settings)
    if _is_first():
        if (out / LAST).exists():
            raise InputError(f"{out} holds a training already; resume it, or name another folder")
        job.write(out)
    return job


def _source(settings: Settings) -> YOLO[Any] | None:
    return None if settings.weights is None else load_model(settings.weights)


def _lasting(data: str | Path | Mapping[str, Any]) -> str | dict[str, Any]:
    """The data as it is found from any folder: a training may be resumed from elsewhere."""
    if isinstance(data, Mapping):
        return {**data, "path": str(Path(data.get("path", ".")).absolute())}
    return str(Path(data).absolute())


def description_of(model: Any) -> str | dict[str, Any]:
    """A network's name, or its description as plain data, out of what `train` takes as its model."""
    if isinstance(model, YOLODescription):
        return model.to_dict()
    if isinstance(model, Mapping):
        return dict(model)
    text = str(model)
    if text.endswith(".safetensors"):
        return load_model(text).description.to_dict()
    return read_description(Path(text)) if text.endswith((".yaml", ".yml")) else text


def read_description(file: Path) -> dict[str, Any]:
    """The description in a YAML file, as plain data. Raises InputError where it is none."""
    try:
        content = yaml.safe_load(file.read_bytes())
    except (OSError, yaml.YAMLError) as error:
        raise InputError(f"{file}: cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise InputError(f"{file}: no mapping; a description has the keys network, block, …")
    return content


def describe_for(
    model: str | Mapping[str, Any], names: tuple[str, ...], options: Mapping[str, Any]
) -> YOLODescription:
    """The description of a job's network for the classes of its data. Raises InputError for what it
    refuses."""
    plain = {"network": model} if isinstance(model, str) else dict(model)
    plain.pop("num_classes", None)
    try:
        return describe({**plain, **options, "names": list(names)})
    except (ValueError, TypeError) as error:
        raise InputError(f"model: {error}") from error


def _run(job: Job, out: Path, narrator: Narrator) -> TrainResult:
    settings = job.settings
    before = read_last(out)
    done = History.from_list(before["history"]) if before else History()
    device = pick_device(settings.accelerator)
    ranks = device.ranks(settings.devices, settings.nodes)
    train_split, val_split = _splits(job, ranks.on_this_node, narrator)
    steps = ranks.steps(len(train_split), settings.batch)
    plan = Plan(steps, settings.epochs, settings.batch, settings.recipe, settings.weights is None)
    torch.manual_seed(settings.seed)
    network = build(describe_for(job.model, train_split.names, settings.network))
    if before is None:
        narrator.say(*begin(network, _source(settings), settings))
        if settings.expand is not None:
            narrator.say(calibrated(network, train_split, settings.batch))
        narrator.say(*_fit_anchors(network, train_split, settings))
    else:
        take_form(network, read_network(out), str(out / LAST))
    network.requires_grad_(True)  # what was folded is to learn again
    about = {"names": list(train_split.names), "size": settings.size, "seed": settings.seed}
    module = DetectionModule(
        network, plan, settings.size, settings.seed, val_split, settings.freeze_norms, about
    )
    module.history = done
    if done.epochs < settings.epochs and not done.stale(settings.patience):
        if done.epochs:
            narrator.say(f"resuming after epoch {done.epochs} of {settings.epochs}")
        workers = settings.workers
        if workers == "auto":
            workers = suitable_workers(train_split, device.kind, ranks.on_this_node)
        batches = DetectionData(
            train_split, val_split, plan, settings.seed, network.stride, workers, done.epochs
        )
        trainer = _trainer(job, out, device.kind, ranks.total, narrator)
        trainer.fit(module, datamodule=batches, ckpt_path=out / LAST if before else None)
    else:
        narrator.say(f"all {done.epochs} epochs are done")
    return _conclude(out, module, val_split, device.name, narrator)


def _splits(job: Job, sharers: int, narrator: Narrator) -> tuple[Split, Split]:
    settings = job.settings
    spec = open_spec(job.data)
    if "train" not in spec.splits:
        raise InputError(f"the data set has no split 'train'; it has {', '.join(spec.splits)}")
    wanted = ["train", "val"] if "val" in spec.splits else ["train"]
    folder = Path(settings.cache_folder) if settings.cache_folder else None
    with narrator.progress() as progress:
        checked = check_splits(spec, wanted, settings.size, settings.cache, folder, sharers, progress)
    for split in checked.values():
        narrator.say(*split.report.lines())
    if "val" not in checked:
        narrator.say("no split 'val': measured on the training pictures themselves, which flatters")
    return checked["train"], checked.get("val", checked["train"])


def _fit_anchors(network: YOLO[Any], split: Split, settings: Settings) -> list[str]:
    choice: Choice = choose_anchors(
        training_sides(split), network.detect.anchors, settings.recipe.anchor_threshold, settings.seed
    )
    if not choice.changed:
        return [f"anchors reach {choice.before.reach:.1%} of the boxes, mean fit {choice.before.score:.2f}"]
    network.set_anchors(choice.anchors)
    before, after = choice.before, choice.after
    return [
        f"anchors reached {before.reach:.1%} of the boxes, mean fit {before.score:.2f}; "
        f"new ones reach {after.reach:.1%}, {after.score:.2f}: {choice.anchors.round().int().tolist()}"
    ]


def _trainer(job: Job, out: Path, accelerator: str, ranks: int, narrator: Narrator) -> lightning.Trainer:
    settings = job.settings
    callbacks: list[lightning.Callback] = [Keep(out, settings.patience), Console(narrator), Pictures(out)]
    if settings.tensorboard:
        callbacks.append(EventLog(out))
    return lightning.Trainer(
        accelerator=accelerator,
        devices=settings.devices if settings.devices != "auto" or accelerator != "cpu" else 1,
        num_nodes=settings.nodes,
        strategy=DDPStrategy(broadcast_buffers=False) if ranks > 1 else "auto",
        precision=settings.precision,  # pyright: ignore[reportArgumentType]
        max_epochs=settings.epochs,
        check_val_every_n_epoch=settings.validate_every,
        callbacks=callbacks,
        plugins=[WholeFiles()],
        deterministic=True if accelerator == "cpu" else "warn",
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=out,
    )


def _conclude(out: Path, module: DetectionModule, val: Split, device: str, narrator: Narrator) -> TrainResult:
    """Measure the best weights once more, from their file, and draw what a person looks at."""
    best = load_model(out / BEST_WEIGHTS)
    metrics = validate(best, val, batch=2 * module.plan.batch, device=device).metrics
    if _is_first():
        write_figures(out, metrics, module.history)
        with replacing(out / "results.json") as part:
            part.write_text(json.dumps(metrics.to_dict(), indent=2) + "\n", encoding="utf-8")
    narrator.table(metrics)
    narrator.say(f"best epoch {module.history.best_epoch} of {module.history.epochs}: {out / BEST_WEIGHTS}")
    return TrainResult(out, out / BEST_WEIGHTS, out / LAST_WEIGHTS, metrics, module.history)


def _is_first() -> bool:
    return not _get_rank()


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Lightning's remarks on devices, workers and modes say nothing that was not decided here."""
    loggers = [logging.getLogger(f"lightning.{part}") for part in ("pytorch", "fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for text in (".*does not have many workers.*", ".*in eval mode at the start of training.*",
                         ".*isinstance.treespec, LeafSpec.*", ".*weights_only. was not set.*",
                         ".*broadcast_buffers. is deprecated.*"):  # fmt: skip
                warnings.filterwarnings("ignore", message=text)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
