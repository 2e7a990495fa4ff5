"""What is wrong with a model file, in one line."""


class OnnxError(ValueError):
    """This ONNX model cannot be read, folded or written; the message says what is wrong, where, and what to do."""


def first_line(error: BaseException) -> str:
    """What an error says, in one line; its kind where it says nothing."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def root_of(error: BaseException) -> BaseException:
    """The error that a chain of errors began with."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error
