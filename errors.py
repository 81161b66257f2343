"""The error that a user can mend. A file of its own, as what raises it should not have to wait for torch."""


class UserError(Exception):
    """Something the user can mend: what was expected, what came, what to change, in one paragraph.

    The command-line programs print it without a traceback and exit with code 2.
    """
