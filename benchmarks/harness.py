"""Shared by all benchmarks: interleaved rounds, medians and their spread, peak memory, a line on the environment.

A round times every candidate once, in an order of its own, so that a change of the machine's speed affects all alike.
Ratios within one round are more reliable than times; their median has an interval. A benchmark first runs the tests of
what it times, and stops if one fails.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import ctypes
import datetime
import math
import multiprocessing
import os
import pathlib
import platform
import random
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

# the profiler, which counts allocations, reports each of its starts otherwise
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

import timm
import torch
import torchvision

from whatwhere.ops import native

ROOT = pathlib.Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
WARM_UP_ROUNDS = 2
INNER_ROUNDS = 4  # of a round that is a process


@dataclass(frozen=True)
class Times:
    """Times of one candidate, one for each round, and the peak of the memory that it allocates."""

    milliseconds: tuple[float, ...]
    peak_bytes: int

    @property
    def median(self) -> float:
        return statistics.median(self.milliseconds)

    def quantile(self, tenths: int) -> float:
        return statistics.quantiles(self.milliseconds, n=10, method="inclusive")[tenths - 1]

    def paired_ratio(self, base: Times) -> tuple[float, float, float]:
        """Return the median of the ratios to `base` in the same rounds, and its 95 % interval, of the sign test.

        The interval is for independent rounds; with less than six it is the whole line.
        """
        ratios = sorted(a / b for a, b in zip(self.milliseconds, base.milliseconds, strict=True))
        count = len(ratios)
        tails = (sum(math.comb(count, k) for k in range(rank + 1)) / 2**count for rank in range(count))
        outside = sum(1 for tail in tails if tail <= 0.025)
        low, high = (ratios[outside - 1], ratios[-outside]) if outside else (0.0, math.inf)
        return statistics.median(ratios), low, high

    def ratio_cells(self, base: Times) -> list[str]:
        """Return two cells of a table: the ratio to `base`, and its interval."""
        ratio, low, high = self.paired_ratio(base)
        return [f"x{ratio:.3f}", "" if self is base else f"x{low:.3f} .. x{high:.3f}"]


def keep_freed_pages() -> None:
    """Tell glibc's malloc to give no memory back to the system, where it is glibc.

    By default it gives it back where it lies at the end of the heap: so one candidate pays for fresh pages with each
    large tensor, another one never, by an accident of the order of their tensors that lasts for the whole process.
    """
    trim_threshold, mmap_max = -1, -4  # of malloc.h
    with contextlib.suppress(AttributeError, OSError):
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, 2**31 - 1)


def measure(
    candidates: dict[str, Callable[[], object]], rounds: int, device: str, pause: float = 0
) -> dict[str, Times]:
    """Time `candidates` over `rounds` interleaved rounds; each is a function without arguments.

    One that returns a number has taken its time itself, in milliseconds.

    `pause` is the time before each, in seconds, for threads of other libraries that go on waiting for work.
    """
    keep_freed_pages()
    times: dict[str, list[float]] = {name: [] for name in candidates}
    peaks = {}
    order = list(candidates)
    generator = random.Random()
    for round_index in range(WARM_UP_ROUNDS + rounds):
        # what runs before a candidate decides what is in the caches
        generator.shuffle(order)
        for name in order:
            run = candidates[name]
            time.sleep(pause)
            if round_index == 1:
                # not in the first round: there libraries allocate their workspaces, and torch.compile compiles
                peaks[name] = peak_bytes(run, device)
                continue
            synchronize(device)
            start = time.perf_counter()
            taken = run()
            synchronize(device)
            if round_index >= WARM_UP_ROUNDS:
                times[name].append(taken if isinstance(taken, float) else 1000 * (time.perf_counter() - start))
    return {name: Times(tuple(times[name]), peaks[name]) for name in candidates}


def in_processes(times_of: Callable[..., dict[Any, Times]], rounds: int, *given: object) -> dict[Any, Times]:
    """Return the times of `rounds` rounds, each that of a process: the medians of what `times_of` finds in it.

    Where tensors lie in the machine's memory changes times by several hundredths, and stays for as long as a process
    lives.
    """
    context, found = multiprocessing.get_context("spawn"), []
    for _ in range(rounds):
        with context.Pool(1) as pool:
            found.append(pool.apply(times_of, given))
    return {
        name: Times(tuple(times[name].median for times in found), max(times[name].peak_bytes for times in found))
        for name in found[0]
    }


def synchronize(device: str) -> None:
    if device != "cpu":
        torch.accelerator.synchronize()


def peak_bytes(run: Callable[[], object], device: str) -> int:
    """Return the peak of the bytes that `run` allocates, from the allocator's events."""
    if device != "cpu":
        torch.accelerator.reset_peak_memory_stats()
        before = torch.accelerator.memory_allocated()
        run()
        return torch.accelerator.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    allocated = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        allocated += event.nbytes()
        peak = max(peak, allocated)
    return peak


