"""Mistakes a user can make, told in one sentence with the remedy. The command line prints them without a traceback."""


class UserError(ValueError):
    """Something outside the program is wrong: a file, a setting, a prompt. The message says what to do about it."""
