"""`python -m conformance list | run | report`: the command line of the judge. Exit 0 pass, 1 fail or error, 2 usage."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from conformance import report, runner
from conformance.target import UsageError, option_help, target

BEGIN, END = "<!-- checks: begin (generated) -->", "<!-- checks: end -->"
FORMATS = ("text", "junit", "json")


def main(argv: list[str] | None = None, *, prog: str = "python -m conformance") -> int:
    """Run one command; returns the exit code. `argv` excludes the program's name, `prog` is how help spells it."""
    parser = _parser(prog)
    try:
        arguments = parser.parse_args(argv)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 2
    try:
        return int(arguments.run(arguments))
    except UsageError as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{prog}: interrupted; nothing was judged", file=sys.stderr)
        return 1


def _parser(prog: str) -> argparse.ArgumentParser:
    about = "Judge a FHIR R4, HL7 v2 (IHE PAM France) or DICOM system from outside, clause by clause."
    parser = argparse.ArgumentParser(prog=prog, description=about)
    commands = parser.add_subparsers(required=True, metavar="list | run | report")

    one = commands.add_parser("list", help="the checks, with the clauses they verify")
    one.add_argument("--json", action="store_true", help="for programs")
    one.add_argument("--markdown", action="store_true", help="as the tables of docs/conformance.md")
    one.add_argument("--into", metavar="FILE", help="write those tables between the marks of a Markdown file")
    one.set_defaults(run=_list)

    settings = "\n".join(f"  {name} (default {default!r}): {text}" for name, default, text in option_help())
    one = commands.add_parser(
        "run",
        help="judge a system",
        epilog=f"settings (--set NAME=VALUE):\n{settings}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    one.add_argument("--target", action="append", default=[], metavar="WIRE=URL", help="once per wire")
    one.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting, see below")
    one.add_argument("--only", action="append", default=[], metavar="PATTERN", help="these checks, such as 'fhir.*'")
    one.add_argument("--omit", action="append", default=[], metavar="PATTERN", help="all but these checks")
    one.add_argument("--level", choices=("N1", "N2", "N3"), help="checks of one level")
    one.add_argument("--json", action="store_true", help="print JSON instead of text")
    one.add_argument("--junit", metavar="FILE", help="also write JUnit XML")
    one.add_argument("--out", metavar="FILE", help="also write JSON, for `report`")
    one.set_defaults(run=_run)

    one = commands.add_parser("report", help="show a run that was kept with --out")
    one.add_argument("file", metavar="FILE")
    one.add_argument("--format", choices=FORMATS, default="text")
    one.add_argument("--json", action="store_const", const="json", dest="format", help="same as --format json")
    one.set_defaults(run=_report)
    return parser


def _list(arguments: argparse.Namespace) -> int:
    checks = runner.load()
    if arguments.into:
        path = Path(arguments.into)
        page = path.read_text(encoding="utf-8")
        before, found, rest = page.partition(BEGIN)
        _, closed, after = rest.partition(END)
        if not found or not closed:
            raise UsageError(f"{path} lacks the lines {BEGIN} and {END}")
        path.write_text(f"{before}{BEGIN}\n\n{report.markdown(checks)}\n{END}{after}", encoding="utf-8")
        return 0
    print(report.markdown(checks) if arguments.markdown else report.listing(checks, as_json=arguments.json), end="")
    return 0


def _run(arguments: argparse.Namespace) -> int:
    judged = target(arguments.target, arguments.set)
    live = not arguments.json and sys.stdout.isatty()

    def progress(result: runner.Result) -> None:
        if live and judged.address(result.wire) is not None:
            print(report.line(result), flush=True)

    done = runner.run(judged, only=arguments.only, omit=arguments.omit, level=arguments.level, progress=progress)
    print(report.dump(done) if arguments.json else report.text(done, lines=not live), end="")
    if arguments.junit:
        Path(arguments.junit).write_text(report.junit(done), encoding="utf-8")
    if arguments.out:
        Path(arguments.out).write_text(report.dump(done), encoding="utf-8")
    return done.exit_code


def _report(arguments: argparse.Namespace) -> int:
    try:
        kept = report.read(Path(arguments.file).read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"{arguments.file}: {error}") from None
    write = {"text": report.text, "junit": report.junit, "json": report.dump}[arguments.format]
    print(write(kept), end="")
    return kept.exit_code


if __name__ == "__main__":
    sys.exit(main())
