"""The exception for problems that the user can fix."""


class UserError(Exception):
    """Bad input, a missing file or a damaged one. The scripts print its text and exit with status 2.

    The text is one line.
    """


class Problems(UserError):
    """Several problems of files that people have filled in, one a line."""


class DamagedFileError(UserError):
    """A file whose content is not what was written."""


def one_line(problem: BaseException) -> str:
    """The first line of an exception's text."""
    return (str(problem).strip().splitlines() or [type(problem).__name__])[0]
