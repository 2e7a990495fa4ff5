"""Arguments of a program's nodes, which may be anything, as what they are known to be."""

from collections.abc import Callable
from typing import Any

from torch.fx import Node


def operand(node: Node, position: int = 0) -> Node:
    """The argument at a position where the op takes a tensor that another node makes.

    Raises:
        TypeError: it is something else.
    """
    given = node.args[position]
    if not isinstance(given, Node):
        raise TypeError(f"argument {position} of {node.name} is {given!r} and no node")
    return given


def number(given: Any) -> float:
    """An argument that is a plain number.

    Raises:
        TypeError: it is something else.
    """
    if not isinstance(given, int | float):
        raise TypeError(f"{given!r} is no number")
    return float(given)


def mapped(tree: Any, change: Callable[[Node], Any]) -> Any:
    """Nested arguments with something else for every node, as lists and dicts."""
    if isinstance(tree, Node):
        return change(tree)
    if isinstance(tree, list | tuple):
        return [mapped(item, change) for item in tree]
    if isinstance(tree, dict):
        return {key: mapped(item, change) for key, item in tree.items()}
    return tree


def nodes_in(tree: Any) -> list[Node]:
    """The nodes in a nested argument."""
    found: list[Node] = []
    mapped(tree, found.append)
    return found
