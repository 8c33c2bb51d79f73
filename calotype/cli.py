"""The command line: `calotype NAME ...` calls the function of that name in COMMANDS. Nothing here is about one command.

`calotype --help` and the help of each command answer without importing torch.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from calotype.commands import COMMANDS, GROUPS, REPORTS, TOGETHER
from calotype.commands.parsing import parse
from calotype.core import environment, process
from calotype.core.display import for_stream
from calotype.core.report import Report
from calotype.errors import CalotypeError, ConfigError, StoppedElsewhere, is_out_of_memory

MORE_MEMORY = "close other programs, raise the limit of this one, or give smaller pictures or fewer at a time"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit status.

    Args:
        arguments: by default those of this process, whose streams and signals are then taken care of.
    """
    if arguments is None:
        return process.run(lambda: main(sys.argv[1:]))
    arguments = list(arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview())
        return 0
    if arguments[0] == "--version":
        from calotype import __version__

        print(__version__)
        return 0
    if arguments[0] not in COMMANDS:
        from difflib import get_close_matches

        close = get_close_matches(arguments[0], COMMANDS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"choose one of {', '.join(COMMANDS)}"
        print(f"calotype: {arguments[0]!r} is not a command: {hint}", file=sys.stderr)
        return 2
    return _run(arguments[0], arguments[1:])


def _overview() -> str:
    lines = ["Train an image generator on your own pictures, and put it to work.", "", "usage: calotype COMMAND ..."]
    for group, commands in GROUPS.items():
        lines += ["", f"{group}:"]
        lines += [f"  {command.__name__:11} {(command.__doc__ or '').splitlines()[0]}" for command in commands]
    return "\n".join([*lines, "", "`calotype COMMAND --help` says more; `calotype --version` the version."])


def _run(name: str, words: Sequence[str]) -> int:
    try:
        if name not in TOGETHER and environment.whole("WORLD_SIZE", 1, least=1) > 1:
            raise ConfigError(f"{name} runs in one process: start it without torchrun")
        arguments, as_json = parse(COMMANDS[name], words, reports=name in REPORTS)
        # A document on standard output is not to be mixed with progress.
        shown = for_stream(silent=as_json)
        if "display" in arguments.signature.parameters:
            arguments.arguments["display"] = shown
        result = COMMANDS[name](*arguments.args, **arguments.kwargs)
        return _print(result, as_json) if isinstance(result, Report) else 0
    except StoppedElsewhere as error:
        return error.exit_status
    except CalotypeError as error:
        rank = environment.text("RANK", "0")
        print(f"calotype: {'' if rank == '0' else f'process {rank}: '}{error}", file=sys.stderr)
        return error.exit_status
    except (MemoryError, RuntimeError, OSError) as error:
        if is_out_of_memory(error):
            reason, remedy = f"memory ran out ({error!r})", MORE_MEMORY
        elif isinstance(error, OSError) and isinstance(error.filename, str) and error.errno:
            reason, remedy = f"{error.filename} cannot be used ({error.strerror})", "mend that, and repeat the command"
        else:
            raise
        print(f"calotype: {reason}: {remedy}", file=sys.stderr)
        return CalotypeError.exit_status


def _print(report: Report, as_json: bool) -> int:
    from json import dumps

    print(dumps(report.as_dict(), indent=1) if as_json else report.text())
    return report.exit_status


if __name__ == "__main__":
    sys.exit(main())
