"""The command line: parse, call, print. No logic.

Every verb's heavy imports happen inside it, so that `foretext --help` is quick.
"""

import os
import sys

from foretext.cli import corpus, finetune, retrieval, training  # noqa: F401  (each adds its verbs)
from foretext.cli.app import app
from foretext.errors import UserError


def main() -> None:
    """Run the command line; a user's mistake is one sentence on stderr and exit code 2."""
    in_order = False
    try:
        app()
    except SystemExit as end:  # the way typer returns
        code, in_order = end.code, not end.code
    except UserError as error:
        print(f"foretext: {error}", file=sys.stderr)
        code = 2
    except FloatingPointError as error:
        print(f"foretext: {error}", file=sys.stderr)
        code = 3
    except Exception as error:
        if type(error).__name__ != "Stopped":
            raise
        print(f"foretext: {error}", file=sys.stderr)
        code, in_order = error.exit_code, True
    if in_order:
        _leave()  # here, where no traceback holds on to a network that holds on to its processes
    sys.exit(code)


def _leave() -> None:
    """Take leave of torchrun's other processes; not after a mistake, when they may be waiting for this one."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        from foretext.training.distributed import World

        World.leave()
