"""What every command shares: mistakes end in one sentence and exit status 2, never in a stack trace."""

import pathlib
import sys
from collections.abc import Callable

import ml_collections
from absl import app, flags, logging
from ml_collections import config_flags

from pc2seg_jax.errors import UserError


def _fail(message: str) -> None:
    print(f"error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    sys.exit(2)


def _check_config(flag: flags.Flag) -> None:
    """A configuration file that cannot be opened would only raise when its first key is read."""
    path = pathlib.Path(config_flags.get_config_filename(flag).partition(":")[0])
    if not path.is_file():
        raise UserError(f"--config={path} is not a file: name one of configs/, or your own")
    if not isinstance(flag.value, ml_collections.ConfigDict):
        raise UserError(f"--config={path} must return the configuration from its get_config(), not {flag.value!r}")


def _parse(argv: list[str]) -> list[str]:
    """Reads the flags and, where there is one, runs the configuration file, which may raise anything."""
    try:
        rest = flags.FLAGS(argv)
        if "config" in flags.FLAGS and flags.FLAGS["config"].present:
            _check_config(flags.FLAGS["config"])
    except UserError as error:
        _fail(str(error))
    except flags.Error as error:
        flag, _, trace = str(error).partition("Error whilst parsing config file:")
        _fail(flag + trace.strip().rpartition("\n")[2])  # of a stack trace, the last line
    except Exception as error:
        inner = error.args[0] if error.args else error  # ml_collections wraps a KeyError into an AttributeError
        missing = inner if isinstance(inner, KeyError) else error
        if isinstance(missing, KeyError):
            key, _, hint = str(missing.args[0]).partition("\n")
            key = key.strip("'")
            _fail(f"in --config: there is no key {key!r}, see pc2seg_jax/config.py for all of them. {hint}")
        _fail(f"in --config: {type(error).__name__}: {error}")
    if len(rest) > 1:
        _fail(f"unexpected argument {rest[1]!r}: options are written --name=value, see --help")
    return rest


def run(main: Callable[[list[str]], None]) -> None:
    """Parses the flags and runs `main`, turning `UserError` into a line on stderr and exit status 2."""

    def guarded(argv: list[str]) -> None:
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.ERROR)  # Orbax tells of every file, and warns of being read-only
        try:
            main(argv)
        except UserError as error:
            _fail(str(error))

    app.run(guarded, flags_parser=_parse)
