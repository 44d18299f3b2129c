"""The shape of a parsed FHIRPath expression: plain frozen nodes, each with its character offset `at`.

Source: http://hl7.org/fhirpath/N1/ (appendix B, grammar). Chains of `|` are kept flat.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

Constant = object  # bool, int, Decimal, str, Date, DateTime, Time or Quantity (profiles/fhirpath/values)


@dataclass(frozen=True, slots=True)
class Constants:
    """A literal (one value) or `{}` (none)."""

    values: tuple[Constant, ...]
    at: int


@dataclass(frozen=True, slots=True)
class External:
    """`%name`."""

    name: str
    at: int


@dataclass(frozen=True, slots=True)
class Special:
    """`$this`, `$index` or `$total` (the name carries the dollar sign)."""

    name: str
    at: int


@dataclass(frozen=True, slots=True)
class Member:
    """`left.name`; `left` None: the name stands first, so it is looked up on the focus."""

    left: Expr | None
    name: str
    at: int


@dataclass(frozen=True, slots=True)
class Call:
    """`left.name(args)`; `left` None: called on the focus."""

    left: Expr | None
    name: str
    args: tuple[Expr, ...]
    at: int


@dataclass(frozen=True, slots=True)
class Item:
    """`left[index]`."""

    left: Expr
    index: Expr
    at: int


@dataclass(frozen=True, slots=True)
class Sign:
    """Unary `+` or `-`."""

    op: str
    operand: Expr
    at: int


@dataclass(frozen=True, slots=True)
class Binary:
    """Every two-sided operator but `|`, `is`, `as`."""

    op: str
    left: Expr
    right: Expr
    at: int


@dataclass(frozen=True, slots=True)
class Either:
    """`a | b | c`."""

    parts: tuple[Expr, ...]
    at: int


@dataclass(frozen=True, slots=True)
class TypeTest:
    """`left is Type`, `left as Type`; `name` is the possibly qualified type name (`FHIR.Patient`)."""

    op: str
    left: Expr
    name: str
    at: int


Expr: TypeAlias = Constants | External | Special | Member | Call | Item | Sign | Binary | Either | TypeTest


def type_name(node: Expr) -> str:
    """The type an argument such as `FHIR.Patient` or `Quantity` names; '' when it is no plain name."""
    if isinstance(node, Member):
        if node.left is None:
            return node.name
        outer = type_name(node.left)
        return f"{outer}.{node.name}" if outer else ""
    return ""


def children(node: Expr) -> tuple[Expr, ...]:
    """The nodes directly below `node`."""
    if isinstance(node, Member):
        return () if node.left is None else (node.left,)
    if isinstance(node, Call):
        return node.args if node.left is None else (node.left, *node.args)
    if isinstance(node, Item):
        return (node.left, node.index)
    if isinstance(node, Sign):
        return (node.operand,)
    if isinstance(node, Binary):
        return (node.left, node.right)
    if isinstance(node, Either):
        return node.parts
    if isinstance(node, TypeTest):
        return (node.left,)
    return ()
