"""Every attention under torch's tracers: what was traced at one size is right at every other, a single pixel included.

`tests/clients/test_onnxruntime.py` has the same for ONNX.
"""

import pytest
import torch
import torchvision
from torch import nn

from exports import TRACED_AT, assert_agree, attention, features, network
from whatwhere import ATTENTION, UserError, attend, create_model
from whatwhere.attention import CBAM, LocalGatherExcite

NAMES = sorted(ATTENTION)
STARTS = ["paper", "identity"]
BUILDS = pytest.mark.parametrize("build", [attention, network], ids=["module", "network"])
TORCHSCRIPT = pytest.mark.filterwarnings(
    "ignore::torch.jit.TracerWarning",
    "ignore:.*is deprecated:FutureWarning",
    "ignore:.*is deprecated:DeprecationWarning",
)


@TORCHSCRIPT
@BUILDS
@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("name", NAMES)
def test_a_torchscript_trace_serves_every_size(name, start, build):
    model = build(name, start)
    assert_agree(torch.jit.trace(model, features(model, TRACED_AT)), model)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("build", "start"), [(attention, "paper"), (network, "identity")], ids=["module", "network"])
@pytest.mark.parametrize("name", NAMES)
def test_an_exported_program_serves_every_size(name, start, build):
    model = build(name, start)
    free = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    program = torch.export.export(model, (features(model, TRACED_AT),), dynamic_shapes=(free,))

    def refuses(size, error):
        # torch.export takes a size of 1, also one further inside, for another case, and guards against it
        return 1 in size and isinstance(error, (AssertionError, RuntimeError))

    assert_agree(program.module(), model, refuses)


@TORCHSCRIPT
@pytest.mark.parametrize(
    "build",
    [
        lambda: CBAM(8, pools=("avg", "max", "lp", "lse")),
        lambda: LocalGatherExcite(8, variant="theta-minus", extent=4),
        lambda: LocalGatherExcite(8, extent=8),
    ],
    ids=["all pools", "averages around", "convolutions around"],
)
def test_further_forms_serve_every_size_once_traced(build):
    model = build().eval()
    assert_agree(torch.jit.trace(model, features(model, TRACED_AT)), model)


@TORCHSCRIPT
def test_what_is_for_one_size_fails_at_others_once_traced():
    traced = torch.jit.trace(LocalGatherExcite(8, extent=None, size=(14, 1)).eval(), torch.randn(2, 8, 14, 1))
    for size in ((14, 5), (15, 1), (1, 1)):
        with pytest.raises(RuntimeError):
            traced(torch.randn(2, 8, *size))


def script(model):
    with pytest.raises(UserError, match=r"torch\.jit\.script cannot compile .*; use torch\.export\.export, .*trace"):
        torch.jit.script(model)


@TORCHSCRIPT
@pytest.mark.parametrize("name", NAMES)
def test_scripting_an_attention_is_refused_in_one_sentence(name):
    script(ATTENTION[name](8))
    script(nn.Sequential(nn.Conv2d(3, 8, 1), ATTENTION[name](8, start="identity")))


@TORCHSCRIPT
@pytest.mark.parametrize("name", ["resnet18", "cbam_resnet18", "resnext11_8x8d", "article_resnext50"])
def test_scripting_a_network_is_refused_in_one_sentence(name):
    script(create_model(name))


@TORCHSCRIPT
@pytest.mark.parametrize("at", ["blocks", "layer1"])
@pytest.mark.parametrize(
    "added", ["se", lambda channels: nn.Conv2d(channels, channels, 1)], ids=["ours", "a stranger's"]
)
def test_scripting_an_attended_network_is_refused_in_one_sentence(added, at):
    script(attend(torchvision.models.resnet18(), added, at=at, example=torch.randn(1, 3, 64, 64)))
