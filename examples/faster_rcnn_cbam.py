"""Does CBAM help Faster R-CNN? torchvision's detector with and without it in the backbone, compared over seeds.

    pip install 'whatwhere[examples]'
    python examples/faster_rcnn_cbam.py --seeds 6 --out runs/faster_rcnn

The images are generated, so nothing is downloaded, and the detector is small: a run takes minutes on a CPU. Interrupt
it when you like: the same command goes on with the runs that are missing.

Your own images, in COCO's format: --data FOLDER with train.json, test.json, and the images in images/train/ and
images/test/. Then give --backbone resnet50 --weights resnet50.pth --size 800 and more --epochs.

What the CBAM paper (arXiv 1807.06521) claims: a higher mAP on COCO (Table 6, Faster R-CNN on ResNets) and on VOC 2007
(Table 7, StairNet). In its ResNets CBAM stands in each residual block, before the sum, as it does here.
Users of the authors' code have also found a lower mAP on VOC (github.com/Jongchan/attention-module/issues/24).
"""

import argparse
import contextlib
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import models, tv_tensors
from torchvision.io import ImageReadMode, decode_image
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops import box_convert
from torchvision.transforms import v2

from shapes import write_coco
from whatwhere import ATTENTION, UserError, attend, no_weight_decay
from whatwhere.experiment import compare
from whatwhere.report import write_page

READ = v2.ToDtype(torch.float32, scale=True)
AUGMENT = v2.Compose([v2.RandomHorizontalFlip(), v2.RandomPhotometricDistort(), READ])


class Images(Dataset):
    """The images of one part of a data set, with the boxes (x0, y0, x1, y1) and the labels of their objects."""

    def __init__(self, folder: Path, part: str, transform: nn.Module) -> None:
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints what it does
            self.coco = COCO(folder / f"{part}.json")
        self.ids, self.images, self.transform = sorted(self.coco.imgs), folder / "images" / part, transform

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        path = self.images / self.coco.imgs[self.ids[index]]["file_name"]
        image = tv_tensors.Image(decode_image(str(path), mode=ImageReadMode.RGB))
        objects = [item for item in self.coco.imgToAnns[self.ids[index]] if not item["iscrowd"]]
        boxes = torch.tensor([item["bbox"] for item in objects], dtype=torch.float32).reshape(-1, 4)
        target = {
            "boxes": tv_tensors.BoundingBoxes(
                box_convert(boxes, "xywh", "xyxy"), format="XYXY", canvas_size=image.shape[-2:]
            ),
            "labels": torch.tensor([item["category_id"] for item in objects], dtype=torch.int64),
        }
        return self.transform(image, target)


def as_lists(batch: list) -> tuple:
    """Keep the images of a batch apart: they may differ in size."""
    return tuple(zip(*batch, strict=True))


def training_batches(images: Images, seed: int) -> DataLoader:
    """Return batches whose order and augmentation follow from the seed alone.

    A worker draws its random numbers from `generator`. In the main process (num_workers=0) the augmentation would share
    them with the detector, which samples proposals, and the two networks of a pair would soon see different flips.
    """
    generator = torch.Generator().manual_seed(seed)
    return DataLoader(
        images, 4, shuffle=True, generator=generator, num_workers=1, persistent_workers=True, collate_fn=as_lists
    )


