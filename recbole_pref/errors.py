"""Errors that the user can fix: one sentence, no traceback, exit code 2."""

import sys
from collections.abc import Iterable
from difflib import get_close_matches


class PrefError(ValueError):
    """A setting, a file or a combination that cannot work.

    The message is one sentence that names the setting, its value and the remedy. The command line
    prints only this sentence and exits with code 2.
    """


class Interrupted(PrefError):
    """Training was stopped by a signal after the state was stored."""


def report(error: PrefError, program: str, debug: bool) -> int:
    """Print an error as the command line reports it, and return the exit code 2.

    Args:
        error: the error that is being handled.
        program: name of the command.
        debug: raise the error instead, for its traceback.
    """
    if debug:
        raise error
    print(f"{program}: {error}", file=sys.stderr)
    return 2


def suggest(word: object, options: Iterable[object]) -> str:
    """Return ``" Did you mean 'x'?"`` for the option nearest to ``word``, or ``""``.

    Args:
        word: the user's spelling.
        options: the valid names.
    """
    by_lower = {str(option).lower(): str(option) for option in options}
    match = get_close_matches(str(word).lower(), by_lower, n=1, cutoff=0.6)
    return f" Did you mean '{by_lower[match[0]]}'?" if match else ""


def reason_of(error: BaseException) -> str:
    """Return the reason in an exception of another library, on one line of bounded length."""
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError) or "allocate memory" in text or "Unable to allocate" in text:
        return "the memory is not sufficient; lower sizes such as MAX_ITEM_LIST_LENGTH or hidden_size"
    if text.startswith("Some feat is empty"):
        return "user_inter_num_interval, item_inter_num_interval and val_interval leave no interactions; loosen them"
    if isinstance(error, ValueError) and text:
        return text if len(text) <= 300 else text[:300] + "..."
    return f"{type(error).__name__} {text[:300]}".strip()
