"""The one error that users see."""

import functools
import sys
from collections.abc import Callable


class InputError(ValueError):
    """Bad input: the message says what was received, what is accepted and what to do."""


def exit_on_bad_input(script: Callable[..., None]) -> Callable[..., None]:
    """Turns bad input and failing files into one line on stderr and exit code 2, without a traceback."""

    @functools.wraps(script)
    def wrapped(*args, **kwargs):
        try:
            script(*args, **kwargs)
        except (InputError, OSError) as error:
            print(f"\nerror: {' '.join(str(error).split())}", file=sys.stderr)
            raise SystemExit(2) from None
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            raise SystemExit(130) from None

    return wrapped
