"""Which device trains, how many processes there are, and in what precision the device is quick."""

from dataclasses import dataclass
from pathlib import Path

import torch

from unbranch.detect.data.batches import steps_of
from unbranch.detect.errors import InputError


@dataclass(frozen=True)
class Ranks:
    """The processes of a training: on this machine, and in all."""

    on_this_node: int
    total: int

    def steps(self, pictures: int, batch: int) -> int:
        """Batches an epoch."""
        return steps_of(pictures, batch, self.total)


@dataclass(frozen=True)
class Device:
    """A kind of device by Lightning's name (`kind`) and by torch's (`name`)."""

    kind: str
    name: str

    def ranks(self, devices: int | str, nodes: int) -> Ranks:
        """How many processes `devices` means: a number, a list such as "0,2", "auto" or -1 for all there
        are."""
        there = torch.cuda.device_count() if self.name == "cuda" else 1
        if devices in ("auto", -1, "-1"):
            count = there
        elif isinstance(devices, str) and not devices.isdigit():
            count = len([part for part in devices.split(",") if part.strip().isdigit()])
        else:
            count = int(devices)
        if count < 1:
            raise InputError(f"devices is {devices!r}; give a number, a list such as '0,1', or 'auto'")
        if self.name == "cuda" and count > there:
            raise InputError(f"devices is {devices!r}, and {there} are there; use no more than that")
        return Ranks(count, count * nodes)


def pick_device(accelerator: str) -> Device:
    """The device for Lightning's accelerator name; "auto" is CUDA, else Apple's, else the processor.

    Raises InputError for an accelerator that is unknown or not there.

    Example:
        >>> pick_device("cpu").name
        'cpu'
    """
    kind = accelerator
    if accelerator == "auto":
        kind = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "gpu": torch.cuda.is_available(),
             "mps": torch.backends.mps.is_available()}  # fmt: skip
    if kind not in there:
        raise InputError(f"accelerator is {accelerator!r}; it can be auto, {', '.join(there)}")
    if not there[kind]:
        raise InputError(f"accelerator is {accelerator!r}, and this machine has none; use --accelerator cpu")
    return Device(kind, {"gpu": "cuda"}.get(kind, kind))


def fast_precision(device: Device) -> str:
    """Mixed where the device has arithmetic for it: fp16 on CUDA, bfloat16 on processors with bfloat16
    products."""
    if device.name == "cuda":
        return "16-mixed"
    facts = Path("/proc/cpuinfo")
    if (
        device.name == "cpu"
        and facts.is_file()
        and {"avx512_bf16", "amx_bf16"} & set(facts.read_text().split())
    ):
        return "bf16-mixed"
    return "32"
