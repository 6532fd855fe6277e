"""The `mmfast` command. Each command imports what it needs when it runs, so that `mmfast --help` is instant."""

from __future__ import annotations

import sys

try:
    import typer
except ImportError:  # the ops alone need only torch and numpy
    sys.exit("the mmfast command needs its training packages: pip install 'mmfast[train]'")

app = typer.Typer(
    help="mmfast: align vision-language models with preferences.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
)


@app.command()
def doctor(as_json: bool = typer.Option(False, "--json", help="Print the findings as JSON.")) -> None:
    """Show versions, devices and backends, say which would be used and why, and test each op against its oracle."""
    from mmfast.doctor import examine, show

    findings = examine()
    show(findings, as_json=as_json)
    raise typer.Exit(1 if findings.problems else 0)


def main() -> None:
    """Entry point. A user's mistake (ValueError, a missing file) is one line; anything else keeps its traceback."""
    try:
        app()
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"mmfast: {error}")


if __name__ == "__main__":
    main()
