"""The page of all commands, from the typer applications themselves."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from typing import Final

import click
import typer.main

from lift.errors import EXIT_CODES

APPLICATIONS: Final = {
    "lift": "lift.cli",
    "lift-client": "lift_client.cli",
    "lift-server": "lift_server.cli",
    "lift-simulate": "lift_simulation.cli",
}
"""Program -> the module that holds its `app`."""
_INTRODUCTION: Final = """\
# Commands

Four programs: `lift` works on files, `lift-client` is a hospital's side, `lift-server` is the
coordinator's side, `lift-simulate` runs a whole federation in one process. `--help` of each command
prints the same text as this page, which is generated from the programs.

To resume an interrupted command, run it again. Results go to stdout, messages to stderr. The exit
codes are listed on a [page of their own](exit-codes.md). `make help` lists the targets of the
Makefile, which are on the [page of figures](../figures.md).
"""
_EXIT_CODES: Final = """\
# Exit codes

All programs share one table. A message names the kind and the code in brackets, for example
`[data, exit 3]`, and has four parts: what failed, where, what was seen against what is needed, and
what to do next. The guides say what each code means for
[sites](../guides/site.md#what-can-go-wrong) and
[coordinators](../guides/coordinator.md#what-can-go-wrong). 130 means that somebody stopped the
command.

| code | kind | meaning |
|---|---|---|"""


def command_page() -> str:
    """The whole page as Markdown: usage, help and options of every command."""
    lines = [_INTRODUCTION]
    for program in APPLICATIONS:
        command = application(program)
        lines += [f"## {program}", "", *_described(command, program)]
        for name, inner in subcommands(command, program):
            lines += [f"### {name}", "", *_described(inner, name)]
    return "\n".join(lines)


def exit_code_page() -> str:
    """The table of exit codes, which all programs share, as Markdown."""
    rows = [f"| {c.number} | {c.label} | {c.help} |" for c in EXIT_CODES.values()]
    return "\n".join([_EXIT_CODES, *rows, ""])


def application(program: str) -> click.Command:
    """The click command of one program."""
    return typer.main.get_command(importlib.import_module(APPLICATIONS[program]).app)


def subcommands(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    """Every command below one, with its full name, in the order in which help lists them."""
    if not isinstance(command, click.Group):
        return
    for name, inner in command.commands.items():
        if isinstance(inner, click.Group):
            yield from subcommands(inner, f"{path} {name}")
        else:
            yield f"{path} {name}", inner


def _described(command: click.Command, path: str) -> list[str]:
    context = click.Context(command, info_name=path)
    pieces = " ".join(command.collect_usage_pieces(context))
    lines = ["```text", f"{path} {pieces}", "```", "", inspect.cleandoc(command.help or ""), ""]
    rows = [_row(parameter, context) for parameter in command.params]
    if rows:
        lines += ["| option | meaning |", "|---|---|", *rows, ""]
    return lines


def _row(parameter: click.Parameter, context: click.Context) -> str:
    if isinstance(parameter, click.Option):
        names = ", ".join(f"`{name}`" for name in [*parameter.opts, *parameter.secondary_opts])
        value = "" if parameter.is_flag else f" `{parameter.make_metavar(context)}`"
    else:
        names, value = f"`{parameter.make_metavar(context)}`", ""
    told = " ".join(str(getattr(parameter, "help", None) or "").split())
    needed = " **Required.**" if parameter.required else ""
    return f"| {(names + value).replace('|', chr(92) + '|')} | {told}{needed} |"
