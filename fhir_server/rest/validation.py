"""$validate: would this server take it? The check of structure in front of every write, and with a mode all the rest.

With a mode the request is decided as the write itself would be (identity, rules of a case, integrity), and nothing is
written. The answer is 200 with an OperationOutcome, valid or not; an error status says that nothing could be judged.

Source: https://hl7.org/fhir/R4/resource-operation-validate.html
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fhir_server.changes import Change, Hub, judge, read_current
from fhir_server.errors import Invalid, Issue, Malformed, PasserelleError, Unsupported
from fhir_server.rest import resources
from fhir_server.rest.conditional import RENDERING
from fhir_server.rest.http import Request, Response, json_response, outcome, resource_body
from fhir_server.security.scopes import demand
from profiles import json_text
from profiles.validator.structure import check

Resource = dict[str, Any]
DEFINITION = "http://hl7.org/fhir/OperationDefinition/Resource-validate"
_BASE = "http://hl7.org/fhir/StructureDefinition/"
_VERSION = "|4.0.1"
_NAMES = ("resource", "mode", "profile")
# What a mode asks for of an access token: the right to do what it tries.
_LETTERS: Mapping[str, str] = {"": "r", "profile": "r", "create": "c", "update": "u", "delete": "d"}


@dataclass(frozen=True, slots=True)
class _Asked:
    """The operation's parameters; `resource` is None when what is stored is meant."""

    mode: str
    resource: Resource | None


def of_type(hub: Hub, request: Request) -> Response:
    """POST [base]/[type]/$validate."""
    return _answer(hub, request, resources.known_type(request.path_args["type"]), "")


def of_instance(hub: Hub, request: Request) -> Response:
    """GET and POST [base]/[type]/[id]/$validate; without a resource the stored one is judged."""
    kind = resources.known_type(request.path_args["type"])
    return _answer(hub, request, kind, resources.known_id(kind, request.path_args["id"]))


def _answer(hub: Hub, request: Request, kind: str, key: str) -> Response:
    asked = _asked(hub, request, kind)
    demand(request.caller, kind, _LETTERS[asked.mode])
    if asked.mode in ("delete", "profile") and not key:
        text = f"mode={asked.mode} is about a stored resource; ask at [base]/{kind}/[id]/$validate"
        raise Invalid(text, expression=kind, http=400, code="required")
    resource = asked.resource
    if (resource is None and asked.mode in ("create", "update")) or (resource is None and not key):
        raise Invalid("send the resource to judge", expression="Parameters.parameter", http=400, code="required")
    if resource is None and asked.mode != "delete":
        resource = read_current(hub, request.caller, kind, key).resource()
    issues = _issues(hub, request, kind, key, asked.mode, resource)
    return json_response(request, 200, json_text.write(outcome(issues)))


def _issues(hub: Hub, request: Request, kind: str, key: str, mode: str, resource: Resource | None) -> list[Issue]:
    """What is wrong, or that nothing is."""
    found: list[Issue] = []
    if mode != "delete" and resource is not None:
        if resource["resourceType"] != kind:
            text = f"the address is about {kind}, the resource is a {str(resource['resourceType'])[:80]}"
            return [Issue("error", "invalid", text, "resourceType")]
        found = [Issue(f.severity, f.code, f.diagnostics, f.expression) for f in check(resource)]
        found += _unchecked(kind, resource)
    if all(issue.severity not in ("fatal", "error") for issue in found) and mode in _MODES:
        try:
            judge(hub, request.caller, [_MODES[mode](kind, key, resource or {}, request.base)])
        except PasserelleError as error:
            if error.http == 429 or error.http >= 500:
                raise  # nothing was judged
            found += error.issues
    if not found:
        found = [Issue("information", "informational", "nothing was found that this server would refuse", kind)]
    return found


