"""Does attention help a U-Net? segmentation-models-pytorch's Unet with and without it, compared over seeds.

    pip install 'whatwhere[examples]'
    python examples/segmentation_smp.py --seeds 6 --out runs/unet

The images are generated, so nothing is downloaded, and the network is small: a run takes a minute or two on a CPU.
Interrupt it when you like: the same command goes on with the runs that are missing.

Your own images: --data FOLDER with images/train/, masks/train/, images/test/ and masks/test/. A mask is a PNG of the
same name as its image, its pixels are the numbers of the classes, and 0 is the background. All images have one size,
divisible by 32. Say how many classes there are, and give more epochs: --classes 21 --epochs 50.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2

from shapes import CLASSES, write_masks
from whatwhere import ATTENTION, UserError, attend, no_weight_decay
from whatwhere.experiment import compare
from whatwhere.report import write_page

# ImageNet's mean and standard deviation, as pretrained encoders expect
READ = v2.Compose(
    [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
)
AUGMENT = v2.Compose([v2.RandomHorizontalFlip(), v2.RandomVerticalFlip(), v2.RandomPhotometricDistort(), READ])


class Images(Dataset):
    """The images of one part of a data set, with their masks."""

    def __init__(self, folder: Path, part: str, transform: nn.Module) -> None:
        self.images, self.masks = (sorted((folder / kind / part).iterdir()) for kind in ("images", "masks"))
        if [path.stem for path in self.images] != [path.stem for path in self.masks]:
            raise UserError(
                f"images/{part} and masks/{part} of {str(folder)!r} differ in names; give each image its mask"
            )
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = tv_tensors.Image(decode_image(str(self.images[index]), mode=ImageReadMode.RGB))
        mask = tv_tensors.Mask(decode_image(str(self.masks[index]))[0].long())
        return self.transform(image, mask)


def training_batches(images: Images, seed: int) -> DataLoader:
    """Return batches whose order and augmentation follow from the seed alone.

    A worker draws its random numbers from `generator`. In the main process (num_workers=0) the augmentation would share
    them with the network, and dropout, for one, would change what the images look like.
    """
    generator = torch.Generator().manual_seed(seed)
    return DataLoader(images, 4, shuffle=True, generator=generator, num_workers=1, persistent_workers=True)


def build(arm: str, seed: int, num_classes: int, encoder: str, weights: Path | None, example: Tensor) -> nn.Module:
    """Build a Unet; with one seed, all arms start with the same outputs."""
    torch.manual_seed(seed)  # all layers but the attention start with the same weights
    network = smp.Unet(encoder, encoder_weights=None, classes=num_classes, decoder_channels=(128, 64, 32, 16, 8))
    if weights is not None:  # a classifier's, as torchvision names its tensors
        network.encoder.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    if arm != "none":  # in each residual block of the encoder; it starts as the identity
        attend(network.encoder, arm, seed=seed, example=example)
    return network


def train(network: nn.Module, batches: DataLoader, num_classes: int, epochs: int, device: torch.device) -> None:
    """Train for a number of epochs that was chosen before, the same for all arms."""
    network.to(device).train()
    parameters = dict(network.named_parameters())
    exempt = no_weight_decay(network)  # decay would pull the attention's mixing factors to 0, where it has no effect
    groups: list[dict[str, Any]] = [
        {"params": [parameter for name, parameter in parameters.items() if name not in exempt]},
        {"params": [parameters[name] for name in exempt], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=2e-3, weight_decay=0.05)  # one learning rate for all
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=epochs * len(batches), pct_start=0.1)
    dice_loss = smp.losses.DiceLoss("multiclass", classes=list(range(1, num_classes)))
    for _ in range(epochs):
        for images, masks in batches:
            logits, target = network(images.to(device)), masks.to(device)
            loss = nn.functional.cross_entropy(logits, target) + dice_loss(logits, target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


def dice(predicted: Tensor, masks: Tensor, num_classes: int) -> float:
    """Return 2 TP / (2 TP + FP + FN) over all pixels (N, H, W), the mean over the classes but the background."""
    counts = smp.metrics.get_stats(predicted, masks, mode="multiclass", num_classes=num_classes)
    return float(smp.metrics.f1_score(*(count[:, 1:] for count in counts), reduction="macro"))


@torch.inference_mode()
def test(network: nn.Module, images: Images, num_classes: int, device: torch.device) -> float:
    """Return the network's Dice on images."""
    network.eval()
    pairs = [(network(batch.to(device)).argmax(1).cpu(), masks) for batch, masks in DataLoader(images, 8)]
    predicted, masks = (torch.cat(tensors) for tensors in zip(*pairs, strict=True))
    return dice(predicted, masks, num_classes)


def main(args: argparse.Namespace) -> None:
    """Train all arms with all seeds, print the verdicts and write the page."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    args.out.mkdir(parents=True, exist_ok=True)
    settings = {name: str(value) for name, value in vars(args).items() if name not in ("arms", "seeds", "out")}
    kept = args.out / "settings.json"
    if kept.exists() and json.loads(kept.read_text("utf-8")) != settings:
        raise UserError(f"{str(args.out)!r} holds runs with other settings ({kept}); give another --out")
    kept.write_text(json.dumps(settings), encoding="utf-8")
    with tempfile.TemporaryDirectory() as generated:
        folder = args.data or write_masks(generated, train=128, val=0, test=128, size=64)
        images, held_out = Images(folder, "train", AUGMENT), Images(folder, "test", READ)

        def run(arm: str, seed: int) -> dict[str, float]:
            network = build(arm, seed, args.classes, args.encoder, args.weights, held_out[0][0][None])
            train(network, training_batches(images, seed), args.classes, args.epochs, device)
            figures = {"Dice": test(network, held_out, args.classes, device)}  # once: these images choose no epoch
            print(f"{arm}, seed {seed}: {figures}", flush=True)
            return figures

        comparison = compare(
            run,
            args.arms,
            args.seeds,
            metric="Dice",
            lower_is_better=False,
            results=args.out / "results.csv",  # runs in it are not repeated
            title=f"Unet with {args.encoder}",
        )
    for verdict in comparison.judgement.arms:
        print(f"{verdict.conclusion}. {verdict.reason}")
    write_page(args.out / "report.html", comparison.content)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", default=["none", "cbam"], choices=["none", *ATTENTION])
    parser.add_argument("--seeds", type=int, default=6, help="a verdict needs 6 or more (by default 6)")
    parser.add_argument("--epochs", type=int, default=12, help="by default 12")
    parser.add_argument("--encoder", default="resnet18", help="an encoder of smp (by default resnet18)")
    parser.add_argument("--weights", type=Path, help="a file of weights for the encoder; without it they are random")
    parser.add_argument("--data", type=Path, help="a folder with your images; without it they are generated")
    parser.add_argument("--classes", type=int, default=len(CLASSES) + 1, help="of your images, with the background")
    parser.add_argument("--out", type=Path, default=Path("runs/unet"), help="by default runs/unet")
    try:
        main(parser.parse_args())
    except UserError as error:
        parser.error(str(error))
