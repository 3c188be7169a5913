"""Networks of others, by name."""

import timm
import torchvision

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
    """A network of 10 classes, from scratch."""
    library, _, model = name.partition(":")
    if library == "timm":
        return timm.create_model(model, num_classes=10)
    extra = {"init_weights": False, "aux_logits": False} if model == "googlenet" else {}
    return torchvision.models.get_model(model, weights=None, num_classes=10, **extra)
