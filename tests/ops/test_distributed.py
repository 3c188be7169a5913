"""Two processes train one network together, by the lean gates and by the reference."""

import json
import os
import subprocess
import sys

import pytest

PROGRAM = """
import gc, json, torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from whatwhere import CBAM, create_model

distributed.init_process_group("gloo")
rank = distributed.get_rank()
images = torch.randn(2, 4, 3, 16, 16, generator=torch.Generator().manual_seed(0))[rank]
sums = {}
for backend in ("lean", "reference"):
    model = create_model("cbam_resnext11_8x8d", num_classes=3, seed=0)
    for module in model.modules():
        if isinstance(module, CBAM):
            module.backend = backend
    parallel = DistributedDataParallel(model)
    for _ in range(2):  # the second step meets the buckets as the first has rebuilt them
        parallel(images).square().mean().backward()
    sums[backend] = [parameter.grad.double().sum().item() for parameter in model.parameters()]
if rank == 0:
    print(json.dumps(sums))
# which hold the group: its threads would outlive it, and abort now and then as the interpreter ends
del parallel, model, module
gc.collect()
distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_get_the_references_gradients(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(program)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(launch, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    sums = json.loads(done.stdout.splitlines()[-1])
    assert sums["lean"] == pytest.approx(sums["reference"], rel=1e-3, abs=1e-4)
