"""Building blocks of the command line: the options of every command, help, and one line for every expected error."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import Any, NoReturn

import typer
from rich.text import Text
from typer.core import TyperGroup

from cli.errors import CliError, usage_error
from cli.shell import Shell, err

#: The root's options, which may also follow a subcommand.
_EVERYWHERE = ("url", "key", "data_dir", "as_json")
_EPILOG = "Every command also takes --url, --key, --data-dir and --json: see `alignez --help`."


class RootGroup(TyperGroup):
    """The `alignez` command: its options may also follow a subcommand, and each error is one line.

    Exit status: 1 for an error, 2 for an invalid command line, 130 after Ctrl-C.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        options = []
        for option in self.params:
            if option.name in _EVERYWHERE:
                again: Any = copy(option)
                again.hidden, again.expose_value, again.envvar, again.callback = True, False, None, _keep
                options.append(again)
        for command in self.commands.values():
            _add_options(command, options)

    def main(self, args: Sequence[str] | None = None, *rest: Any, **settings: Any) -> NoReturn:
        """Runs a command line; prints an error as text, or as JSON if `--json` is among the words."""
        words = list(sys.argv[1:] if args is None else args)
        settings["standalone_mode"] = False
        try:
            status = super().main(words, *rest, **settings)
        except SystemExit as error:
            if not isinstance(error.code, str):
                raise
            wrong_setting = CliError(error.code.removeprefix("alignez: "), code="wrong_setting")
            status = _explain(wrong_setting, as_json="--json" in words)
        except Exception as error:
            status = _explain(error, as_json="--json" in words)
        sys.exit(status if isinstance(status, int) else 0)


def new_app(help_text: str, *, root: bool = False) -> typer.Typer:
    """A typer app (or group of commands) with the settings of this project; the root has shell completion."""
    return typer.Typer(
        help=help_text,
        cls=RootGroup if root else TyperGroup,
        no_args_is_help=True,
        add_completion=root,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def _add_options(command: Any, options: list[Any]) -> None:
    command.params = [*command.params, *options]
    command.epilog = _EPILOG
    for inner in getattr(command, "commands", {}).values():
        _add_options(inner, options)


def _keep(context: typer.Context, option: Any, value: Any) -> None:
    """Stores an option that followed a subcommand. While a line is completed there is no `Shell`."""
    shell: Shell | None = context.obj
    if value and shell is not None:
        setattr(shell, option.name, Path(value) if option.name == "data_dir" else value)


def _explain(error: Exception, *, as_json: bool) -> int:
    """Prints an expected error and returns the exit status; raises any other error again."""
    if type(error).__name__ == "NoArgsIsHelpError":
        return 2  # typer has printed the help already
    found = _as_cli_error(error)
    if found is None:
        raise error
    if as_json:
        body = {"code": found.code, "message": str(found), "details": found.details, "request_id": found.request_id}
        print(json.dumps({"error": body}, ensure_ascii=False), file=sys.stderr)
    else:
        err.print(Text.assemble(("error: ", "bold red"), str(found)))
    return found.exit_status


def _as_cli_error(error: Exception) -> CliError | None:
    if isinstance(error, CliError):
        return error
    if isinstance(error, typer.Abort):
        return CliError("stopped, nothing was done", code="aborted")
    if isinstance(error, UnicodeEncodeError):
        return usage_error("the command line holds bytes that are not UTF-8 text")
    if isinstance(error, typer.TyperException):
        usage: Any = error
        context = getattr(usage, "ctx", None)
        path = context.command_path if context else "alignez"
        message = f"{usage.format_message().rstrip('.')}; see `{path} --help`"
        return CliError(message, code="usage_error", exit_status=int(usage.exit_code))
    if _is_of_a_library(error):
        advice = "; check ALIGNEZ_DATABASE_URL" if type(error).__name__ == "DatabaseUnavailable" else ""
        message = " ".join(str(error).split())  # a driver's message may have several lines
        return CliError(f"{message}{advice}", code=str(getattr(error, "code", "error")))
    return None


def _is_of_a_library(error: Exception) -> bool:
    """True for the errors of `profiles` and the core, which most commands do not import."""
    for module, name in (("profiles.errors", "ProfilesError"), ("alignez_core.errors", "AlignezError")):
        if module in sys.modules and isinstance(error, getattr(sys.modules[module], name)):
            return True
    return False
