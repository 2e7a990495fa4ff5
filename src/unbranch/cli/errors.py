"""What goes wrong by the user's doing is one line on stderr and a non-zero exit code."""

import sys
import traceback
from typing import Any

import typer
from typer.core import TyperGroup

from unbranch.detect.errors import InputError

EXTRAS = {
    "onnx": "onnx", "onnx_ir": "onnx", "onnxscript": "onnx", "onnxruntime": "onnx", "openvino": "openvino",
    "mlxtend": "demo", "skimage": "demo", "sklearn": "demo",
    "matplotlib": "detect", "yaml": "detect", "lightning": "detect", "torchmetrics": "detect",
    "faster_coco_eval": "detect", "supervision": "detect", "cv2": "detect", "PIL": "detect",
    "torchvision": "detect",
}  # fmt: skip
"""Which extra brings a module that the core does without."""

FAILED, WRONG_INPUT = 1, 2
_tracebacks = False


def show_tracebacks(wanted: bool) -> None:
    """Whether an error also says where in the code it arose."""
    global _tracebacks  # noqa: PLW0603 - one program, one setting
    _tracebacks = wanted


class OneLineErrors(TyperGroup):
    """A group of commands whose errors are one line each: `ValueError`, `OSError` and a missing extra.

    Exit codes: 0 as it should be, 1 where a certificate fails, 2 for input that cannot be used.
    """

    def invoke(self, ctx: Any) -> Any:
        """Run the verb."""
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            module = (error.name or "").split(".")[0]
            if module not in EXTRAS:
                raise
            missing = f"{module} is not installed: pip install 'unbranch[{EXTRAS[module]}]'"
            raise _exit(InputError(missing)) from error
        except (ValueError, OSError) as error:
            raise _exit(error) from error


def _exit(error: Exception) -> typer.Exit:
    if _tracebacks:
        traceback.print_exception(error)
    text = " ".join(str(error).split()) or type(error).__name__
    print(f"error: {text}", file=sys.stderr)  # noqa: T201 - a program's own stderr
    return typer.Exit(WRONG_INPUT)
