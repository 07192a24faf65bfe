"""The one exception that means: the user can fix this."""


class UserError(Exception):
    """Bad input, in one line: what is wrong, what was expected, what to do about it.

    Scripts print it without a traceback and exit with status 2. Every other exception is a bug of
    ours and keeps its traceback.
    """
