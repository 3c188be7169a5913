"""Which way is better, by the words in the name of a metric."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

_HIGHER_TEXT = """
accuracy acc aacc macc prec precision mprecision map mar ap aps apm apl ar recall mrecall auc auroc auprc iou miou
meaniou jaccard dice mdice fscore mfscore fmeasure fbeta sensitivity specificity score kappa mcc matthews corrcoef
correct reward return bleu sacrebleu rouge meteor cider ndcg mrr psnr ssim msssim peaksignalnoiseratio
structuralsimilarityindexmeasure hota mota pq pck plcc srcc spearman spearmanr pearson pearsonr
准确率 正确率 召回率 精确率 精度 准确度 交并比
"""
_NEUTRAL_TEXT = """
eval evaluation evaluate metric metrics best max maximum final last mean avg average averaged m macro micro weighted
samples balanced overall total global per class classes classwise image images sample dataset pixel group worst epoch
step dataloader idx ema model raw value percent percentage pct db bbox box segm mask keypoint keypoints pose seg det
detection coco voc pascal small medium large s l b p at binary multiclass multilabel multi label categorical sparse
classification clf exact match roc pr curve under area coefficient coeff coef index cohen intersection over union
generalized corr correlation measure beta summary combined episode lsum
最佳 最好 最高 最终 平均 总体 整体 类别 值 宏 微
"""
_HIGHER, _NEUTRAL = {*_HIGHER_TEXT.split()}, {*_NEUTRAL_TEXT.split()}
# metrics that can be negative
_SIGNED_TEXT = """
kappa mcc matthews corrcoef reward return psnr peaksignalnoiseratio ssim msssim structuralsimilarityindexmeasure mota
plcc srcc spearman spearmanr pearson pearsonr r
"""
_SIGNED = {*_SIGNED_TEXT.split()}
_NO_CEILING = {"score", "reward", "return", "psnr", "peaksignalnoiseratio", "cider", "correct"}
# errors, times, sizes and counts: 0 at least. Losses, likelihoods and energies may be negative.
_FLOOR_TEXT = """
err error errors mae mse rmse mape smape msle rmsle nrmse wer cer mer fid lpips ppl perplexity brier ece mce fpr fnr fp
fn eer epe mpjpe absrel hd hd95 hausdorff chamfer distance miss misses mistakes failures false wrong count counts
"""
_COSTS_TEXT = """
time times latency duration runtime seconds sec secs ms msec minutes hours memory bytes kb mb gb kib mib gib vram
params parameters flops macs
"""
_COSTS = {*_COSTS_TEXT.split()}
_FLOOR = {*_FLOOR_TEXT.split()} | _COSTS
_BEST = {"best", "max", "maximum", "minimum", "highest", "lowest", "peak", "最佳", "最好", "最高", "最低"}
_FLOOR_PARTS = ("error", "rmse", "perplexity", "latency", "误差", "错误率", "困惑度", "耗时")
# of such a figure they may make one that is negative
_TURNING_TEXT = """
log logarithm nll elbo likelihood diff difference delta change changes gain drop relative rel signed bias neg negative
minus improvement improvements gap excess residual reduction lift saved saving skill vs z zscore normalized standardized
"""
_TURNING = {*_TURNING_TEXT.split()}
_SPLITS = [
    {"train", "training", "训练集", "训练"},
    {"val", "valid", "validation", "dev", "holdout", "heldout", "验证集", "验证"},
    {"test", "testing", "测试集", "测试"},
]
_KNOWN = (_HIGHER | _NEUTRAL).union(*_SPLITS)
# metrics together with what follows them: top 1, F score, R@5
_BEGINNINGS = {
    "top": re.compile("[0-9]+|k"),
    "f": re.compile("[0-9]+|score|measure|beta"),
    "r": re.compile("1|2|5|10"),
}
_LOWER = re.compile("loss|err|fail|miss|wrong|fals|incorrect|inaccura|time|latency|dist|cost|brier", re.IGNORECASE)
# figures without an upper end: parts of names, and whole words
_ENDLESS = ("loss", "perplexity", "latency", "rmse")
_ENDLESS_WORDS = {"mae", "mse", "fid", "time"}
_CHINESE = "|".join(sorted((word for word in _KNOWN if not word.isascii()), key=len, reverse=True))
_WORD = re.compile(rf"{_CHINESE}|[A-Za-z]+|[0-9]+")
_CAMEL = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_BETWEEN = re.compile(r"[\s_/.:,@()\[\]|%-]*")
_LOSS = re.compile("loss|损失", re.IGNORECASE)
_MINUS = re.compile(r"^\s*-|\s-\s")


def is_called_higher(name: str) -> bool:
    """Return whether a name is that of a metric where higher is better. Each of its words must be understood.

    It holds for val/acc, eval_top1, metrics/mAP50-95(B) and MulticlassF1Score. It does not for 1-accuracy, acc_drop,
    auc_gap and val_acc_std, which hold a word or a number that changes the meaning, or that is not known; nor for
    train_acc-val_acc, which names two splits.
    """
    if not _BETWEEN.fullmatch(_WORD.sub("", name)) or _MINUS.search(name):
        return False
    words = list(_words(name))
    if sum(bool(split & {*words}) for split in _SPLITS) > 1:
        return False
    for before, word, following in zip(["", *words], words, [*words[1:], ""], strict=False):
        if word in _BEGINNINGS:
            is_known = _BEGINNINGS[word].fullmatch(following) is not None
        elif word.isdecimal() or word == "k":
            # a number that follows no metric changes the meaning, as in 1-accuracy
            is_known = before in _HIGHER or before in _BEGINNINGS or before in ("idx", "max") or before.isdecimal()
        else:
            is_known = word in _KNOWN
        if not is_known:
            return False
    return bool({*words} & (_HIGHER | _BEGINNINGS.keys()))


def is_called_best(name: str) -> bool:
    """Return whether a name says that a figure is the best of several, as best_acc, max_val_f1 and min_loss do.

    In AR@maxDets=100 the word is the number's, and time_min is in minutes.
    """
    words = [*_words(name), ""]
    return words[0] == "min" or any(
        word in _BEST and not (following.isdecimal() or following == "dets")
        for word, following in itertools.pairwise(words)
    )


def is_of_training(name: str) -> bool:
    """Return whether a name is that of a figure of the training images, as train_acc and train/loss are.

    A training time is none.
    """
    return bool({*_words(name)} & _SPLITS[0]) and (is_called_higher(name) or bool(_LOSS.search(name)))


def is_of_other_images(name: str) -> bool:
    """Return whether a name is that of a metric or a loss of images other than the training's, as val_accuracy is."""
    words = {*_words(name)}
    is_of_split = words & (_SPLITS[1] | _SPLITS[2] | {"eval", "evaluation"})
    return bool(is_of_split) and (is_called_higher(name) or is_called_a_loss(name) or bool(words & {"err", "error"}))


