"""What the networks keep for backward, with the gates' passes shared."""

import pytest
import torch
import torchvision
from torch.profiler import ProfilerActivity, profile

from whatwhere import cost, create_model

SIZE = (3, 224, 224)


@pytest.fixture(scope="module")
def plain_bytes():
    return cost(create_model("resnext50_32x4d"), SIZE).total.saved_bytes


@pytest.mark.parametrize(
    ("name", "ratio"), [("cbam_resnext50_32x4d", 1.02), ("se_resnext50_32x4d", 1.01), ("eca_resnext50_32x4d", 1.01)]
)
def test_attention_keeps_hardly_more(name, ratio, plain_bytes):
    assert cost(create_model(name), SIZE).total.saved_bytes <= ratio * plain_bytes


@pytest.mark.parametrize("attention", ["eca", "srm", "gct", "ge", "fca"])
def test_a_small_network_with_a_channel_gate_keeps_hardly_more(attention):
    plain, gated = (
        cost(create_model(name), (3, 32, 32), batch_size=2).total.saved_bytes
        for name in ("resnext29_32x4d", f"{attention}_resnext29_32x4d")
    )
    assert gated <= 1.01 * plain


def test_the_plain_network_keeps_no_more_than_torchvisions(plain_bytes):
    assert plain_bytes <= cost(torchvision.models.resnext50_32x4d(), SIZE).total.saved_bytes


def live_bytes(model, images):
    """What is allocated in a training forward pass and still alive after it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        out = model(images)
    allocated = sum(event.self_cpu_memory_usage for event in profiler.key_averages())
    return allocated - out.untyped_storage().nbytes()


def test_what_is_alive_after_a_forward_pass_is_what_the_hooks_saw():
    """A custom function could keep tensors that no hook sees."""
    images = torch.randn(1, *SIZE)
    for name in ("resnext50_32x4d", "cbam_resnext50_32x4d"):
        model = create_model(name)
        assert live_bytes(model, images) == pytest.approx(cost(model, SIZE).total.saved_bytes, rel=0.01)
