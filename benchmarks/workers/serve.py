"""A worker is a process that runs one system: it reads requests from its standard input, a JSON object a line.

Runs in the peers' environments too, so needs nothing but Python 3.9 and must not import the project.
"""

import json
import os
import resource
import sys
import time

# What libraries print to the standard output must not come between the answers: it goes to the error output.
ANSWERS = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)


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
    for line in sys.stdin:
        request = json.loads(line)
        ANSWERS.write(json.dumps(actions[request.pop("do")](**request)) + "\n")
        ANSWERS.flush()


def serve_batches(embed, sentences, batch, save, memory, about):
    """Serves a system that embeds batches: embed([sentence, ..]) → [vectors [T, 2P], ..] on the host.

    The text is sorted by length, so that little is padded; `save(path, vectors of all sentences)`.
    """

    def everything():
        ordered = sorted(sentences, key=len)
        for first in range(0, len(ordered), batch):
            embed(ordered[first : first + batch])

    def latency(warm_up, measured):
        for sentence in sentences[-warm_up:]:
            embed([sentence])
        return {"seconds": [timed(lambda: embed([sentence])) for sentence in sentences[:measured]]}  # noqa: B023

    def vectors(count, path):
        save(path, [embed([sentence])[0] for sentence in sentences[:count]])

    run = lambda: {"seconds": timed(everything)}
    serve({"run": run, "latency": latency, "vectors": vectors, "memory": memory, "about": about})