def is_called_a_loss(name: str) -> bool:
    """Return whether a name is that of a loss."""
    return _LOSS.search(name) is not None


def is_never_negative(name: str) -> bool:
    """Return whether a name is that of a metric that is 0 at least, as accuracy and errors are.

    A bare score, a loss, and what is computed from two figures (err_diff, log_mse) may be anything.
    """
    words = {*_words(name)}
    if is_called_higher(name):
        return bool(words & ((_HIGHER | _BEGINNINGS.keys()) - {"score"})) and not words & _SIGNED
    has_floor = bool(words & _FLOOR) or any(part in name.lower() for part in _FLOOR_PARTS)
    return has_floor and not words & _TURNING and not _LOSS.search(name) and not _MINUS.search(name)


def is_called_signed(name: str) -> bool:
    """Return whether a metric can be negative by its name, as a reward or MCC; `signed_loss` says so."""
    words = list(_words(name))
    # R2, and not R@1, which is a recall
    return bool({*words} & (_SIGNED - {"r"} | {"signed"})) or ("r", "2") in itertools.pairwise(words)


def is_at_most_all(name: str) -> bool:
    """Return whether a name is that of a share of a whole: at most 1, or 100 as a percentage, as accuracy is."""
    words = {*_words(name)}
    has_ceiling = bool(words & ((_HIGHER | _BEGINNINGS.keys()) - _NO_CEILING)) and not words & (_NO_CEILING - {"score"})
    return has_ceiling and is_called_higher(name)


def is_called_a_metric(name: str) -> bool:
    """Return whether a name holds a word of a metric, as val_acc and loss do; names of arms hardly ever do."""
    return bool(_LOWER.search(name)) or has_no_end(name) or bool({*_words(name)} & (_HIGHER | {"top", "f"}))


def is_called_a_cost(name: str) -> bool:
    """Return whether a name is that of a time, a date or a size, and nothing else: hours, gpu_memory_mb, date."""
    words = {*_words(name)}
    costs, beside = _COSTS | {"date", "timestamp", "耗时", "时间"}, {"gpu", "cpu", "wall", "peak", "h", "m", "g"}
    return bool(words & costs) and words <= costs | beside | _NEUTRAL | _SPLITS[0]


def has_no_end(name: str) -> bool:
    """Return whether a name is that of a figure without an upper end, such as a loss or a time."""
    return any(part in name.lower() for part in _ENDLESS) or bool({*_words(name)} & _ENDLESS_WORDS)


def _words(name: str) -> Iterator[str]:
    """Yield the words and the numbers of a name in small letters: metrics, map, 50, 95, b of metrics/mAP50-95(B)."""
    for word in _WORD.findall(name):
        parts = [] if word.lower() in _KNOWN else _CAMEL.findall(word)
        yield from map(str.lower, parts or [word])
