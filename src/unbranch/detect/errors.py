"""The one error that this package raises for what a person gave it."""


class InputError(ValueError):
    """A file, a folder, a setting or a picture cannot be used.

    The message is one line: what is wrong, where (path, module or value), and what to do. The command line
    prints it and exits with a non-zero code; it is a `ValueError`, so a caller of the API may catch either.

    >>> raise InputError("runs/best.safetensors: no such file; train first, or name another")
    Traceback (most recent call last):
    ...
    unbranch.detect.errors.InputError: runs/best.safetensors: no such file; train first, or name another
    """
