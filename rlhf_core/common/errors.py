"""The exception for errors that the user can fix."""


class UserError(Exception):
    """An error in data, parameters or environment. The message names the file, row or key, then the fix.

    Commands print it without a traceback and exit with a non-zero code.
    """
