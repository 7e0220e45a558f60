"""Errors that are the user's to mend: one sentence, no traceback, exit code 2."""

from difflib import get_close_matches


class PrefError(ValueError):
    """A setting, a file or a combination that cannot work.

    The message is one sentence that names the setting, its value and the remedy; the command line
    prints it alone and exits with code 2.
    """


class Interrupted(PrefError):
    """Training was stopped by a signal after the state was stored."""


def suggest(word, options):
    """Return ``" Did you mean 'x'?"`` for the option nearest to ``word``, or ``""``.

    Args:
        word (str): what the user wrote.
        options (iterable of str): the valid names.
    """
    by_lower = {str(option).lower(): str(option) for option in options}
    match = get_close_matches(str(word).lower(), by_lower, n=1, cutoff=0.6)
    return f" Did you mean '{by_lower[match[0]]}'?" if match else ""
