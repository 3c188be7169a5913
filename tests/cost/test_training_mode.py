"""Models that in training mode want more than images: what cost says, and measures in evaluation mode."""

import pytest
import torch
import torchvision
from torch import nn

from whatwhere import UserError, compare_costs, cost
from whatwhere.cost import TrainingModeError


class Detector(nn.Module):
    """Wants targets in training mode; `neck` takes no images."""

    def __init__(self):
        super().__init__()
        self.neck = nn.Linear(1000, 1000)
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU())

    def forward(self, images, targets=None):
        if self.training and targets is None:
            raise ValueError("In training mode, targets should be passed")
        return {"features": self.body(images)}


def test_a_detector_names_what_can_be_measured(refused):
    model = Detector()
    with refused() as caught:
        cost(model, (3, 8, 8))
    assert isinstance(caught.value, TrainingModeError)
    # as the message says
    assert cost(model.body, (3, 8, 8)).total.saved_bytes > 0
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_bytes_saved_in_evaluation_mode_worked_by_hand():
    model = Detector()
    result = cost(model, (3, 8, 8), batch_size=2, training=False)
    # float32: the images (by the convolution), its output (by the norm, whose statistics are buffers), the ReLU's
    images, features = 2 * 3 * 64, 2 * 4 * 36
    layers = {layer.name: layer.total.saved_bytes for layer in result.layers}
    assert (layers["body.0"], layers["body.1"], layers["body.2"]) == (4 * images, 4 * features, 4 * features)
    assert result.total.saved_bytes == 4 * (images + 2 * features)
    assert result.to_dict()["training"] is False
    assert "measured in evaluation mode" in str(result)
    assert "evaluation mode" not in str(cost(model.body, (3, 8, 8)))
    assert model.training


def test_both_modes_are_not_compared(refused):
    model = Detector()
    a, b = cost(model.body, (3, 8, 8)), cost(model.body, (3, 8, 8), training=False)
    with refused():
        compare_costs(a, b)
    assert "measured in evaluation mode" in str(compare_costs(b, b))


def test_the_training_step_is_timed_in_evaluation_mode():
    assert cost(Detector(), (3, 8, 8), training=False, latency=True).latency.training_step_ms > 0


@pytest.mark.parametrize("name", ["ssdlite320_mobilenet_v3_large", "fasterrcnn_mobilenet_v3_large_320_fpn"])
def test_detectors_of_torchvision(name, refused):
    model = torchvision.models.get_model(name, weights=None, weights_backbone=None)
    with refused(hiding=r"(?<=in training mode\b).*should not be none"):
        cost(model, (3, 320, 320))
    result = cost(model, (3, 320, 320), training=False)
    backbone = cost(model.backbone, (3, 320, 320), batch_size=2)
    assert result.total.macs > backbone.total.macs / 2
    assert result.total.saved_bytes > 0


class Whole(Detector):
    """No child takes the images."""

    def __init__(self):
        super().__init__()
        del self.body
        self.convs = nn.ModuleList([nn.Conv2d(3, 4, 3)])

    def body(self, images):
        return self.convs[0](images)


def test_no_part_is_named_where_none_takes_images(refused):
    with refused():
        cost(Whole(), (3, 8, 8))


class Small(Detector):
    """Its norm sees one value in a batch of one."""

    def forward(self, images, targets=None):
        return self.body(torch.nn.functional.adaptive_avg_pool2d(images, 3))


def test_a_batch_that_is_too_small_is_told_as_before(refused):
    with refused():
        cost(Small(), (3, 8, 8))


def test_an_error_in_evaluation_mode_is_no_matter_of_the_mode():
    with pytest.raises(UserError) as caught:
        cost(Detector(), (4, 8, 8))
    assert not isinstance(caught.value, TrainingModeError)
