"""The one exception and the one warning that users are meant to read."""


class UserError(Exception):
    """A mistake the user can mend: its message is one clear line that names the file, the cause and the remedy.

    The command line prints that line and exits with code 2; a library caller gets it as an ordinary exception.
    """


class UserNotice(UserWarning):
    """Something the user should know about a result that was nevertheless made; one clear line, shown as a warning."""
