"""The exception for mistakes that the user can correct."""


class UserError(Exception):
    """Bad input, in one line: the fault, the expectation and the remedy.

    Scripts print it without a traceback and exit with status 2. Every other exception is a bug, and
    its traceback is shown.
    """
