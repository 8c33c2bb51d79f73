"""The command as a process, also as `python -m calotype` where only a module can be named, as by torchrun."""

import sys

from calotype.core import process


def main() -> int:
    """Run the command line of this process; returns its exit status. A signal is taken from the first import on."""

    def command() -> int:
        from calotype.cli import main

        return main(sys.argv[1:])

    return process.run(command)


if __name__ == "__main__":
    sys.exit(main())
