"""The one exception that means "what you asked for cannot be done, and here is how to mend it"."""


class UserError(Exception):
    """Bad input, a missing file or a damaged one. Its text is one line; the scripts print it and exit with status 2."""


class UnofficialFiles(UserError):
    """Data files that are not the ones the data set is known by; --allow-subset takes them all the same."""
