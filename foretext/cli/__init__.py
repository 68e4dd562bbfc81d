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
    try:
        app()
    except SystemExit as end:  # the way typer returns
        if not end.code:
            _leave()
        raise
    except UserError as error:
        print(f"foretext: {error}", file=sys.stderr)
        sys.exit(2)
    except FloatingPointError as error:
        print(f"foretext: {error}", file=sys.stderr)
        sys.exit(3)
    except Exception as error:
        if type(error).__name__ != "Stopped":
            raise
        print(f"foretext: {error}", file=sys.stderr)
        _leave()
        sys.exit(error.exit_code)


def _leave() -> None:
    """Take leave of torchrun's other processes; not after a mistake, when they may be waiting for this one."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        from foretext.training.distributed import World

        World.leave()
