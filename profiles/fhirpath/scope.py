"""What an evaluation carries along: the outside services, the variables, the budget, the current focus.

Hides nothing but spells out the Protocols the engine asks of other rooms. The budget bounds every expression: each
step evaluated, each element touched and each character of a new string is paid for, all at about what they take: a
unit is at most 1.2 microseconds on the machine it was set on (what costs most: decimals, instants), so that the
default budget ends within a second whatever the expression.

Source: http://hl7.org/fhirpath/N1/ section 9 (environment variables), https://hl7.org/fhir/R4/fhirpath.html#variables
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

from profiles.fhirpath.errors import FhirPathError
from profiles.fhirpath.model import Collection, Node
from profiles.fhirpath.values import NoUnits, Units

BUDGET = 750_000
MAX_STRING = 4_000_000
# What one node of an expression costs each time it is evaluated, beside what it goes through.
STEP = 2

Resolve = Callable[[str], Mapping[str, Any] | None]
Trace = Callable[[str, Collection], None]


class Terminology(Protocol):
    """What memberOf() and subsumes() ask."""

    def member_of(self, value_set: str, codings: Sequence[tuple[str | None, str]]) -> bool | None:
        """Whether any (system, code) is in the value set; None when the set is unknown. System None: any system."""

    def subsumes(self, system: str, ancestor: str, descendant: str) -> bool | None:
        """Whether `ancestor` is or subsumes `descendant`; None when the system is unknown."""


class Profiles(Protocol):
    """What conformsTo() asks for profiles that are not the core definitions."""

    def conforms(self, element: Mapping[str, Any], profile: str) -> bool | None:
        """Whether the element conforms; None when the profile is unknown."""


@dataclass(slots=True)
class Env:
    """One evaluation: `root` is the context node; `variables` are the caller's `%names` (values or lists of them)."""

    root: Any
    resolve: Resolve | None = None
    terminology: Terminology | None = None
    profiles: Profiles | None = None
    units: Units = field(default_factory=NoUnits)
    variables: Mapping[str, Any] = field(default_factory=dict)
    trace: Trace | None = None
    now: datetime = field(default_factory=lambda: datetime.now(UTC).astimezone())
    left: int = BUDGET

    def spend(self, amount: int) -> None:
        """Pays for `amount` elements or characters; FhirPathError when the evaluation has become too costly."""
        self.left -= amount
        if self.left < 0:
            raise too_costly()


def too_costly() -> FhirPathError:
    """What an evaluation ends with when its budget is spent."""
    return FhirPathError("too costly: the evaluation touches more elements than its budget allows")


class Scope:
    """The focus of an expression: `this` ($this, a list), `index` ($index, -1 outside a loop), `total` ($total)."""

    __slots__ = ("env", "index", "this", "total")

    def __init__(self, env: Env, this: Collection, index: int = -1, total: Collection | None = None) -> None:
        self.env = env
        self.this = this
        self.index = index
        self.total = total


Closure = Callable[[Scope], Collection]


def single(items: Collection, what: str) -> Any:
    """The only item, or None for an empty collection; FhirPathError for more."""
    if len(items) > 1:
        raise FhirPathError(f"{what} needs a single item, not {len(items)}")
    return items[0] if items else None


def operand(items: Collection, what: str) -> Any:
    """The only item as an operand: as `single`, and a primitive that has extensions but no value counts as empty."""
    item = single(items, what)
    return None if isinstance(item, Node) and item.value is None else item


def text(env: Env, value: str) -> Collection:
    """A new string as a result, paid for by its length."""
    room(env, len(value))
    return [value]


def room(env: Env, length: int) -> None:
    """Pays for a string of `length` characters before it is made; FhirPathError when it would be too long."""
    if length > MAX_STRING:
        raise FhirPathError(f"the result is a string of more than {MAX_STRING} characters")
    env.spend(length >> 4)


def reading(env: Env, *values: Any) -> None:
    """Pays for going through the strings among `values`: a long one may stand in many places of a collection."""
    for value in values:
        if type(value) is str and len(value) > 63:
            env.spend(len(value) >> 6)


def each(scope: Scope, item: Node | Any, index: int) -> Scope:
    """The scope of one turn of a loop over a collection."""
    scope.env.spend(1)
    return Scope(scope.env, [item], index, scope.total)


@dataclass(frozen=True, slots=True)
class Function:
    """One row of the function library.

    `run(scope, items, *args)` gets the input collection and its arguments as closures (to be called with the scope for
    a value, with the scope of each item for a criterion); a function that `takes` a type gets `(items, TypeInfo)`.
    """

    run: Callable[..., Collection]
    least: int = 0
    most: int = 0
    takes: str = "expressions"
