"""One process of the fuzzer: runs a target for some time; what it finds it writes down, and goes on.

`python -m fuzz.worker TARGET SEEDS FOLDER SECONDS NUMBER`: FOLDER gets the inputs that reach something new, `corpus`,
and findings.
"""

import hashlib
import os
import resource
import sys
import sysconfig
import time
import traceback
import warnings
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["elmo_jax"]):
    from fuzz.targets import Runner

MEMORY, SECONDS, LONGEST_INPUT = 1 << 30, 10, 1 << 16
# What no reader of a file does, by the names of Python's audit events.
FORBIDDEN = (
    "os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "pickle.find_class", "socket.connect",
    "ctypes.dlopen", "os.symlink", "os.link",
)  # fmt: skip
CHANGING = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod", "shutil.rmtree")


class Watch:
    """Notes, while an input is read, what is run and which files elsewhere are opened or changed."""

    def __init__(self, folder: Path, seeds: str):
        # Python's own files may be read.
        self.folder, self.watching, self.seen = os.fspath(folder), False, []
        project = Path(__file__).parent.parent
        known = {
            *sysconfig.get_paths().values(),
            sys.prefix,
            sys.base_prefix,
            project / "elmo_jax",
            "/proc",
            "/dev/null",
        }
        self.readable = (self.folder, seeds, *map(os.fspath, known))
        sys.addaudithook(self.hook)

    def hook(self, event: str, arguments: tuple) -> None:
        if not self.watching:
            return
        if event in FORBIDDEN:
            self.seen.append(f"{event} {arguments!r:.200}")
        elif event == "open" or event in CHANGING:
            path = arguments[0]
            if not isinstance(path, str | bytes | os.PathLike) or (event != "open" and arguments[-1] not in (-1, path)):
                return  # an open file, or a name in an open folder
            path = os.fsdecode(path)
            if path.startswith(self.folder) and ".." not in path:  # no symbolic link is made
                return
            path = os.path.realpath(path)
            writes = event != "open" or (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if not path.startswith(self.folder if writes else self.readable) and path != os.devnull:
                self.seen.append(f"{event} {path}")


def main() -> None:
    name, seeds, folder, seconds, number = sys.argv[1:]
    folder = Path(folder)
    corpus = folder / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    findings = folder / "findings"
    findings.mkdir(exist_ok=True)
    work = folder / f"work-{number}"
    work.mkdir()
    runner = Runner(name, Path(seeds), work)
    for count, data in enumerate(runner.inputs()):
        (corpus / f"valid-{count}").write_bytes(data)
        runner.run(data)  # so that what is imported late is there
    os.chdir(work)
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    warnings.simplefilter("ignore")
    watch = Watch(work, seeds)
    with open("/proc/self/status") as status:
        data_size = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmData"))
    resource.setrlimit(resource.RLIMIT_DATA, (data_size + MEMORY,) * 2)
    known = set()

    def test(data: bytes) -> None:
        begin, problem = time.perf_counter(), None
        watch.watching = True
        try:
            runner.run(data)
        except BaseException as error:
            watch.watching = False
            frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/fuzz/" not in frame.filename]
            place = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else str(error)
            problem = f"{type(error).__name__} {place}", "".join(traceback.format_exception(error))
        watch.watching = False
        if watch.seen:
            problem = watch.seen[0].split()[0], "\n".join(watch.seen)
            watch.seen.clear()
        if (taken := time.perf_counter() - begin) > SECONDS / 2:
            problem = "slow", f"{taken:.1f} s"
        if problem is not None and problem[0] not in known:
            known.add(problem[0])
            key = hashlib.sha256(problem[0].encode()).hexdigest()[:12]
            (findings / key).write_bytes(data)
            (findings / f"{key}.txt").write_text(f"{name}: {problem[0]}\n{problem[1]}\n")

    options = {
        "max_total_time": seconds,
        "max_len": LONGEST_INPUT,
        "timeout": SECONDS,
        "rss_limit_mb": 0,
        "print_final_stats": 1,
        "artifact_prefix": f"{findings}/",
        "verbosity": 0,
        "seed": number,
        "len_control": 10,
    }
    atheris.Setup([name, os.fspath(corpus), *(f"-{option}={value}" for option, value in options.items())], test)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
