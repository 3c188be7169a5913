"""Tables that hold too little, or are written in other ways: a sentence, or a sound result, and nothing else."""

import math

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from whatwhere import UserError
from whatwhere.experiment import judge, read_results

CELLS = st.sampled_from(
    [
        "",
        "0",
        "-1",
        "0.5",
        "0.61",
        "0.62",
        "1",
        "61.5",
        "nan",
        "inf",
        "-",
        "1e400",
        "0,5",
        "1,200",
        "none",
        "cbam",
        "CBAM ",
        "a\x00b",
        '"',
        "é",
        "\uff11",
        "1_0",
        "0.5_1",
        "x" * 400,
        "\u202e",
        "%",
        "61%",
    ]
)
HEADS = st.sampled_from(
    [
        "arm",
        "seed",
        "accuracy",
        "mAP50",
        "loss",
        "epoch",
        "model",
        "run",
        "lr",
        "",
        "Unnamed: 0",
        "none",
        "cbam",
        "state",
        "attention_use",
        "collect_notes",
        "folder",
        "Arm",
    ]
)
RUNS = st.tuples(st.sampled_from(["none", "cbam", "se"]), st.integers(0, 8), CELLS)
ENCODINGS = st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "latin-1"])


def judged(path, content):
    path.write_bytes(content)
    try:
        judgement = judge(read_results(path))
    except UserError:
        return
    for arm in judgement.arms:
        assert arm.verdict == "cannot tell yet" or arm.num_pairs >= 6
        assert all(map(math.isfinite, (*arm.baseline, *arm.treatment, *arm.differences)))


@example(head=["arm", "seed"], rows=[['"', '"']], delimiter=",", end="\n", encoding="utf-8")
@example(head=["arm", "run"], rows=[["none", "0"], ["cbam"]], delimiter=",", end="\n", encoding="utf-8")
@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    head=st.lists(HEADS, max_size=6),
    rows=st.lists(st.lists(CELLS, max_size=6), max_size=8),
    delimiter=st.sampled_from(",;\t"),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    encoding=ENCODINGS,
)
def test_any_table_gets_a_sentence_or_a_sound_result(tmp_path, head, rows, delimiter, end, encoding):
    text = end.join(delimiter.join(row) for row in [head, *rows])
    judged(tmp_path / "results.csv", text.encode(encoding, "replace"))


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    runs=st.lists(RUNS, max_size=20, unique_by=lambda run: run[:2]),
    same=st.none() | st.sampled_from(["0", "0.5", "1", "", "nan"]),
    name=st.sampled_from(["accuracy", "mAP50", "reward", "val_loss"]),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    encoding=ENCODINGS,
)
def test_runs_that_are_few_alike_or_missing(tmp_path, runs, same, name, end, encoding):
    lines = [f"{arm}\t{seed}\t{figure if same is None else same}" for arm, seed, figure in runs]
    judged(tmp_path / "results.csv", end.join([f"arm\tseed\t{name}", *lines]).encode(encoding, "replace"))
