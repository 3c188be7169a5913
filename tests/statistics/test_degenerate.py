"""Tables that hold too little, or are written in other ways: a sentence, or a sound result, and nothing else."""

import json
import math

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from whatwhere import UserError
from whatwhere.experiment import judge, read_results

LOWER = "--lower-is-better"
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


# what is left of a table after a filter, or of runs that all went wrong
COLUMN = st.sampled_from(["nan", "inf", "-inf", "", "failed", "0", "1", "-1", "0.5", "50", "text", "1e-300", "999"])
ARMS = st.lists(st.sampled_from(["none", "cbam", "se", "n" * 250]), max_size=3, unique=True)


@example(arms=[], seeds=[], fill="0", odd=None, shift=0.0, copies=1, options=[])
@example(arms=["none"], seeds=[0], fill="0.5", odd=None, shift=0.1, copies=1, options=[])
@example(arms=["none", "cbam"], seeds=[0], fill="0.5", odd="nan", shift=0.1, copies=1, options=[])
@example(arms=["none", "cbam"], seeds=list(range(8)), fill="0.5", odd=None, shift=0.1, copies=1, options=[])
@example(arms=["none", "cbam"], seeds=list(range(8)), fill="0.5", odd="0.6", shift=0.1, copies=2, options=[])
@example(arms=["none", "cbam"], seeds=[0], fill="0", odd="nan", shift=0.0, copies=1, options=["--margin=0.1", LOWER])
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    arms=ARMS,
    seeds=st.lists(st.integers(0, 9), max_size=8, unique=True),
    fill=COLUMN,
    odd=st.none() | COLUMN,
    shift=st.sampled_from([0.0, 0.1]),
    copies=st.sampled_from([1, 1, 1, 2]),
    options=st.lists(
        st.sampled_from(["--metric=acc", "--metric=other", "--margin=0.1", LOWER, "--max-pairs=6"]),
        max_size=3,
        unique=True,
    ),
)
def test_the_command_gives_a_sentence_or_a_sound_result(
    whatwhere, tmp_path, arms, seeds, fill, odd, shift, copies, options
):
    """The whole way of a user: table, verdict, terminal, page and record."""
    lines = ["arm,seed,acc,other"]
    for number, arm in enumerate(arms):
        for seed in seeds:
            figure = f"{0.5 + seed / 100 + number * shift}" if fill == "0.5" else fill
            lines.append(f"{arm},{seed},{figure if odd is None or seed != seeds[0] else odd},{fill}")
    for name in ("results.csv", "results.verdict.json", "results.verdict.html"):
        (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / "results.csv").write_text("\n".join([lines[0], *lines[1:] * copies]) if arms or seeds else "")
    status, out, err = whatwhere("verdict", tmp_path / "results.csv", *options)
    if status:
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert len(err.replace(str(tmp_path), "")) <= 300 + len("whatwhere: \n")
        assert not (tmp_path / "results.verdict.json").exists()
        return
    assert err == ""
    record = json.loads((tmp_path / "results.verdict.json").read_text())
    for arm in record["judgement"]["arms"]:
        assert arm["verdict"] == "cannot tell yet" or (arm["num_pairs"] >= 6 and arm["p_t"] is not None)
        missing = [text for text in arm["cautions"] if " has no " in text]
        # a single pair is counted, and has no difference to show
        is_single = len(seeds) == 1 and "there is 1 pair" in arm["reason"]
        assert len(arm["seeds"]) == len(seeds) or is_single or missing or not len(seeds)
