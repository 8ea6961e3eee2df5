"""The one base of every error a user can cause: its text is one line that names the offender and what to do."""


class CoachHookError(Exception):
    """Commands print its text and no traceback."""
