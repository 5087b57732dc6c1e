"""The errors that a user can mend, each with the exit code of the command line."""


class UserError(ValueError):
    """What is wrong and what to do, in one line."""

    exit_code = 2


class DivergedError(UserError):
    """Training has run into numbers that mean nothing any more."""

    exit_code = 3
