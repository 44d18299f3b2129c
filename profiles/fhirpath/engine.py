"""FHIRPath: `compile` an expression once, call the result on resources.

Hides the tree and the closures it becomes. A path (see `paths`) runs as a loop over JSON keys; everything else runs on
typed nodes. Expressions are untrusted: depth, length, work and output are bounded, and every error says where.

Sources: http://hl7.org/fhirpath/N1/ (normative 2.0.0), https://hl7.org/fhir/R4/fhirpath.html

    >>> compile("name.given.first()")({"resourceType": "Patient", "name": [{"given": ["Ana"]}]})
    ['Ana']
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from profiles.fhirpath import functions, operators, paths
from profiles.fhirpath.errors import FhirPathError, placed
from profiles.fhirpath.model import (
    Collection,
    Node,
    TypeInfo,
    child_nodes,
    is_a,
    known_type,
    properties,
    resolve_type,
    resource_of,
    root_node,
    root_of,
    system,
)
from profiles.fhirpath.parser import parse
from profiles.fhirpath.scope import (
    BUDGET,
    STEP,
    Closure,
    Env,
    Profiles,
    Resolve,
    Scope,
    Terminology,
    Trace,
    single,
    too_costly,
)
from profiles.fhirpath.syntax import (
    Binary,
    Call,
    Constants,
    Either,
    Expr,
    External,
    Item,
    Member,
    Sign,
    Special,
    TypeTest,
    type_name,
)
from profiles.fhirpath.values import Units
from profiles.ucum.units import Ucum

_UCUM = Ucum()
_VALUE_SET = "http://hl7.org/fhir/ValueSet/"
_EXTENSION = "http://hl7.org/fhir/StructureDefinition/"
_CONSTANTS = {"ucum": "http://unitsofmeasure.org", "sct": "http://snomed.info/sct", "loinc": "http://loinc.org"}


class Compiled:
    """A compiled expression; call it with a resource (a dict of `json_text.parse`) to get a list of plain values.

    FHIR elements come as their JSON values (primitives without a value are left out), computed ones as bool, int,
    Decimal, str, Temporal, Quantity or TypeInfo. `nodes` gives the typed items instead. Raises FhirPathError.
    """

    __slots__ = ("_closure", "_fast", "expression", "search", "tree")

    def __init__(self, expression: str, *, search: bool = False, as_filters: bool = False) -> None:
        self.expression = expression
        self.search = search
        self.tree = parse(expression)
        self._closure = _Compiler(expression, search, as_filters or search).closure(self.tree)
        self._fast: dict[str, Callable[[dict[str, Any]], list[Any]] | None] = {}

    def __call__(
        self,
        resource: Mapping[str, Any],
        *,
        type_name: str = "",
        resolve: Resolve | None = None,
        terminology: Terminology | None = None,
        profiles: Profiles | None = None,
        units: Units = _UCUM,
        variables: Mapping[str, Any] | None = None,
        trace: Trace | None = None,
        now: datetime | None = None,
        budget: int = BUDGET,
    ) -> list[Any]:
        """The values of the expression on `resource`; `type_name` says the type of a value that is no resource.

        `resolve` maps a reference text to a resource or None; `units` converts units (UCUM unless said otherwise);
        `variables` are `%names`; `trace` receives (name, items); `now` is the instant of now(), today() and
        timeOfDay(), the present one by default. `budget` is how many steps and elements the evaluation may take (the
        default is spent within a second).
        """
        fast = self._runner(type_name or resource.get("resourceType", ""))
        if fast is not None:
            try:
                return fast(resource)  # type: ignore[arg-type]  # or it raises
            except (AttributeError, TypeError):
                pass  # the JSON has not the shape of the model: the typed evaluation copes
        items = self.nodes(
            root_node(resource, type_name),
            resolve=resolve,
            terminology=terminology,
            profiles=profiles,
            units=units,
            variables=variables,
            trace=trace,
            now=now,
            budget=budget,
        )
        plain = [item.value if isinstance(item, Node) else item for item in items]
        return [value for value in plain if value is not None]

    def nodes(
        self,
        root: Node,
        *,
        resolve: Resolve | None = None,
        terminology: Terminology | None = None,
        profiles: Profiles | None = None,
        units: Units = _UCUM,
        variables: Mapping[str, Any] | None = None,
        trace: Trace | None = None,
        now: datetime | None = None,
        budget: int = BUDGET,
    ) -> Collection:
        """The items of the expression on a typed node (see `model.root_node`): nodes and System values."""
        env = Env(root, resolve, terminology, profiles, units, variables or {}, trace, left=budget)
        if now is not None:
            env.now = now
        try:
            return self._closure(Scope(env, [root]))
        except RecursionError:
            problem = FhirPathError("the expression recurses too deeply")
            raise placed(problem, self.expression, self.tree.at) from None

    def _runner(self, resource_type: Any) -> Callable[[dict[str, Any]], list[Any]] | None:
        try:
            return self._fast[resource_type]
        except (KeyError, TypeError):
            if not isinstance(resource_type, str) or not known_type(resource_type):
                return None
        ways = paths.routes(self.tree, resource_type, search=self.search)
        found = self._fast[resource_type] = (
            None if ways is None else paths.runner(ways, distinct=isinstance(self.tree, Either) or len(ways) > 1)
        )
        return found


_KEPT: dict[tuple[str, bool, bool], Compiled] = {}
# R4's search parameters and invariants are 65,000 characters in all; expressions of clients must not pile up.
_KEPT_CHARACTERS = 400_000
_kept_characters = 0


def compile(expression: str, *, search: bool = False, as_filters: bool = False) -> Compiled:
    """The compiled expression (kept: the same text gives the same object).

    `as_filters` lets `as` filter a collection instead of refusing more than one item: R4's own invariants (dom-3) and
    search parameters rely on it. `search` does that too, and judges `resolve() is T` by the text of a reference that
    cannot be resolved. Raises FhirPathError (kind `syntax` or `semantic`) with line and column.
    """
    global _kept_characters
    key = (expression, search, as_filters)
    found = _KEPT.get(key)
    if found is None:
        found = Compiled(expression, search=search, as_filters=as_filters)
        _kept_characters += len(expression)
        if _kept_characters > _KEPT_CHARACTERS:
            _KEPT.clear()
            _kept_characters = len(expression)
        _KEPT[key] = found
    return found


def evaluate(expression: str, resource: Mapping[str, Any], **services: Any) -> list[Any]:
    """`compile(expression)(resource, ...)`."""
    return compile(expression)(resource, **services)


# --- from tree to closures -------------------------------------------------------------------------------------------


class _Compiler:
    """One pass over the tree; every node becomes a function from scope to collection."""

    def __init__(self, source: str, search: bool, as_filters: bool) -> None:
        self.source = source
        self.search = search
        self.as_filters = as_filters

    def closure(self, node: Expr) -> Closure:
        compiled: Closure = getattr(self, "_" + type(node).__name__.lower())(node)
        return compiled

    def located(self, at: int, run: Closure) -> Closure:
        """`run` with the place of the node added to what goes wrong inside."""
        source = self.source

        def guarded(scope: Scope) -> Collection:
            env = scope.env
            env.left -= STEP
            if env.left < 0:
                raise placed(too_costly(), source, at)
            try:
                return run(scope)
            except FhirPathError as error:
                raise placed(error, source, at) from None
            except (ArithmeticError, ValueError, TypeError, AttributeError, KeyError, IndexError) as error:
                raise placed(FhirPathError(f"cannot be computed: {error}"), source, at) from error

        return guarded

    def _constants(self, node: Constants) -> Closure:
        values = list(node.values)
        return lambda scope: values

    def _special(self, node: Special) -> Closure:
        if node.name == "$this":
            return lambda scope: scope.this
        if node.name == "$index":
            return lambda scope: [scope.index] if scope.index >= 0 else []
        return lambda scope: scope.total or []

    def _external(self, node: External) -> Closure:
        name = node.name

        def run(scope: Scope) -> Collection:
            return _variable(scope, name)

        return self.located(node.at, run)

    def _member(self, node: Member) -> Closure:
        name = node.name
        if node.left is None:
            # A path may start with the type of the focus, or one it derives from: Patient.name, Resource.id.
            typed = known_type(name)

            def start(scope: Scope) -> Collection:
                if typed and len(scope.this) == 1:
                    only = scope.this[0]
                    if isinstance(only, Node) and name not in properties(only.place) and is_a(only.type, name):
                        return scope.this
                return _members(scope, scope.this, name)

            return self.located(node.at, start)
        left = self.closure(node.left)

        return self.located(node.at, lambda scope: _members(scope, left(scope), name))

    def _item(self, node: Item) -> Closure:
        left, index = self.closure(node.left), self.closure(node.index)

        def run(scope: Scope) -> Collection:
            place = single(index(scope), "an index")
            if place is None:
                return []
            place = system(place)
            if type(place) is not int:
                raise FhirPathError("an index is an Integer")
            return left(scope)[place : place + 1] if place >= 0 else []

        return self.located(node.at, run)

    def _sign(self, node: Sign) -> Closure:
        operand = self.closure(node.operand)
        if node.op == "-":
            return self.located(node.at, lambda scope: operators.negated(operand(scope)))

        def run(scope: Scope) -> Collection:
            items = operand(scope)
            operators.negated(items)  # refuses what has no sign
            return items

        return self.located(node.at, run)

    def _either(self, node: Either) -> Closure:
        parts = [self.closure(part) for part in node.parts]

        def run(scope: Scope) -> Collection:
            found: Collection = []
            for part in parts:
                found += part(scope)
            return operators.distinct(found, scope.env)

        return self.located(node.at, run)

    def _typetest(self, node: TypeTest) -> Closure:
        left, wanted = self.closure(node.left), self.type(node.name, node.at)
        if node.op == "is":
            return self.located(node.at, lambda scope: functions.is_type(left(scope), wanted))
        if self.as_filters:
            return self.located(node.at, lambda scope: functions.of_type(_passed(scope, left(scope)), wanted))
        return self.located(node.at, lambda scope: functions.as_type(left(scope), wanted))

    def type(self, name: str, at: int) -> TypeInfo:
        try:
            return resolve_type(name)
        except FhirPathError as error:
            raise placed(error, self.source, at) from None

    def _binary(self, node: Binary) -> Closure:
        return self.located(node.at, _binary(node.op, self.closure(node.left), self.closure(node.right)))

    def _call(self, node: Call) -> Closure:
        spec = functions.FUNCTIONS.get(node.name)
        if spec is None:
            raise self.error(node, f"there is no function {node.name}(){_nearest(node.name)}")
        if not spec.least <= len(node.args) <= spec.most:
            many = str(spec.least) if spec.least == spec.most else f"{spec.least} to {spec.most}"
            raise self.error(node, f"{node.name}() takes {many} arguments, not {len(node.args)}")
        run, left = spec.run, (lambda scope: scope.this) if node.left is None else self.closure(node.left)
        if spec.takes == "type":
            name = type_name(node.args[0])
            if not name:
                raise self.error(node, f"{node.name}() takes the name of a type")
            wanted = self.type(name, node.args[0].at)
            run = functions.of_type if self.as_filters and node.name == "as" else run
            return self.located(node.at, lambda scope: run(_passed(scope, left(scope)), wanted))
        if spec.takes == "sort":
            return self.located(node.at, self.sort(node, left, run))
        if node.name == "resolve" and self.search:
            return self.located(node.at, lambda scope: functions.resolve_or_guess(scope, left(scope)))
        args = [self.closure(arg) for arg in node.args]
        return self.located(node.at, _call(run, left, args))

    def sort(self, node: Call, left: Closure, run: Callable[..., Collection]) -> Closure:
        """A leading minus in a sort key means descending order; it is no arithmetic (keys may be strings)."""
        keys = []
        for arg in node.args:
            down = isinstance(arg, Sign) and arg.op == "-"
            keys.append((self.closure(arg.operand if isinstance(arg, Sign) and down else arg), down))
        return lambda scope: run(scope, _passed(scope, left(scope)), keys)

    def error(self, node: Expr, message: str) -> FhirPathError:
        return placed(FhirPathError(message, kind="semantic"), self.source, node.at)


def _call(run: Callable[..., Collection], left: Closure, args: list[Closure]) -> Closure:
    if not args:
        return lambda scope: run(scope, _passed(scope, left(scope)))
    if len(args) == 1:
        only = args[0]
        return lambda scope: run(scope, _passed(scope, left(scope)), only)
    return lambda scope: run(scope, _passed(scope, left(scope)), *args)


def _passed(scope: Scope, items: Collection) -> Collection:
    """The input of a function, paid for by its size: most functions go through all of it."""
    scope.env.spend(1 + (len(items) >> 2))
    return items


def _members(scope: Scope, items: Collection, name: str) -> Collection:
    found: Collection = []
    for item in items:
        if type(item) is Node:
            found += child_nodes(item, name)
        elif isinstance(item, TypeInfo) and name in ("namespace", "name"):
            found.append(getattr(item, name))
    scope.env.spend(len(found) + (len(items) >> 1) + 1)
    return found


def _binary(op: str, left: Closure, right: Closure) -> Closure:
    if op in operators.LOGIC:
        decide, settled = operators.LOGIC[op], {"and": False, "or": True, "implies": False}.get(op)

        def logic(scope: Scope) -> Collection:
            first = operators.boolean(left(scope), op)
            if first is not None and first is settled:
                return operators.truth(decide(first, None))
            return operators.truth(decide(first, operators.boolean(right(scope), op)))

        return logic
    if op in ("<", "<=", ">", ">="):
        return lambda scope: operators.compare(op, left(scope), right(scope), scope.env)
    if op in ("+", "-", "*", "/", "div", "mod"):
        return lambda scope: operators.arithmetic(op, left(scope), right(scope), scope.env)
    return _RELATIONS[op](left, right)


def _equality(left: Closure, right: Closure) -> Closure:
    return lambda scope: operators.truth(operators.equal(left(scope), right(scope), scope.env))


def _inequality(left: Closure, right: Closure) -> Closure:
    def run(scope: Scope) -> Collection:
        answer = operators.equal(left(scope), right(scope), scope.env)
        return [] if answer is None else [not answer]

    return run


def _equivalence(left: Closure, right: Closure) -> Closure:
    return lambda scope: [operators.equivalent(left(scope), right(scope), scope.env)]


def _difference(left: Closure, right: Closure) -> Closure:
    return lambda scope: [not operators.equivalent(left(scope), right(scope), scope.env)]


def _concatenation(left: Closure, right: Closure) -> Closure:
    return lambda scope: operators.concatenated(left(scope), right(scope), scope.env)


def _in(left: Closure, right: Closure) -> Closure:
    def run(scope: Scope) -> Collection:
        wanted = single(left(scope), "the left side of in")
        return [] if wanted is None else [operators.contains(right(scope), wanted, scope.env)]

    return run


def _contains(left: Closure, right: Closure) -> Closure:
    return _in(right, left)


_RELATIONS: dict[str, Callable[[Closure, Closure], Closure]] = {
    "=": _equality,
    "!=": _inequality,
    "~": _equivalence,
    "!~": _difference,
    "&": _concatenation,
    "in": _in,
    "contains": _contains,
}


def _variable(scope: Scope, name: str) -> Collection:
    env = scope.env
    if name in env.variables:
        value = env.variables[name]
        return list(value) if isinstance(value, (list, tuple)) and not isinstance(value, TypeInfo) else [value]
    if name == "context":
        return [env.root]
    if name in ("resource", "rootResource"):
        if not isinstance(env.root, Node):
            return []
        return [resource_of(env.root) if name == "resource" else root_of(env.root)]
    if name in _CONSTANTS:
        return [_CONSTANTS[name]]
    if name.startswith("vs-"):
        return [_VALUE_SET + name[3:]]
    if name.startswith("ext-"):
        return [_EXTENSION + name[4:]]
    raise FhirPathError(f"there is no variable %{name}")


def _nearest(name: str) -> str:
    from difflib import get_close_matches

    close = get_close_matches(name, functions.FUNCTIONS, n=1)
    return f"; did you mean {close[0]}()?" if close else ""
