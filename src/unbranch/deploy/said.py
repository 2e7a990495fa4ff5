"""What an exception says, in a line."""


def first_line(error: BaseException, *, named: bool = False) -> str:
    """The first line of an error's text, or its class where it has none; `named` puts the class before it.

    Example:
        >>> first_line(ValueError("too small\\nby two"), named=True)
        'ValueError: too small'
    """
    text = str(error).strip()
    name = type(error).__name__
    if not text:
        return name
    line = text.splitlines()[0]
    return f"{name}: {line}" if named else line
