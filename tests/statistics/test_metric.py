"""Which way is better, by the name of a metric."""

import pytest

from whatwhere import UserError
from whatwhere.statistics.metric import check_direction, margin_for, metric_for

# as the programs write them
HIGHER = {
    "Ultralytics": "metrics/mAP50(B) metrics/mAP50-95(B) metrics/mAP50-95(M) metrics/precision(B) metrics/recall(P) "
    "metrics/accuracy_top1 metrics/accuracy_top5 mAP50 mAP50-95 map50-95 mAP@0.5 mAP@.5:.95 mAP_0.5:0.95",
    "timm": "top1 top5 eval_top1 eval_top5 acc1 acc@1 Acc@5 prec1 prec@1 best_acc",
    "Lightning": "val_acc val/acc val_acc_epoch test_acc_epoch/dataloader_idx_0 train_acc_step valid.accuracy val-acc "
    "validation/accuracy best_val_acc ema_val_acc test_F1 val_f1 avg_val_acc dev_acc",
    "torchmetrics": "MulticlassAccuracy BinaryF1Score MultilabelAUROC BinaryAveragePrecision MulticlassJaccardIndex "
    "MeanAveragePrecision map map_50 map_75 map_small mar_100 mar_large DiceScore MeanIoU BLEUScore BinarySpecificity "
    "MulticlassCohenKappa BinaryMatthewsCorrCoef PeakSignalNoiseRatio StructuralSimilarityIndexMeasure",
    "Hugging Face": "eval_accuracy eval_f1 eval_macro_f1 eval_matthews_correlation eval_spearmanr eval_rouge1 "
    "eval_rougeLsum eval_bleu eval_mean_iou eval_overall_accuracy eval_mean_accuracy eval_map_50",
    "COCO": "AP AP50 AP75 APs APm APl AP_small AR@100 AR_max_100 bbox/AP segm/AP50 bbox_mAP coco/bbox_mAP_50 "
    "bbox_mAP_s mAP AP@[.5:.95] pascal_voc/mAP",
    "segmentation": "iou_score dataset_iou per_image_iou valid_dataset_iou aAcc mAcc mIoU mDice mFscore pixel_acc "
    "fscore val_dice dice_coefficient IoU Dice",
    "W&B": "val/accuracy.max summary/val_acc test.acc Accuracy Accuracy/test score val_score",
    "scikit-learn": "accuracy_score balanced_accuracy roc_auc roc_auc_score pr_auc average_precision_score f1_macro "
    "f1_weighted recall_macro jaccard_score matthews_corrcoef cohen_kappa_score r2_score fbeta_score AUC AUROC f1 "
    "F1-score F0.5 f1_score",
    "Keras": "val_categorical_accuracy val_sparse_categorical_accuracy binary_accuracy top_k_categorical_accuracy",
    "others": "top-1-accuracy top_1_acc top1_acc recall@1 recall@10 R@1 ndcg@10 mrr psnr PSNR(dB) ssim hota mota pq "
    "pck worst_group_acc accuracy(%) exact_match_accuracy episode_reward_mean",
    "Chinese": "准确率 验证准确率 测试集准确率 最佳准确率 验证集_准确率 平均精度 召回率 平均交并比 top1准确率 F1值",
}
UNKNOWN = (
    "1-accuracy 1-acc 100-acc val/1-accuracy 1\u2212accuracy -accuracy ~acc !acc acc_drop accuracy_std val_acc_std "
    "auc_gap fp_iou val_acc_delta inverse_score rank_acc accuracy_loss top1_err top5_error err@1 acc/flops acc_time "
    "map_time neg_accuracy minus_acc no_acc non_acc inaccuracy misaccuracy brier_score fid_score dist_score "
    "anomaly_score train_acc-val_acc train_val_acc acc_diff Δacc acc*-1 relative_acc_change acc_variance accuracy_ci "
    "std(acc) f top k 1 50 val best metrics/ latency val_loss eval_loss mse rmse perplexity fid lpips wer cer "
    "错误率 准确率下降 epe forgetting acc_forgotten false_recall accuracyless mapping maps apple factor number"
)


@pytest.mark.parametrize("name", [name for names in HIGHER.values() for name in names.split()])
def test_higher_is_better_for_the_usual_names(name):
    assert check_direction(name, None) is False


@pytest.mark.parametrize("name", [*UNKNOWN.split(), "accuracy (lower)", "1 - accuracy", "acc - f1", "acc minus f1"])
def test_a_name_that_is_not_understood_as_a_whole_tells_nothing(name):
    with pytest.raises(UserError, match="does not follow from its name; give --lower-is-better or --higher"):
        check_direction(name, None)
    assert check_direction(name, lower_is_better=True) is True


@pytest.mark.parametrize("name", ["psnr", "PSNR(dB)", "ssim", "episode_reward_mean", "correct", "R2", "mcc", "kappa"])
def test_what_is_no_share_of_a_whole_is_not_in_points_and_needs_a_margin(name):
    metric = metric_for(name, [0.31, 0.29])
    assert (metric.scale, metric.unit) == (1, "")
    with pytest.raises(UserError, match="matters is not known; give it, in the unit of the figures, with --margin"):
        margin_for(metric, None)


@pytest.mark.parametrize("name", ["val_acc", "mAP50", "test_F1", "eval_top1", "IoU", "AUC", "R@1", "准确率"])
def test_shares_are_in_points(name):
    assert [metric_for(name, figures).scale for figures in ([0.61, 0.62], [61.0, 62.0])] == [100, 1]
    assert margin_for(metric_for(name, [0.61, 0.62]), None) == 0.5
