"""What every command shares: mistakes end in one sentence and exit status 2, never in a stack trace."""

import sys
from collections.abc import Callable

from absl import app, flags, logging

from pc2seg_jax.errors import UserError


def _fail(message: str) -> None:
    print(f"error: {message}", file=sys.stderr, flush=True)
    sys.exit(2)


def _parse(argv: list[str]) -> list[str]:
    try:
        rest = flags.FLAGS(argv)
        for name in flags.FLAGS:
            if name == "config":  # a config file is read at the first access only
                _ = flags.FLAGS[name].value
    except flags.Error as error:
        _fail(str(error).replace("\n", " "))
    except (AttributeError, KeyError, TypeError, ValueError, OSError, ImportError) as error:
        _fail(f"in --config: {error}")
    if len(rest) > 1:
        _fail(f"unexpected argument {rest[1]!r}: options are written --name=value, see --help")
    return rest


def run(main: Callable[[list[str]], None]) -> None:
    """Parses the flags and runs `main`, turning `UserError` into a line on stderr and exit status 2."""

    def guarded(argv: list[str]) -> None:
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)  # Orbax tells of every file it writes at INFO
        try:
            main(argv)
        except UserError as error:
            _fail(str(error))

    app.run(guarded, flags_parser=_parse)
