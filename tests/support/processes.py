"""Runs of the command in processes of their own, as users and schedulers start and kill them."""

import json
import os
import signal
import subprocess
import sys
import time

OPTIONS = {
    "--model": "cbam_resnext11_8x8d",
    "--image-size": "16",
    "--epochs": "4",
    "--batch-size": "8",
    "--mixup": "0.2",
    "--cutmix": "1",
    "--ema": "0.9",
    "--drop-rate": "0.2",
    "--save-minutes": "0",
    "--device": "cpu",
}


def environment(tmp_path):
    return {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def arguments(data, out, *more, **options):
    """Return the arguments of `whatwhere train`."""
    given = {**OPTIONS, **{f"--{name.replace('_', '-')}": str(value) for name, value in options.items()}}
    return ["train", str(data), "--out", str(out), *more, *(text for pair in given.items() for text in pair)]


def start(tmp_path, data, out, *more, ranks=1, **options):
    """Start `whatwhere train` in a process group of its own."""
    launcher = [sys.executable, "-m"]
    if ranks > 1:
        launcher += ["torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "-m"]
    return launch(tmp_path, *launcher, "whatwhere", *arguments(data, out, *more, **options))


def start_comparison(tmp_path, data, out, *more):
    """Start `whatwhere compare` in a process group of its own."""
    command = [sys.executable, "-m", "whatwhere", "compare", str(data), "--out", str(out)]
    command += ["--backbone", "resnext11_8x8d", "--image-size", "16", "--batch-size", "8", "--save-minutes", "0"]
    return launch(tmp_path, *command, "--device", "cpu", "--workers", "0", *more)


def launch(tmp_path, *command):
    return subprocess.Popen(
        command,
        env=environment(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process, timeout=240):
    """Return (exit status, standard output, standard error)."""
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return process.returncode, out, err


def steps_saved(out):
    return max((int(file.stem) for file in (out / "last").glob("*.json")), default=0)


def wait_until(process, condition, timeout=120):
    """Return when `condition()` holds, or the process has ended; what it waits for may pass in milliseconds."""
    limit = time.monotonic() + timeout
    while not condition() and process.poll() is None:
        assert time.monotonic() < limit, "it did not come"
        time.sleep(0.001)


def wait_for_step(process, out, step):
    """Return when a checkpoint of `step` or later is there, or the process has ended."""
    wait_until(process, lambda: steps_saved(out) >= step)


def lines_without_times(out):
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]


def newest_weights(out):
    from safetensors.torch import load_file

    return load_file(max((out / "last").glob("*.safetensors")))
