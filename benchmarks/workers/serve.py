"""A worker is a process that runs one system: it reads requests from its standard input, a JSON object a line.

Runs in the peers' environments too, so needs nothing but Python 3.9 and must not import the project.
"""

import json
import os
import resource
import sys
import time


def sentences_of(path):
    with open(path, encoding="utf-8") as lines:
        return [line.split() for line in lines]


def timed(action):
    """Seconds that it takes to call `action`."""
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def peak_memory():
    """Largest resident size of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def serve(actions):
    """Answers requests {"do": NAME, **arguments} by actions[NAME](**arguments) until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not come between the answers
    for line in sys.stdin:
        request = json.loads(line)
        answers.write(json.dumps(actions[request.pop("do")](**request)) + "\n")
        answers.flush()
