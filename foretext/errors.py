"""The one exception a person is meant to read."""


class UserError(ValueError):
    """A mistake the user can mend: one sentence that says what is wrong, where, and how to mend it.

    The command line prints the sentence and exits with code 2; Python callers catch it as a ``ValueError``.
    """
