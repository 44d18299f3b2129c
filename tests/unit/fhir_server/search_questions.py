"""Random searches made out of values that exist, for the oracle and the store to answer both."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from random import Random
from typing import Any

from oracle_values import (
    CODE_SYSTEMS,
    DATE,
    PREFIXES,
    UCUM,
    UNITS,
    Definition,
    Key,
    measures,
    numbers,
    pointers,
    strings,
    tokens,
    words,
)
from search_oracle import Oracle

from fhir_server.search import index
from fhir_server.store.engine import Store


@dataclass
class World:
    """The same resources on a database and in the oracle; `uses` lists the parameters with values, by type."""

    store: Store
    oracle: Oracle
    uses: dict[str, list[Definition]]


class Asker:
    """Makes questions out of values that exist, so that most have answers, and bends them so that some have none."""

    def __init__(self, world: World, dice: Random) -> None:
        self.world, self.oracle, self.random = world, world.oracle, dice
        self.kinds = sorted({key[0] for key in self.oracle.all})
        self.held = sorted({key[0] for key in self.oracle.held})
        self.keys: dict[str, list[Key]] = {kind: [] for kind in world.uses}
        for key in sorted((*self.oracle.all, *self.oracle.held)):
            self.keys[key[0]].append(key)

    def question(self, kinds: Sequence[str] = ()) -> tuple[str, list[tuple[str, str]]]:
        """A type, one of `kinds` or any, and its parameters."""
        while True:
            kind = self.random.choice(kinds or self.kinds)
            pairs = [pair for _ in range(self.random.choice((1, 1, 2, 3))) if (pair := self.pair(kind, 0)) is not None]
            if pairs:
                return kind, [*pairs, *self.sort(kind)]

    def sort(self, kind: str) -> list[tuple[str, str]]:
        if self.random.random() < 0.6:
            return []
        usable = [one.code for one in self.world.uses[kind] if one.type not in ("composite", "special")]
        codes = self.random.sample(usable, min(len(usable), self.random.choice((1, 1, 2))))
        if self.random.random() < 0.3 and (chained := self.chained_key(kind)) is not None:
            codes.insert(0, chained)
        return [("_sort", ",".join(self.random.choice(("", "-")) + code for code in codes))]

    def chained_key(self, kind: str) -> str | None:
        """`subject:Patient.birthdate`: a key of the order that is the value of the resource referred to."""
        references = [one for one in self.world.uses[kind] if one.type == "reference"]
        if not references:
            return None
        code = self.random.choice(references).code
        pointer = self.any_of([p for v in self.some(kind, code) for p in pointers(v)])
        if (
            pointer is None
            or pointer.key not in self.oracle.all
            or pointer.key[0] not in index.parameters(kind)[code].targets
        ):
            return None
        usable = [one for one in self.world.uses[pointer.key[0]] if one.type not in ("composite", "special")]
        return f"{code}:{pointer.key[0]}.{self.random.choice(usable).code}"

    def filter(self, kind: str) -> tuple[str, str] | None:
        """`_filter` of one to three comparisons, some of them negated."""
        parts: list[str] = []
        for _ in range(self.random.choice((1, 2, 3))):
            usable = [one for one in self.world.uses[kind] if one.type in ("string", "token", "date")]
            definition = self.random.choice(usable)
            if definition.code == "_lastUpdated":
                continue
            if self.random.random() < 0.15:
                part = f"{definition.code} pr {self.random.choice(('true', 'false'))}"
            else:
                said = self.compared(kind, definition)
                if said is None:
                    continue
                quoted = said[1].replace("\\", "\\\\").replace('"', '\\"')
                part = f'{definition.code} {said[0]} "{quoted}"'
            parts.append(f"not ({part})" if self.random.random() < 0.2 else part)
        if not parts:
            return None
        text = parts[0]
        for part in parts[1:]:
            text += f" {self.random.choice(('and', 'or'))} {part}"
        return "_filter", text

    def compared(self, kind: str, definition: Definition) -> tuple[str, str] | None:
        """An operator of `_filter` and a value, for a string, a token or a date."""
        values = self.some(kind, definition.code)
        if definition.type == "string":
            text = self.any_of([one for value in values for one in strings(value)])
            operator = self.random.choice(("eq", "ne", "co", "sw", "ew"))
            if text and operator in ("co", "sw", "ew"):
                text = text[:5] if operator == "sw" else text[-5:]
            return (operator, text) if text and any(char.isalnum() for char in text) else None
        if definition.type == "token":
            found = self.any_of([one for value in values for one in tokens(value, "")])
            return ("eq", found[1]) if found and found[1] and "|" not in found[1] else None
        text = self.any_of([one for value in values for one in _dates(value)])
        return (self.random.choice(("eq", "gt", "lt", "ge", "le", "sa", "eb")), text) if text else None

    def full_text(self, kind: str) -> tuple[str, str] | None:
        """One or two words that one of the resources has."""
        name = self.random.choice(("_text", "_content"))
        key = self.random.choice(self.keys[kind])
        known = [one for one in words(self.oracle.resource(key), narrative=name == "_text") if len(one) < 50]
        known = [one for one in known if one not in ("and", "or", "not")]
        if not known:
            return None
        return name, " ".join(self.random.choices(known, k=self.random.choice((1, 1, 2))))

    def pair(self, kind: str, depth: int) -> tuple[str, str] | None:
        """One `name=text` on a type; None when luck found no value."""
        chance = self.random.random()
        if depth < 3 and chance < 0.15:
            return self.chain(kind, depth)
        if depth < 3 and chance < 0.25:
            return self.has(kind, depth)
        if depth == 0 and chance > 0.93:
            return self.filter(kind)
        if chance > 0.88:
            return self.full_text(kind)
        if chance < 0.3:
            return "_id", ",".join(key[1].rpartition("#")[2] for key in self.random.choices(self.keys[kind], k=3))
        sort = self.random.choice(sorted({one.type for one in self.world.uses[kind]}))
        definition = self.random.choice([one for one in self.world.uses[kind] if one.type == sort])
        if chance < 0.36 and definition.code != "_lastUpdated" and definition.type != "composite":
            return f"{definition.code}:missing", self.random.choice(("true", "false"))
        make: Callable[[str, Definition], tuple[str, str | None]] = getattr(self, definition.type)
        modifier, first = make(kind, definition)
        if first is None:
            return None
        texts = [first]
        while self.random.random() < 0.25:
            again, other = make(kind, definition)
            if other is not None and again == modifier:
                texts.append(other)
        return definition.code + (f":{modifier}" if modifier else ""), ",".join(texts)

    def chain(self, kind: str, depth: int) -> tuple[str, str] | None:
        references = [one for one in self.world.uses[kind] if one.type == "reference"]
        if not references:
            return None
        definition = self.random.choice(references)
        target = self.any_of(
            [one for key in self.random.choices(self.keys[kind], k=12) for one in self.led(key, definition)]
        )
        if target is None or target[0] not in index.parameters(kind)[definition.code].targets:
            return None
        inner = self.pair(target[0], depth + 1)
        if inner is None:
            return None
        return f"{definition.code}:{target[0]}.{inner[0]}", inner[1]

    def led(self, key: Key, definition: Definition) -> list[Key]:
        """What the references of a resource lead to."""
        found = (p for value in self.oracle.values(key, definition.code) for p in pointers(value))
        return [target for one in found if (target := self.oracle.target(key, one)) is not None]

    def has(self, kind: str, depth: int) -> tuple[str, str] | None:
        source = self.random.choice(self.kinds)
        able = [p for p in self.world.uses[source] if kind in index.parameters(source)[p.code].targets]
        inner = self.pair(source, depth + 1)
        if not able or inner is None:
            return None
        return f"_has:{source}:{self.random.choice(able).code}:{inner[0]}", inner[1]

    # --- one text of each type

    def some(self, kind: str, code: str) -> list[Any]:
        """The values of one of a few resources that have any."""
        for key in self.random.choices(self.keys[kind], k=12):
            found = self.oracle.values(key, code)
            if found:
                return found
        return []

    def any_of(self, values: list[Any]) -> Any:
        return self.random.choice(values) if values else None

    @staticmethod
    def escaped(text: str) -> str:
        for sign in "\\,|$":
            text = text.replace(sign, "\\" + sign)
        return text

    def string(self, kind: str, definition: Definition) -> tuple[str, str | None]:
        text = self.any_of([one for value in self.some(kind, definition.code) for one in strings(value)])
        modifier = self.random.choice(("", "", "exact", "contains"))
        if text is None or not text.strip():
            return modifier, None
        if modifier != "exact":
            start = self.random.randrange(len(text)) if modifier == "contains" else 0
            text = text[start : start + self.random.randint(1, 12)]
            text = self.random.choice((text, text.upper(), text.lower()))
        elif self.random.random() < 0.2:
            text = text.swapcase()
        return modifier, self.escaped(text) if any(char.isalnum() for char in text) else None

    def token(self, kind: str, definition: Definition) -> tuple[str, str | None]:
        if definition.code == "_id":
            return "", None
        system = CODE_SYSTEMS.get((kind, definition.code))
        values = self.some(kind, definition.code)
        found = self.any_of([one for value in values for one in tokens(value, system or "")])
        if found is None:
            return "", None
        modifier = self.random.choice(("", "", "", "not", "text"))
        if modifier == "text":
            text = found[2][self.random.randrange(max(1, len(found[2]))) :][:10]
            return modifier, self.escaped(text) if any(char.isalnum() for char in text) else None
        bare_code = isinstance(values[0], str) and system is None
        forms = ("code",) if bare_code else ("code", "both", "system", "none")
        form = self.random.choice(forms)
        has_system, code = self.escaped(found[0]), self.escaped(found[1])
        texts = {"code": code, "both": f"{has_system}|{code}", "system": f"{has_system}|", "none": f"|{code}"}
        return modifier, texts[form] if texts[form] not in ("", "|") else None

    def date(self, kind: str, definition: Definition) -> tuple[str, str | None]:
        texts = [one for value in self.some(kind, definition.code) for one in _dates(value)]
        text = self.any_of(texts)
        if text is None:
            return "", None
        if self.random.random() < 0.5:
            text = text[: self.random.choice((4, 7, 10))]
        if self.random.random() < 0.2:
            text = f"{int(text[:4]) + self.random.choice((-1, 1))}{text[4:]}".replace("-02-29", "-02-28")
        return "", self.random.choice(("", *PREFIXES)) + text

    def stretch(self, kind: str) -> list[tuple[str, str]]:
        """Two or three conditions on one date parameter, now and then beside another one; [] when luck found none."""
        definition = self.random.choice([one for one in self.world.uses[kind] if one.type == "date"])
        texts = [text for _ in range(4) if (text := self.date(kind, definition)[1]) is not None][:3]
        pairs = [(definition.code, text) for text in texts[: self.random.choice((2, 2, 3))]]
        further = self.pair(kind, 0) if self.random.random() < 0.3 else None
        return [*pairs, *([further] if further else [])] if len(pairs) > 1 else []

    def number(self, kind: str, definition: Definition) -> tuple[str, str | None]:
        found = self.any_of([one for value in self.some(kind, definition.code) for one in numbers(value)])
        return "", None if found is None else self.amount(found[0])

    def amount(self, value: Decimal) -> str | None:
        if not value.is_finite():
            return None
        if self.random.random() < 0.4:
            value = round(value, self.random.choice((0, 1)))
        return self.random.choice(("", "", *PREFIXES)) + f"{value:f}"

    def quantity(self, kind: str, definition: Definition) -> tuple[str, str | None]:
        found = self.any_of([one for value in self.some(kind, definition.code) for one in measures(value)])
        if found is None:
            return "", None
        unit, value = found.code, found.low if found.low.is_finite() else found.high
        others = [code for code, (_, base) in UNITS.items() if unit in UNITS and base == UNITS[unit][1]]
        if found.system == UCUM and others and self.random.random() < 0.6:
            other = self.random.choice(others)
            value = (value * UNITS[unit][0] / UNITS[other][0]).normalize()
            unit = other
        amount = self.amount(value)
        if amount is None or len(amount) > 30:
            return "", None
        form = self.random.choice(("bare", "both", "unit"))
        known = unit in UNITS or found.system != UCUM
        if form == "bare" or not unit or not known:
            return "", amount
        return "", f"{amount}|{self.escaped(found.system) if form == 'both' else ''}|{self.escaped(unit)}"

    def reference(self, kind: str, definition: Definition) -> tuple[str, str | None]:
        pointer = self.any_of([one for value in self.some(kind, definition.code) for one in pointers(value)])
        if pointer is None:
            return "", None
        if pointer.identifier and self.random.random() < 0.5:
            system, number = pointer.identifier
            return "identifier", f"{self.escaped(system)}|{self.escaped(number)}" if system and number else None
        if pointer.key is None:
            return "", self.escaped(pointer.url) if ":" in pointer.url and pointer.url[0] != "#" else None
        target, key = pointer.key
        if target not in index.parameters(kind)[definition.code].targets:
            return "", f"{target}/{key}"
        modifier, text = self.random.choice((("", f"{target}/{key}"), ("", key), (target, key)))
        return modifier, text

    def uri(self, kind: str, definition: Definition) -> tuple[str, str | None]:
        text = self.any_of(self.some(kind, definition.code))
        if not text:
            return "", None
        modifier = self.random.choice(("", "below", "above"))
        if modifier == "below" and "/" in text.split("://")[-1]:
            text = text.rsplit("/", 1)[0]
        if modifier == "above":
            text = f"{text}/further"
        return modifier, self.escaped(text)

    def special(self, kind: str, definition: Definition) -> tuple[str, str | None]:
        place = self.any_of(self.some(kind, definition.code))
        if place is None:
            return "", None
        north, east = (float(place[name]) + self.random.uniform(-0.5, 0.5) for name in ("latitude", "longitude"))
        return "", f"{north:.6f}|{east:.6f}|{self.random.choice((1, 20, 60, 300, 9000))}|km"

    def composite(self, kind: str, definition: Definition) -> tuple[str, str | None]:
        """Mostly a pair of one element, at times a code and the value of another one."""
        if index.parameters(kind)[definition.code].composite is None:
            return "", None
        holders = self.some(kind, definition.code)
        parts = range(len(definition.components))
        texts = [self.component(kind, definition, at, self.any_of(holders)) for at in parts]
        if self.random.random() < 0.8 and holders:
            holder = self.random.choice(holders)
            texts = [self.component(kind, definition, at, holder) for at in parts]
        return "", None if None in texts else "$".join(str(text) for text in texts)

    def component(self, kind: str, definition: Definition, at: int, holder: Any) -> str | None:
        if holder is None:
            return None
        sort, values = self.oracle.component(kind, definition, at, holder)
        value = self.any_of(values)
        if value is None:
            return None
        if sort == "token":
            inner = self.oracle.by_url[definition.components[at][0]].code
            found = [one for one in tokens(value, CODE_SYSTEMS.get((kind, inner), "")) if one[1]]
            if not found:
                return None
            system, code = self.random.choice(found)[:2]
            return f"{self.escaped(system)}|{self.escaped(code)}" if self.random.random() < 0.7 else self.escaped(code)
        # The makers of the other types take their value from `some`.
        stand_in = Definition("", definition.code, sort, "", (), ())
        make: Callable[[str, Definition], tuple[str, str | None]] = getattr(self, sort)
        some, self.some = self.some, lambda kind, code: [value]  # type: ignore[method-assign]  # for this one make
        try:
            modifier, text = make(kind, stand_in)
        finally:
            self.some = some  # type: ignore[method-assign]  # as it was
        return None if modifier else text


def _dates(value: Any) -> Iterator[str]:
    if isinstance(value, str) and DATE.fullmatch(value):
        yield value
    elif isinstance(value, dict):
        for name in ("start", "end"):
            if name in value:
                yield value[name]
        for inner in (*value.get("event", ()), value.get("repeat", {}).get("boundsPeriod")):
            yield from _dates(inner)


def rules(asker: Asker) -> list[tuple[str, str]]:
    """One to three random includes, `:iterate` and `*` among them."""
    made: list[tuple[str, str]] = []
    while len(made) < asker.random.choice((1, 2, 3)):
        kind, name = asker.random.choice(asker.kinds), asker.random.choice(("_include", "_revinclude"))
        codes = [one.code for one in asker.world.uses[kind] if one.type == "reference"]
        if not codes:
            continue
        code = asker.random.choice((asker.random.choice(codes), "*"))
        text = "*" if asker.random.random() < 0.1 else f"{kind}:{code}"
        if code != "*" and text != "*" and asker.random.random() < 0.3:
            targets = index.parameters(kind)[code].targets
            text += f":{asker.random.choice(targets)}" if targets else ""
        made.append((name + asker.random.choice(("", ":iterate")), text))
    return made
