"""Networks of torchvision and timm: their weights, and what their libraries set beside them."""

import pytest
import torch
from torch import nn

from whatwhere import attend
from whatwhere.models.others import load_other


class Chain(nn.Module):
    """Made like VGG: attention behind one of its layers belongs to the network itself, and comes last in it."""

    def __init__(self, num_classes):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.classifier = nn.Linear(16, num_classes)

    def forward(self, x):
        return self.classifier(self.features(x).mean((2, 3)))


@pytest.mark.parametrize("attention", ["se", "cbam"])
def test_the_classifier_is_found_in_front_of_attention_that_came_later(attention):
    source, model = (attend(Chain(classes), attention, at="features.0", seed=0) for classes in (7, 4))
    last = list(dict(model.named_modules()))[-1]
    assert last.startswith("features_0_attention.")
    fresh = model.classifier.weight.detach().clone()
    load_other(model, source.state_dict(), "a file")
    assert torch.equal(model.classifier.weight, fresh)
    assert torch.equal(model.features[0].weight, source.features[0].weight)
