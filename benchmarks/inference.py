"""Time predictions of CBAM-ResNeXt-50: PyTorch, `optimize_for_inference`, ONNX Runtime and OpenVINO.

    python benchmarks/inference.py [--batch-sizes 1 8]

All engines compute the same network on the same images with as many threads, each in a process of its own, one after
the other: in its turn one prediction that is not timed, then the fastest of three. What each predicts must be what
PyTorch predicts. A ratio is the median, over the rounds, of a time divided by that of `optimize_for_inference` in
float32 in the same round, with its 95 % interval.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import onnxruntime
import openvino
import torch
from torch import Tensor, nn

from harness import Times, environment, measure, parser, refuse_unless_green, report, row_of, table
from whatwhere import create_model, optimize_for_inference

NETWORK = "cbam_resnext50_32x4d"
BASE = "optimize_for_inference"
PAUSE = 0.3
Predict = Callable[[], Tensor]


def network() -> nn.Module:
    torch.manual_seed(0)
    model = create_model(NETWORK, seed=0)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            # a norm as after training: at its start it is nearly an identity
            nn.init.normal_(norm.running_mean, std=0.1)
            nn.init.uniform_(norm.running_var, 0.5, 1.5)
    return model.eval()


def by_torch(model: nn.Module, images: Tensor) -> Predict:
    def predict() -> Tensor:
        with torch.inference_mode():
            return model(images)

    return predict


def eager(path: Path, images: Tensor) -> Predict:
    return by_torch(network().to(memory_format=torch.channels_last), images)


def optimized(path: Path, images: Tensor, dtype: torch.dtype | None = None) -> Predict:
    return by_torch(optimize_for_inference(network(), images[:1], dtype=dtype), images)


def compiled(path: Path, images: Tensor, dtype: torch.dtype | None = None) -> Predict:
    torch._inductor.config.freezing = True
    model = torch.compile(optimize_for_inference(network(), images[:1], dtype=dtype))

    def predict() -> Tensor:
        # freezing wants no_grad
        with torch.no_grad():
            return model(images)

    return predict


def by_onnxruntime(path: Path, images: Tensor) -> Predict:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name, values = session.get_inputs()[0].name, images.numpy()
    return lambda: torch.from_numpy(session.run(None, {name: values})[0])


def by_openvino(path: Path, images: Tensor, precision: str = "f32") -> Predict:
    core = openvino.Core()
    hints = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": precision,
        "PERFORMANCE_HINT": "LATENCY",
    }
    model, values = core.compile_model(core.read_model(path), "CPU", hints), images.numpy()
    return lambda: torch.from_numpy(model(values)[0])


FLOAT32 = {
    BASE: optimized,
    "the network, channels_last": eager,
    "torch.compile of optimize_for_inference": compiled,
    f"ONNX Runtime {onnxruntime.__version__}": by_onnxruntime,
    f"OpenVINO {openvino.__version__.partition('-')[0]}": by_openvino,
}
BFLOAT16 = {
    f"{BASE}, bfloat16": partial(optimized, dtype=torch.bfloat16),
    "torch.compile of it, bfloat16": partial(compiled, dtype=torch.bfloat16),
    "OpenVINO, bfloat16": partial(by_openvino, precision="bf16"),
}


def serve(name: str, path: Path, images: Tensor, parent: Connection) -> None:
    """Send the predictions, then the milliseconds of one whenever the parent asks."""
    predict = {**FLOAT32, **BFLOAT16}[name](path, images)
    parent.send(predict().float().numpy().tolist())
    while parent.recv():
        predict()
        times = []
        for _ in range(3):
            start = time.perf_counter()
            predict()
            times.append(1000 * (time.perf_counter() - start))
        parent.send(min(times))


def ask(worker: Connection) -> float:
    worker.send(True)
    return worker.recv()


def times_of(names: list[str], images: Tensor, rounds: int) -> dict[str, Times]:
    model = network()
    expected = by_torch(model, images)()
    context = multiprocessing.get_context("spawn")
    workers, processes = {}, []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        torch.onnx.export(model, (images,), path, dynamo=True, verbose=False)
        try:
            for name in names:
                workers[name], child = context.Pipe()
                processes.append(context.Process(target=serve, args=(name, path, images, child), daemon=True))
                processes[-1].start()
                # so that the end of the process is the end of the pipe
                child.close()
                difference = (torch.tensor(workers[name].recv()) - expected).abs().max() / expected.abs().max()
                assert difference < (0.05 if "bfloat16" in name else 1e-3), (name, difference)
            return measure({name: partial(ask, worker) for name, worker in workers.items()}, rounds, "cpu", PAUSE)
        finally:
            for process in processes:
                process.kill()
                process.join()


def main() -> None:
    arguments = parser(__doc__, rounds=15, any_device=False)
    arguments.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8])
    options = arguments.parse_args()
    refuse_unless_green("tests/networks/test_inference.py")
    has_bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    names = [*FLOAT32, *(BFLOAT16 if has_bf16 else ())]
    parts = [
        f"# Predictions of {NETWORK}",
        f"{environment('cpu')}; images of 3x224x224; {options.rounds} interleaved rounds, each engine in a process of "
        "its own. Ratios to optimize_for_inference in float32."
        + ("" if has_bf16 else " This processor has no bfloat16, so its rows are left out."),
    ]
    rows = []
    torch.manual_seed(1)
    for batch_size in options.batch_sizes:
        times = times_of(names, torch.randn(batch_size, 3, 224, 224), options.rounds)
        lines = []
        for name, value in times.items():
            lines.append([name, f"{value.median:.1f}", *value.ratio_cells(times[BASE])])
            row = row_of(value, times[BASE], batch_size=batch_size, engine=name)
            # of this process, not of the engine's
            del row["peak_mib"]
            rows.append(row)
        parts.append(f"## Batch {batch_size}\n\n{table(['engine', 'median, ms', 'ratio', '95 % interval'], lines)}")
    report("inference", "cpu", parts, rows)


if __name__ == "__main__":
    main()
