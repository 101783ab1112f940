"""What the storage prints besides raising."""

import functools
import logging
import pathlib
import sys
from typing import Any


@functools.cache
def mute_storage() -> None:
    """Drops what the threads of Orbax and tensorstore log, screens of it, besides raising the same error to us."""

    def is_told_by_us(record: logging.LogRecord) -> bool:
        thread = record.levelno >= logging.ERROR and "orbax" in pathlib.Path(record.pathname).parts
        return thread or "exception was never retrieved" in str(record.msg)

    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(lambda record: not is_told_by_us(record))
    others = sys.unraisablehook

    def hook(event: Any) -> None:
        # After the first failed array Orbax closes its event loop; the results of the others come later.
        if str(event.exc_value) != "Event loop is closed":
            others(event)

    sys.unraisablehook = hook
