"""The error that a user can mend: the command line prints it in one line and exits with 2."""


class UserError(ValueError):
    """What is wrong and what to do, in one line."""
