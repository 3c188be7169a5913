"""ONNX, by either exporter, in ONNX Runtime: what was exported at one size is right at every other."""

import io

import pytest
import torch

from client import wanted
from exports import TRACED_AT, assert_agree, attention, features, network
from whatwhere import ATTENTION

wanted("onnx")
wanted("onnxscript")
onnxruntime = wanted("onnxruntime")

NAMES = sorted(ATTENTION)
STARTS = ["paper", "identity"]


def session(file):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    # its remarks on shapes; errors are raised
    options.log_severity_level = 4
    found = onnxruntime.InferenceSession(file.getvalue(), options, providers=["CPUExecutionProvider"])
    name = found.get_inputs()[0].name
    return lambda x: found.run(None, {name: x.numpy()})[0]


@pytest.mark.parametrize("build", [attention, network], ids=["module", "network"])
@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("name", NAMES)
def test_the_torchscript_exporter(name, start, build):
    model, file = build(name, start), io.BytesIO()
    axes = {"x": {0: "n", 2: "h", 3: "w"}}
    example = features(model, TRACED_AT)
    torch.onnx.export(model, (example,), file, dynamo=False, input_names=["x"], dynamic_axes=axes)
    assert_agree(session(file), model)


@pytest.mark.parametrize(("build", "start"), [(attention, "paper"), (network, "identity")], ids=["module", "network"])
@pytest.mark.parametrize("name", NAMES)
def test_the_dynamo_exporter(name, start, build):
    model, file = build(name, start), io.BytesIO()
    free = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    example = features(model, TRACED_AT)
    torch.onnx.export(model, (example,), dynamo=True, dynamic_shapes=(free,), verbose=False).save(file)
    assert_agree(session(file), model)