def build(arm: str, seed: int, num_classes: int, size: int, backbone: str, weights: Path | None) -> FasterRCNN:
    """Build a detector; with one seed, all arms start with the same outputs."""
    torch.manual_seed(seed)  # all layers but the attention start with the same weights
    resnet = models.get_model(backbone, weights=None)
    if weights is not None:  # a classifier's, in torchvision's layout
        resnet.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    channels = [resnet.fc.in_features // factor for factor in (8, 4, 2, 1)]
    # smaller than in torchvision's own detectors: 256 channels, anchors of 32 to 512 pixels, more proposals
    pyramid = BackboneWithFPN(resnet, {f"layer{i + 1}": str(i) for i in range(4)}, channels, out_channels=64)
    anchors = AnchorGenerator(((16,), (32,), (64,), (128,), (256,)), ((0.5, 1.0, 2.0),) * 5)
    proposals = {f"rpn_{when}_nms_top_n_{mode}": 100 for when in ("pre", "post") for mode in ("train", "test")}
    sizes = {"min_size": size, "max_size": 2 * size, "box_batch_size_per_image": 32}
    detector = FasterRCNN(pyramid, num_classes, rpn_anchor_generator=anchors, **sizes, **proposals)
    if arm != "none":  # in each residual block of the backbone; it starts as the identity
        attend(detector.backbone, arm, seed=seed, example=torch.zeros(1, 3, size, size))
    return detector


def train(detector: FasterRCNN, batches: DataLoader, epochs: int, device: torch.device) -> None:
    """Train for a number of epochs that was chosen before, the same for all arms."""
    detector.to(device).train()
    parameters = dict(detector.named_parameters())
    exempt = no_weight_decay(detector)  # decay would pull the attention's mixing factors to 0, where it has no effect
    groups: list[dict[str, Any]] = [
        {"params": [parameter for name, parameter in parameters.items() if name not in exempt]},
        {"params": [parameters[name] for name in exempt], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=5e-4, weight_decay=0.05)  # one learning rate for all
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-4, total_steps=epochs * len(batches), pct_start=0.1)
    for _ in range(epochs):
        for images, targets in batches:
            on_device = [{name: value.to(device) for name, value in target.items()} for target in targets]
            loss = sum(detector([image.to(device) for image in images], on_device).values())
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(detector.parameters(), 10)
            optimizer.step()
            schedule.step()


@torch.inference_mode()
def detect(detector: FasterRCNN, images: Images, device: torch.device) -> list[dict[str, Any]]:
    """Return what the detector finds, a dict for each box, as pycocotools takes it."""
    detector.eval()
    found = []
    for index, image_id in enumerate(images.ids):
        (output,) = detector([images[index][0].to(device)])
        boxes = box_convert(output["boxes"], "xyxy", "xywh").tolist()
        for box, label, score in zip(boxes, output["labels"].tolist(), output["scores"].tolist(), strict=True):
            found.append({"image_id": image_id, "category_id": label, "bbox": box, "score": score})
    return found


def mean_average_precision(coco: COCO, found: list[dict[str, Any]]) -> dict[str, float]:
    """Return COCO's mAP, the mean over IoU thresholds of 0.5 to 0.95, and the mAP at 0.5."""
    if not found:  # pycocotools takes no empty list
        return {"mAP": 0.0, "mAP50": 0.0}
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(coco, coco.loadRes(found), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {"mAP": float(evaluation.stats[0]), "mAP50": float(evaluation.stats[1])}


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
        folder = args.data or write_coco(generated, train=128, val=0, test=128, size=args.size)
        images, held_out = Images(folder, "train", AUGMENT), Images(folder, "test", READ)

        def run(arm: str, seed: int) -> dict[str, float]:
            detector = build(arm, seed, max(images.coco.cats) + 1, args.size, args.backbone, args.weights)
            train(detector, training_batches(images, seed), args.epochs, device)
            found = detect(detector, held_out, device)  # once, at the end: these images choose no epoch
            figures = mean_average_precision(held_out.coco, found)
            print(f"{arm}, seed {seed}: {figures}", flush=True)
            return figures

        title, results = f"Faster R-CNN with {args.backbone}", args.out / "results.csv"  # runs in it are not repeated
        comparison = compare(run, args.arms, args.seeds, metric="mAP", results=results, title=title)
    for verdict in comparison.judgement.arms:
        print(f"{verdict.conclusion}. {verdict.reason}")
    write_page(args.out / "report.html", comparison.content)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", default=["none", "cbam"], choices=["none", *ATTENTION])
    parser.add_argument("--seeds", type=int, default=6, help="a verdict needs 6 or more (by default 6)")
    parser.add_argument("--epochs", type=int, default=10, help="by default 10")
    parser.add_argument("--size", type=int, default=64, help="shorter side of the images, in pixels (by default 64)")
    parser.add_argument("--backbone", default="resnet18", help="a ResNet of torchvision (by default resnet18)")
    parser.add_argument("--weights", type=Path, help="a file of weights for the backbone; without it they are random")
    parser.add_argument("--data", type=Path, help="a folder with your images; without it they are generated")
    parser.add_argument("--out", type=Path, default=Path("runs/faster_rcnn"), help="by default runs/faster_rcnn")
    try:
        main(parser.parse_args())
    except UserError as error:
        parser.error(str(error))
