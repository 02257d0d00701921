"""The systems that benchmarks compare: processes that answer requests, asked in turn; the machine; the results."""

import datetime
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np

from elmo_jax.errors import InputError

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
INSTRUCTIONS = ("amx_bf16", "avx512_bf16", "avx512f", "avx2")


class System:
    """A worker process (workers/*.py of the checkout `root`) that runs one system at one precision."""

    def __init__(self, name: str, precision: str, python: Path, script: str, *arguments: str, root: Path = ROOT):
        if not python.exists():
            raise InputError(f"there is no {python}; `make peers` sets up the environments of the peers")
        self.name, self.precision = name, precision
        environment = os.environ | {
            "JAX_ENABLE_COMPILATION_CACHE": "false",  # it would hide what compiling costs
            "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",  # large pages help every system
            "TF_CPP_MIN_LOG_LEVEL": "2",
        }
        command = [python, "-W", "ignore", root / "benchmarks" / "workers" / script, *arguments]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
        )

    def ask(self, request: str, **arguments):
        """The worker's answer."""
        try:
            self.process.stdin.write(json.dumps({"do": request, **arguments}) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"{self.name} ({self.precision}) died; what it said is above")
        return json.loads(answer)

    def processor_seconds(self) -> float:
        """Seconds that the processors have worked for it so far: what else the machine does matters less (Linux)."""
        times = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        return sum(map(int, times)) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def elmo_jax(*arguments: object) -> str:
    """What a command of this project printed; its progress is shown."""
    done = [sys.executable, "-m", "elmo_jax", *map(str, arguments)]
    return subprocess.run(done, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout


def python_of(peer: str) -> Path:
    """The interpreter of a peer's environment (`make peers`); this project's own is the one that runs."""
    return Path(sys.executable) if peer == "elmo_jax" else ROOT / ".peers" / peer / "bin" / "python"


def available_memory() -> int:
    """Bytes that can be used without swapping: what is free and what the system would give back."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        return 1024 * int(re.search(r"MemAvailable:\s*(\d+)", meminfo.read_text())[1])
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def machine() -> dict[str, str]:
    """What the benchmark ran on, as far as it matters."""
    device = jax.local_devices()[0]
    about = {"device": device.device_kind, "python": platform.python_version(), "jax": jax.__version__}
    if device.platform == "cpu":
        text = Path("/proc/cpuinfo").read_text()
        model = re.search(r"model name\s*: (.*)", text)
        flags = re.search(r"flags\s*: (.*)", text)[1].split()
        instructions = next((name for name in INSTRUCTIONS if name in flags), "")
        about["device"] = f"{model[1] if model else 'CPU'}, {len(os.sched_getaffinity(0))} cores, {instructions}"
    return about | {"date": datetime.date.today().isoformat()}


def command(module: str) -> str:
    """The command that runs, with the names of files and globs alone."""
    arguments = [Path(argument).name if Path(argument).parent.is_dir() else argument for argument in sys.argv[1:]]
    return " ".join([f"python -m benchmarks.{module}", *arguments])


def spread(values: list[float]) -> dict[str, float]:
    """Median, least and largest."""
    return {"median": float(np.median(values)), "min": min(values), "max": max(values)}


def result_path(benchmark: str, config: str) -> Path:
    """Where a result of this machine goes by default."""
    device = jax.local_devices()[0]
    name = "cpu" if device.platform == "cpu" else device.device_kind.replace(" ", "-").lower()
    return RESULTS / f"{benchmark}-{config}-{name}.json"


def save(path: Path, result: dict) -> None:
    """Writes a result as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"wrote {path}")
