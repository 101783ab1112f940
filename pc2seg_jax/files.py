"""Files that are there as a whole or not at all."""

import pathlib


def replace_text(path: pathlib.Path, text: str) -> None:
    """Writes a file, or replaces it, so that a process that is killed meanwhile leaves the old one or the new one."""
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    part.replace(path)
