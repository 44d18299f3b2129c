"""What shapes the result of a search: the keys of `_sort`, and the references of `_include` and `_revinclude`.

Source: https://hl7.org/fhir/R4/search.html#return
"""

from __future__ import annotations

import dataclasses

from fhir_server import errors
from fhir_server.search import index, literals
from fhir_server.search.clauses import Asked, NoModifier, known, leads, parameter_of, ready, refused
from fhir_server.search.index import Parameter
from fhir_server.search.plan import Include, Sort

MAX_SORT_HOPS = 3


def sort_key(asked: Asked, key: str, descending: bool) -> Sort:
    """One key of `_sort`: `birthdate`, or `subject:Patient.birthdate`: the value of the resources referred to."""
    *hops, code = key.split(".")
    if len(hops) > MAX_SORT_HOPS:
        raise errors.TooLarge(f"`_sort` follows at most {MAX_SORT_HOPS} references.")
    chain: list[tuple[int, tuple[str, ...]]] = []
    for hop, following in zip(hops, [*hops, code][1:], strict=True):
        reference, _, kind = hop.partition(":")
        several = _sorted_by(asked, reference, key)
        parameter = several[0]
        if len({one.pid for one in several}) > 1:
            raise refused(f"`_sort={key[:200]}`: `{reference}` means different things on different types.")
        if parameter.type != "reference" or (kind and kind not in parameter.targets):
            raise refused(f"`_sort={key[:200]}`: `{hop[:100]}` leads nowhere; a chain is reference:Type.parameter.")
        types = (
            (kind,)
            if kind
            else tuple(one for one in parameter.targets if leads(one, following.partition(":")[0], False))
        )
        if len(types) != 1:
            raise refused(f"`_sort={key[:200]}`: say which type `{reference}` refers to, as in {reference}:Patient.")
        chain.append((parameter.pid, types))
        asked = dataclasses.replace(asked, types=types)
    every = _sorted_by(asked, code, key)
    found = every[0]
    if found.type in ("composite", "special"):
        raise refused(f"`{code}` cannot be sorted by; it is a {found.type} parameter.")
    pids = tuple(dict.fromkeys(one.pid for one in every))
    return Sort(found.code, found.type, found.pid, descending, tuple(chain), pids if len(pids) > 1 else ())


def _sorted_by(asked: Asked, code: str, key: str) -> list[Parameter]:
    """The parameter on every type asked; their values must be of one kind to be put in one order."""
    found = known(asked, code, "_sort")
    if len({(parameter.type, parameter.pid == 0) for parameter in found}) > 1:
        raise refused(f"`_sort={key[:200]}` means different things on different types.")
    return found


def include(name: str, modifier: str, text: str) -> Include:
    """`Observation:subject`, `Observation:subject:Patient`, `Observation:*` or `*`, of `_include` or `_revinclude`."""
    if modifier not in ("", "iterate", "recurse"):
        raise NoModifier(f"`{name}:{modifier[:50]}` is not known; the only modifier is :iterate.", http=400)
    reverse, iterate = name == "_revinclude", bool(modifier)
    if text == "*":
        return Include("", 0, (), reverse, iterate)
    source, _, rest = text.partition(":")
    code, _, target = rest.partition(":")
    if not literals.is_resource_type(source) or not code or (target and not literals.is_resource_type(target)):
        raise refused(f"`{name}={text[:200]}` is not of the form Type:parameter or Type:parameter:Target.")
    targets = (target,) if target else ()
    if code == "*":
        return Include(source, 0, targets, reverse, iterate)
    parameter = parameter_of(source, code)
    if parameter is None or parameter.type != "reference":
        has = sorted(one.code for one in index.parameters(source).values() if one.type == "reference")
        raise refused(f"`{name}={text[:200]}`: {source} has no reference parameter `{code}`. It has: {', '.join(has)}.")
    return Include(source, ready(parameter).pid, targets, reverse, iterate)
