"""What a claim says of a row: columns and numbers compared, and, or, not, + - * /. It is read as a tree, never run as code."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from saebench.checks import InputError, require

ARITHMETIC: dict[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
COMPARISONS: dict[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
WORDS = (
    ast.Expression,
    ast.BoolOp,
    ast.And,
    ast.Or,
    ast.UnaryOp,
    ast.Not,
    ast.USub,
    ast.BinOp,
    ast.Compare,
    ast.Name,
    ast.Load,
)
PARTS = (*WORDS, *ARITHMETIC, *COMPARISONS)


def columns(text: str) -> list[str]:
    """The columns that an expression reads. Raises InputError unless it is made of columns, numbers, texts and what is above."""
    where = f"holds={text}"
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = getattr(error, "msg", None) or str(error) or "nested too deep"
        raise InputError(f"{where}: {reason}; write it as in p_gof >= 0.1 and r2 > 0.9") from error
    for node in ast.walk(tree):
        good = isinstance(node, PARTS) or (
            isinstance(node, ast.Constant) and type(node.value) in (int, float, str, bool)
        )
        require(good, f"{where}: {shown(node)} is not a column, a number, a comparison or and, or, not")
        sum_of_texts = isinstance(node, ast.BinOp) and any(is_text(side) for side in (node.left, node.right))
        require(not sum_of_texts, f"{where}: {shown(node)} reckons with a text; use numbers")
    return sorted({node.id for node in ast.walk(tree) if isinstance(node, ast.Name)})


def is_text(node: ast.AST) -> bool:
    """Whether a part of an expression is a text."""
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def shown(node: ast.AST) -> str:
    """A part of an expression as it was written; an operator by its name."""
    return ast.unparse(node) if isinstance(node, ast.expr) else type(node).__name__


def holds(text: str, row: dict[str, Any]) -> bool:
    """Whether an expression that `columns` has checked is true of a row that has its columns. Raises InputError, as for 1 / 0."""
    try:
        return bool(value(ast.parse(text, mode="eval").body, row))
    except (ZeroDivisionError, TypeError, OverflowError) as error:
        raise InputError(f"holds={text}: cannot be reckoned ({error}); compare columns of numbers") from error


def value(node: ast.expr, row: dict[str, Any]) -> Any:
    """What a part of an expression is in a row."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name):
        return row[node.id]
    if isinstance(node, ast.BoolOp):
        every = all if isinstance(node.op, ast.And) else any
        return every(value(one, row) for one in node.values)
    if isinstance(node, ast.UnaryOp):
        inner = value(node.operand, row)
        return not inner if isinstance(node.op, ast.Not) else -inner
    if isinstance(node, ast.BinOp):
        return ARITHMETIC[type(node.op)](value(node.left, row), value(node.right, row))
    assert isinstance(node, ast.Compare)
    sides = [value(side, row) for side in (node.left, *node.comparators)]
    return all(COMPARISONS[type(op)](*pair) for op, pair in zip(node.ops, pairwise(sides), strict=True))
