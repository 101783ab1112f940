"""What every command shares: mistakes end in one sentence and exit status 2, never in a stack trace."""

import errno
import os
import pathlib
import re
import select
import signal
import sys
from collections.abc import Callable

import ml_collections
from absl import app, flags, logging
from ml_collections import config_flags

from pc2seg_jax.errors import UserError

# What a file system says of itself rather than of a mistake in the program.
_DISK = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
    errno.ENAMETOOLONG,
}


def define_process_flags() -> None:
    """The flags of commands that may run as several processes, for `join_processes`."""
    flags.DEFINE_string(
        "coordinator", None, "host:port of process 0. On TPU pods, Slurm and Open MPI processes are found without."
    )
    flags.DEFINE_integer("num_processes", 0, "How many processes there must be; 0: any number.", lower_bound=0)
    flags.DEFINE_integer("process_id", None, "Which of them this is, with --coordinator.", lower_bound=0)
    flags.DEFINE_float(
        "peer_timeout", 300.0, "Seconds without a finished step after which one of several gives up.", lower_bound=1.0
    )


def join_processes() -> None:
    """Makes this process one of several where the flags or the cluster say so, before any other use of JAX."""
    from pc2seg_jax import processes

    names = ("coordinator", "num_processes", "process_id", "peer_timeout")
    processes.initialize(**{name: flags.FLAGS[name].value for name in names})


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


def _without_values(sentence: str) -> str:
    """Absl's sentence about a flag that is missing, or about several flags, without its list of their values."""
    if missing := re.fullmatch(r"flag --(\w+)=None: Flag --\w+ must have a value other than None\.", sentence):
        return f"--{missing[1]} is missing: {flags.FLAGS[missing[1]].help}"
    return re.sub(r"^flags .*?: ", "", sentence)


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
        message = flag + trace.strip().rpartition("\n")[2]  # of a stack trace, the last line
        _fail("\n".join(map(_without_values, message.splitlines())))
    except BrokenPipeError:
        raise  # --help is shown from here
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


def _reader_is_gone() -> bool:
    """Whether nobody reads standard output any more."""
    poll = select.poll()
    poll.register(sys.stdout, 0)
    return bool(poll.poll(0))


def run(main: Callable[[list[str]], None]) -> None:
    """Parses the flags and runs `main`, turning `UserError` and a full disk into a line on stderr and exit status 2.

    Where a pipe such as `| head` has read enough, it ends as other programs do: without a word, exit status 141.
    """

    def guarded(argv: list[str]) -> None:
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.ERROR)  # Orbax tells of every file, and warns of being read-only
        try:
            main(argv)
        except UserError as error:
            _fail(str(error))
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(130)

    try:
        try:
            app.run(guarded, flags_parser=_parse)
        finally:
            print(end="", flush=True)  # while what it raises can be answered; does nothing where output is closed
    except OSError as error:
        if error.errno == errno.EPIPE and _reader_is_gone():  # not a connection
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is not yet written has a place to go
            sys.exit(128 + signal.SIGPIPE)
        if error.errno not in _DISK:
            raise
        place = error.filename or "a file"
        _fail(f"{place} cannot be written ({error.strerror}): make room, make it writable, or name another")
