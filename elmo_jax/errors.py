"""The one error that users see."""

import functools
import sys
from collections.abc import Callable


class InputError(ValueError):
    """Bad input: the message says what was received, what is accepted and what to do."""


def exit_on_bad_input(script: Callable[..., None]) -> Callable[..., None]:
    """Turns bad input, failing files and missing extras into one line on stderr and exit code 2."""

    @functools.wraps(script)
    def wrapped(*args, **kwargs):
        try:
            script(*args, **kwargs)
        except (InputError, OSError, ImportError) as error:
            print(f"\nerror: {' '.join(str(error).split())}", file=sys.stderr)
            raise SystemExit(2) from None
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            raise SystemExit(130) from None

    return wrapped
