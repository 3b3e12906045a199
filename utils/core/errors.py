"""The error a user can cause: one line that says what, where and what to do."""


class UserError(Exception):
    """Something the user can put right. Scripts print the message alone, no traceback, and exit with status 2."""
