"""What the tests of tracers and exporters share: an attention, or a network with it, and the sizes they are run at."""

import torch

from whatwhere import ATTENTION
from whatwhere.models.blocks import BasicBlock
from whatwhere.models.resnet import ResNet

TRACED_AT = (2, 14, 14)
SIZES = [(2, 1, 1), (1, 14, 14), (3, 7, 9), (2, 5, 3), (2, 30, 8)]


def attention(name, start):
    return _with_random_values(ATTENTION[name](8, start=start))


def network(name, start):
    kwargs = {"attention": name, "attention_kwargs": {"start": start}, "stem": "cifar", "stem_channels": 8}
    return _with_random_values(ResNet(BasicBlock, (1, 1), widths=(8, 16), num_classes=3, **kwargs))


def features(model, size):
    """An input of `model` of a size (N, H, W)."""
    return torch.randn(size[0], 3 if isinstance(model, ResNet) else 8, *size[1:])


@torch.no_grad()
def assert_agree(run, model, refuses=lambda size, error: False):
    """`run` computes at all sizes what `model` does, to 1e-5; or it raises an error that is expected of it there."""
    for size in SIZES:
        x = features(model, size)
        try:
            found = run(x)
        except Exception as error:
            if not refuses(size, error):
                raise
            continue
        torch.testing.assert_close(torch.as_tensor(found), model(x), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def _with_random_values(model):
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape) + 0.5 if name.endswith("running_var") else torch.randn(value.shape) / 4)
    return model.eval()
