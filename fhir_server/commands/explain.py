"""`passerelle explain`: why a search answers what it answers, and what it costs."""

from __future__ import annotations

from fhir_server.commands.desk import operate
from fhir_server.commands.output import print_json
from fhir_server.commands.settings import Args, demo_or_own


def explain(args: Args) -> int:
    """The search in words, its SQL with its parameters, the database's own plan, the rows it met and the time."""
    told = operate(demo_or_own(args), args.operation, {"query": args.query})
    if args.json:
        print_json(told)
        return 0
    for title, lines in (
        ("Understood as", told["words"]),
        ("SQL", [told["sql"]]),
        ("Parameters", [repr(one) for one in told["params"]]),
        (f"Plan of {told['database']}", told["plan"]),
        ("Met", [f"{told['rows']} rows in {told['milliseconds']} ms (a page, and one more to know of the next)"]),
    ):
        print(title)
        for line in lines:
            print(f"  {line}")
    return 0