def refuse_unless_green(*tests: str) -> None:
    """Run `tests`; unless all pass, print their output and end: the speed of wrong results is of no use."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not slow", "-n", "2", *tests]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if found.returncode:
        sys.exit(f"{found.stdout}\nnot timed: {' '.join(tests)} must pass first")


def parser(
    description: str | None, *, rounds: int, batch_size: int = 8, any_device: bool = True
) -> argparse.ArgumentParser:
    built = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    built.add_argument("--rounds", type=int, default=rounds)
    built.add_argument("--batch-size", type=int, default=batch_size)
    if any_device:
        built.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
        built.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="bfloat16: autocast")
    return built


def hardware(device: str) -> str:
    if device != "cpu":
        return torch.cuda.get_device_name() if device.startswith("cuda") else device
    information = pathlib.Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8").splitlines() if information.exists() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return f"{torch.get_num_threads()} threads of {names[0] if names else platform.processor()}"


def environment(device: str) -> str:
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    passes = f"; passes in {native.passes()}" if device == "cpu" else ""
    return (
        f"{hardware(device)}{passes}; Python {platform.python_version()}, torch {torch.__version__}, "
        f"timm {timm.__version__}, torchvision {torchvision.__version__}; commit {commit or 'unknown'}; "
        f"{datetime.date.today()}"
    )


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table with its first column aligned left, the others right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def report(what: str, device: str, parts: Sequence[str], rows: Sequence[dict[str, object]]) -> None:
    """Print `parts`; write them, and `rows`, to results/<what>_<hardware>_<yyyymm>.md and .csv.

    Simulations, whose figures no hardware changes, have the device "" and no hardware in their name.
    """
    text = "\n\n".join(parts) + "\n"
    print(text)
    slug = f"cpu{torch.get_num_threads()}" if device == "cpu" else re.sub(r"\W+", "-", hardware(device).lower())
    path = RESULTS / "_".join(filter(None, (what, slug, f"{datetime.date.today():%Y%m}")))
    RESULTS.mkdir(exist_ok=True)
    path.with_suffix(".md").write_text(text, encoding="utf-8")
    with path.with_suffix(".csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def suffix_of(options: argparse.Namespace) -> str:
    """Return what is added to a name of results for the options: the dtype, and whether the passes were in C++."""
    cpp = options.device == "cpu" and native.passes() != "Python"
    return ("" if options.dtype == "float32" else "_bf16") + ("_cpp" if cpp else "")


def row_of(times: Times, base: Times | None = None, **labels: object) -> dict[str, object]:
    names = ("ratio", "ratio_low", "ratio_high")
    ratios = {} if base is None else dict(zip(names, times.paired_ratio(base), strict=True))
    return {
        **labels,
        "median_ms": round(times.median, 4),
        "p20_ms": round(times.quantile(2), 4),
        "p80_ms": round(times.quantile(8), 4),
        "peak_mib": round(times.peak_bytes / 2**20, 2),
        "rounds": len(times.milliseconds),
        **{name: round(value, 4) for name, value in ratios.items()},
    }