def _unchecked(kind: str, resource: Resource) -> list[Issue]:
    """That profiles the resource claims were not looked at."""
    meta = resource.get("meta")
    claimed = meta.get("profile") if isinstance(meta, dict) else None
    named = [one for one in claimed if isinstance(one, str)] if isinstance(claimed, list) else []
    told = [one[:200] for one in named if one.removesuffix(_VERSION) != _BASE + kind]
    text = "profiles are not checked yet, base R4 is: " + ", ".join(told[:5])
    return [Issue("information", "not-supported", text, f"{kind}.meta.profile")] if told else []


def _created(kind: str, key: str, resource: Resource, base: str) -> Change:
    return Change("create", kind, resource=resource, base=base)


def _updated(kind: str, key: str, resource: Resource, base: str) -> Change:
    named = resource.get("id")
    if not named or (key and named != key):
        text = f"an update sends the id of its address ({key or 'none here'}), the resource says {str(named)[:80]}"
        raise Invalid(text, expression=f"{kind}.id", code="value")
    return Change("update", kind, str(named), resource, base=base)


def _deleted(kind: str, key: str, resource: Resource, base: str) -> Change:
    return Change("delete", kind, key, base=base)


_MODES: Mapping[str, Callable[[str, str, Resource, str], Change]] = {
    "create": _created,
    "update": _updated,
    "delete": _deleted,
}


def _asked(hub: Hub, request: Request, kind: str) -> _Asked:
    """The parameters of the address and of the body, which is a resource or a Parameters that holds them."""
    told: dict[str, Any] = {}
    for name, value in request.query:
        if name in ("mode", "profile"):
            _tell(told, name, value, name)
        elif name not in RENDERING:
            raise Invalid(f"$validate has no parameter {name[:64]}; it takes mode and profile", http=400)
    if request.body.strip():
        body = resource_body(request, hub.settings.max_body_mib * resources.MIB)
        parts = body.get("parameter") if body["resourceType"] == "Parameters" else None
        if parts is None or (kind == "Parameters" and not _wraps(parts)):
            told["resource"] = body
        else:
            _unwrapped(parts, told)
    elif request.method == "POST" and told.get("mode") != "delete":
        raise Malformed("the request has no body; send the resource, or Parameters that hold it")
    mode = told.get("mode", "")
    if not isinstance(mode, str) or mode not in _LETTERS:
        text = f"mode is create, update, delete or profile, not {str(mode)[:40]}"
        raise Invalid(text, expression="Parameters.parameter", http=400, code="value")
    profile = told.get("profile", _BASE + kind)
    if not isinstance(profile, str) or profile.removesuffix(_VERSION) != _BASE + kind:
        text = (
            f"the profile {str(profile)[:200]} is not known here: {_BASE + kind} is the only one that can be asked for "
            "yet; leave `profile` out"
        )
        raise Unsupported(text, expression="Parameters.parameter", http=422)
    return _Asked(mode, told.get("resource"))


def _wraps(parts: Any) -> bool:
    """Whether the parameters are those of the operation."""
    listed = parts if isinstance(parts, list) else []
    return any(isinstance(part, dict) and part.get("name") in _NAMES for part in listed)


def _unwrapped(parts: Any, told: dict[str, Any]) -> None:
    for index, part in enumerate(parts if isinstance(parts, list) else [parts]):
        place = f"Parameters.parameter[{index}]"
        name = part.get("name") if isinstance(part, dict) else None
        if name not in _NAMES:
            text = f"$validate takes {', '.join(_NAMES)}, not {str(name)[:64]}"
            raise Invalid(text, expression=f"{place}.name", http=400, code="value")
        if name == "resource":
            value = part.get("resource")
            if not isinstance(value, dict) or not isinstance(value.get("resourceType"), str):
                raise Invalid("the parameter holds no resource", expression=f"{place}.resource", http=400)
        else:
            value = next((part[key] for key in part if key.startswith("value")), "")
        _tell(told, name, value, place)


def _tell(told: dict[str, Any], name: str, value: Any, place: str) -> None:
    if name in told:
        raise Invalid(f"`{name}` stands twice; send it once", expression=place, http=400)
    told[name] = value
