"""Every attention under FX graph mode quantisation: prepared, calibrated, converted."""

import copy

import pytest
import torch
import torchvision
from torchvision.models.resnet import BasicBlock

from exports import network
from whatwhere import ATTENTION, attend

quantization = pytest.importorskip("torch.ao.quantization")
quantize_fx = pytest.importorskip("torch.ao.quantization.quantize_fx")
# Activations from their least to their largest: the default searches a histogram for a better range, which takes
# seconds a network. Seven bits, as by default: eight overflow on processors without VNNI.
RANGE = quantization.MinMaxObserver.with_args(reduce_range=True)
WEIGHTS = quantization.default_per_channel_weight_observer

# of torch about itself: that this way of quantising will go, and of broadcasting in eight bits
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture
def engine(monkeypatch):
    """A CPU's engine for eight bits, which knows nothing of deterministic algorithms."""
    found = [name for name in ("x86", "fbgemm", "qnnpack") if name in torch.backends.quantized.supported_engines]
    if not found:
        pytest.skip("this build of torch has no engine for quantised networks")
    monkeypatch.setattr(torch.backends.quantized, "engine", found[0])
    torch.use_deterministic_algorithms(False)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
    yield found[0]
    torch.use_deterministic_algorithms(True)


def attended(name, start):
    """A network of torchvision's with attention behind its norms."""
    model = torchvision.models.ResNet(BasicBlock, [1, 1, 1, 1], num_classes=100)
    return attend(model, name, start=start, example=torch.randn(1, 3, 32, 32)).eval()


@pytest.mark.parametrize(("build", "start"), [(network, "paper"), (attended, "identity")], ids=["ours", "torchvision"])
@pytest.mark.parametrize("name", sorted(ATTENTION))
@torch.no_grad()
def test_quantised_networks_compute_nearly_the_same_at_any_size(name, start, build, engine):
    model, images = build(name, start), torch.randn(4, 3, 32, 32)
    for _ in range(5):  # so that the norms know their features, and these have a scale that eight bits hold
        model.train()(images)
    model.eval()
    mapping = quantization.get_default_qconfig_mapping(engine)
    if name != "simam":  # a few of its values are far larger than the others
        mapping.set_global(quantization.QConfig(RANGE, WEIGHTS))
    prepared = quantize_fx.prepare_fx(copy.deepcopy(model), mapping, (images,))
    prepared(images)
    quantised = quantize_fx.convert_fx(prepared)
    for x in (images, images[:1, :, :17, :21]):
        exact = model(x)
        assert (quantised(x) - exact).norm() <= 0.25 * exact.norm()
