"""Fuzzes every target in turn, one process at a time, and writes what came of it to fuzz/results.json."""

import importlib.util
import json
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import tyro

from elmo_jax.errors import InputError, exit_on_bad_input
from fuzz.seeds import write_seeds
from fuzz.targets import TARGETS

HERE = Path(__file__).parent
RESULTS, FINDINGS, MEMORY = HERE / "results.json", HERE / "findings", Path("/dev/shm")


def fuzz(name: str, seconds: float, folder: Path, seeds: Path) -> dict[str, float]:
    """Runs a target for some time, again where its process ended early; what it found is in `folder`/findings."""
    begin, executions, number = time.monotonic(), 0, 0
    while number == 0 or (left := seconds - (time.monotonic() - begin)) >= 1:
        number += 1
        arguments = [name, seeds, folder, int(seconds if number == 1 else left), number]
        ended = subprocess.run(
            [sys.executable, "-m", "fuzz.worker", *map(str, arguments)], capture_output=True, cwd=HERE.parent
        )
        printed = ended.stderr.decode(errors="replace")
        counted = re.search(r"stat::number_of_executed_units:\s*(\d+)", printed)
        executions += int(counted[1]) if counted else 0
        if ended.returncode:
            (folder / f"findings/end-{number}.txt").write_text(
                f"{name} ended with {ended.returncode}\n{printed[-5000:]}"
            )
        shutil.rmtree(folder / f"work-{number}")
        if counted is None:
            break
    findings = len(list((folder / "findings").glob("*.txt")))
    return {"executions": executions, "seconds": round(time.monotonic() - begin), "findings": findings}


@exit_on_bad_input
def main(minutes: float = 20, targets: tuple[str, ...] = tuple(TARGETS), results: Path = RESULTS) -> None:
    """Fuzzes the readers of files.

    Args:
        minutes: of all targets together.
        targets: which.
        results: the JSON file that gets the counts, which are added to those that it has; findings are those of now.
    """
    if importlib.util.find_spec("atheris") is None:
        raise InputError("fuzzing needs the package atheris, which the extra fuzz brings: pip install '.[fuzz]'")
    if unknown := set(targets) - set(TARGETS):
        raise InputError(f"there is no target {min(unknown)}; there are {', '.join(TARGETS)}")
    counts = json.loads(results.read_text())["targets"] if results.exists() else {}
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as temporary:
        write_seeds(Path(temporary, "seeds"))
        for name in targets:
            folder = Path(temporary, name)
            (folder / "findings").mkdir(parents=True)
            found = fuzz(name, 60 * minutes / len(targets), folder, Path(temporary, "seeds"))
            print(f"{name}: {found}", flush=True)
            before = counts.get(name, {"executions": 0, "seconds": 0})
            counts[name] = found | {key: found[key] + before[key] for key in ("executions", "seconds")}
            if counts[name]["findings"]:
                shutil.copytree(folder / "findings", FINDINGS / name, dirs_exist_ok=True)
            totals = {
                "executions": sum(count["executions"] for count in counts.values()),
                "python": platform.python_version(),
            }
            ordered = {known: counts[known] for known in TARGETS if known in counts}
            results.write_text(json.dumps(totals | {"targets": ordered}, indent=1) + "\n")
    if found := [name for name in targets if counts[name]["findings"]]:
        raise InputError(f"there are findings in {', '.join(found)}; see {FINDINGS}")


if __name__ == "__main__":
    tyro.cli(main)
