"""The one exception for what a user can mend."""


class UserError(Exception):
    """A mistake in data, parameters or environment; the message names file, row or key and the mend.

    Commands print it without a traceback and exit with a code other than 0.
    """
