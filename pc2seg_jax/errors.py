"""The one exception for what a user can get wrong."""


class UserError(Exception):
    """A mistake in the input: one sentence that names the file, key or flag, what was expected and what to do.

    Command-line entry points print the sentence and exit with status 2; nothing below them catches it.
    """
