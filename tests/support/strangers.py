"""Networks of others, by name."""

import timm
import torch
import torchvision
from torch import nn
from torchvision.models.vgg import VGG, cfgs, make_layers

TORCHVISION = (
    "resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2", "mobilenet_v2", "mobilenet_v3_small",
    "mobilenet_v3_large", "efficientnet_b0", "efficientnet_v2_s", "regnet_y_400mf", "regnet_x_400mf", "convnext_tiny",
    "mnasnet0_5", "densenet121", "vgg11_bn", "vgg11", "squeezenet1_1", "googlenet", "shufflenet_v2_x0_5", "alexnet",
)  # fmt: skip
TIMM = (
    "resnet26", "resnet50d", "resnetv2_50", "resnext50_32x4d", "seresnet50", "resnest14d", "res2net50_26w_4s",
    "regnety_004", "regnetz_b16", "mobilenetv2_050", "mobilenetv3_small_050", "mobilenetv4_conv_small",
    "efficientnet_b0", "tf_efficientnet_lite0", "mixnet_s", "ghostnet_050", "convnext_atto", "convnextv2_atto",
    "densenet121", "vgg11_bn", "hrnet_w18_small", "dla34", "cspresnet50", "darknet53", "repvgg_a0", "rexnet_100",
    "nfnet_l0", "fbnetc_100", "skresnet18", "gernet_s", "ecaresnet26t", "xception41", "inception_v3", "vovnet39a",
    "selecsls42b", "mobileone_s0", "edgenext_xx_small", "fastvit_t8", "starnet_s1", "hardcorenas_a",
)  # fmt: skip
NAMES = (*(f"torchvision:{name}" for name in TORCHVISION), *(f"timm:{name}" for name in TIMM))


def build(name):
    """A network of 10 classes, from scratch; a VGG with a small classifier, because the published one takes 0.5 GB."""
    library, _, model = name.partition(":")
    if library == "timm":
        return timm.create_model(model, num_classes=10, **({"mlp_ratio": 1 / 64} if model == "vgg11_bn" else {}))
    if model in ("vgg11", "vgg11_bn"):
        with torch.device("meta"):
            network = VGG(nn.Identity(), init_weights=False)
        network.features, network.classifier = make_layers(cfgs["A"], model == "vgg11_bn"), nn.Linear(512 * 7 * 7, 10)
        return network
    extra = {"init_weights": False, "aux_logits": False} if model == "googlenet" else {}
    return torchvision.models.get_model(model, weights=None, num_classes=10, **extra)
