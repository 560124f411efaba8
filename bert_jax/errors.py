"""The one exception that means "the user can mend this"."""


class UserError(Exception):
    """Bad input. The message names the field or file and says what to do.

    The command line prints the message alone, without a traceback, and exits
    with status 2.
    """
