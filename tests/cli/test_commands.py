"""The commands, as a user types them, on a small corpus."""

import json
import math
import shutil
from pathlib import Path

import pytest

from bert_jax.__main__ import main
from tests.cli import corpus

CONFIG = "--config=configs/bert_tiny.py:smoke"
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", autouse=True)
def _project_root():
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of two phases, and the arguments that made it."""
    folder = tmp_path_factory.mktemp("run")
    text = corpus.write(folder / "text.txt")
    arguments = [
        "train",
        CONFIG,
        f"--workdir={folder / 'run'}",
        f"--config.data.source={text}",
        "--config.data.num_workers=1",
        "--config.phases[1].length=32",
        "--config.phases[0].share=0.5",
        "--config.phases[1].share=0.5",
    ]
    assert main(arguments) == 0
    return folder / "run", arguments


def test_a_run_directory_tells_everything(run):
    workdir, _ = run
    summary = json.loads((workdir / "summary.json").read_text())
    for name in (
        "eval_mlm_loss eval_mlm_accuracy eval_nsp_accuracy eval_nsp_baseline "
        "unigram_loss tokens_per_second seconds"
    ).split():
        assert math.isfinite(summary[name]), name
    assert summary["steps"] == 8
    assert len(summary["eval_set_md5"]) == 32 and len(summary["params_digest"]) == 64
    text = (workdir / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert [x["step"] for x in lines if x["kind"] == "train"] == [2, 4, 6, 8]
    assert [x["step"] for x in lines if x["kind"] == "eval"] == [4, 8]
    wanted = (
        "mlm_loss mlm_accuracy nsp_accuracy learning_rate grad_norm input_wait_share "
        "useful_tokens_per_second padded_tokens_per_second flops_per_second"
    ).split()
    assert all(math.isfinite(lines[0][name]) for name in wanted)
    for name in ("config.json", "tokenizer/tokenizer.json", "tokenizer/vocab.txt"):
        assert (workdir / name).is_file(), name
    assert list((workdir / "tensorboard").glob("events*"))
    assert (workdir / "checkpoints" / "8").is_dir()
    start = json.loads((workdir / "events.jsonl").read_text().splitlines()[0])
    assert (start["event"], start["device"], start["devices"]) == ("start", "cpu", 8)


def test_report_reads_a_real_run(run, tmp_path, capsys):
    workdir, _ = run
    flags = [f"--out={tmp_path / 'page.html'}", "--json"]
    assert main(["report", str(workdir), *flags]) == 0
    (cell,) = json.loads(capsys.readouterr().out.splitlines()[-1])["cells"]
    summary = json.loads((workdir / "summary.json").read_text())
    assert cell["scores"]["mlm_loss"]["final"]["mean"] == summary["eval_mlm_loss"]
    cost = cell["cost"][0]
    assert cost["device"] == "cpu × 8" and 0 < cost["step_hours"] < cost["hours"]
    assert 0 < cost["tokens"] <= cost["padded_tokens"]


def test_a_finished_run_says_so_and_changes_nothing(run, capsys):
    workdir, arguments = run
    before = (workdir / "summary.json").read_bytes()
    assert main(arguments) == 0
    assert "was finished already" in capsys.readouterr().out
    assert (workdir / "summary.json").read_bytes() == before


def test_a_run_of_an_older_version_goes_on(run, tmp_path, capsys):
    """Its config.json lacks the fields that came later, which are at their defaults."""
    workdir, arguments = run
    older = tmp_path / "older"
    shutil.copytree(workdir, older)
    config = json.loads((older / "config.json").read_text())
    del config["model"]["norm"], config["distill"], config["objective"]["kind"]
    (older / "config.json").write_text(json.dumps(config))
    (older / "origin.json").unlink()
    again = [a if "--workdir" not in a else f"--workdir={older}" for a in arguments]
    store = f"--config.data.store={workdir / 'store'}"
    assert main([*again, store]) == 0  # the same one
    capsys.readouterr()
    assert main(again) == 0
    assert "was finished already" in capsys.readouterr().out
    assert main([*again, "--config.model.norm=pre"]) == 2
    assert "config.model.norm: 'post' there, 'pre' now" in capsys.readouterr().err


@pytest.mark.slow
def test_another_run_starts_from_its_weights(run, tmp_path):
    workdir, arguments = run
    # A rate that is nothing in float32, so that no weight changes.
    flags = [f"--config.init={workdir}", "--config.optim.peak_rate=1e-50"]
    flags += [f"--workdir={tmp_path / 'run'}", "--config.seed=8"]
    kept = [word for word in arguments if not word.startswith("--workdir")]
    assert main([*kept, *flags]) == 0
    digests = [
        json.loads((folder / "summary.json").read_text())["params_digest"]
        for folder in (workdir, tmp_path / "run")
    ]
    assert digests[0] == digests[1]


def test_evaluate_repeats_the_summary(run, capsys):
    workdir, _ = run
    assert main(["evaluate", f"--workdir={workdir}", "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    summary = json.loads((workdir / "summary.json").read_text())
    assert result["eval_set_md5"] == summary["eval_set_md5"]
    assert result["eval_mlm_loss"] == pytest.approx(summary["eval_mlm_loss"], abs=1e-5)


def test_evaluate_by_another_objective(run, capsys):
    workdir, _ = run
    pair = "--config.objective.pair=none"
    assert main(["evaluate", f"--workdir={workdir}", pair, "--json"]) == 0
    scores = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert scores["eval_mlm_loss"] > 0 and "eval_nsp_loss" not in scores


def test_fill_prints_probabilities_of_real_tokens(run, capsys):
    workdir, _ = run
    text = "a [MASK] in a [MASK]."
    assert main(["fill", f"--workdir={workdir}", text, "--json"]) == 0
    answers = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [len(answer) for answer in answers] == [5, 5]
    vocabulary = (workdir / "tokenizer" / "vocab.txt").read_text().splitlines()
    for answer in answers:
        shares = [choice["probability"] for choice in answer]
        assert shares == sorted(shares, reverse=True) and 0 < sum(shares) <= 1
        assert all(choice["token"] in vocabulary for choice in answer)
    assert main(["fill", f"--workdir={workdir}", "no mask here"]) == 2
    assert "[MASK]" in capsys.readouterr().err


def test_bench_prints_its_fields(run, tmp_path, capsys):
    workdir, arguments = run
    common = [*arguments[1:], "--json", "--seconds=0.2"]
    assert main(["bench", "data", *common]) == 0
    data = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(data) == set(
        "real_tokens_per_second padded_tokens_per_second fill fill_unpacked "
        "open_seconds epoch_rows text_tokens trimmed_tokens partner_tokens".split()
    )
    assert data["trimmed_tokens"] == 0 < data["text_tokens"]
    assert 0 < data["fill_unpacked"] <= data["fill"] <= 1
    trace = tmp_path / "trace"
    assert main(["bench", "step", *common, f"--profile={trace}"]) == 0
    step = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(step) == set(
        "seconds_median seconds_min seconds_max useful_tokens_per_second "
        "padded_tokens_per_second model_flops_per_second matmul_flops_per_second "
        "matmul_share mfu peak_memory_bytes compile_seconds".split()
    )
    assert step["useful_tokens_per_second"] <= step["padded_tokens_per_second"]
    assert step["seconds_min"] <= step["seconds_median"] <= step["seconds_max"]
    flops, most = (step[f"{name}_flops_per_second"] for name in ("model", "matmul"))
    assert step["matmul_share"] == pytest.approx(flops / most)
    assert list(trace.glob("plugins/profile/*/*.xplane.pb"))  # TensorBoard's


def _bad(tmp_path, text, **changes):
    """Arguments of a run that must fail; None takes an argument out."""
    arguments = {
        "--config": "configs/bert_tiny.py:smoke",
        "--workdir": str(tmp_path / "run"),
        "--config.data.source": str(text),
        "--config.data.num_workers": "1",
    }
    arguments |= changes
    return ["train", *(f"{k}={v}" for k, v in arguments.items() if v is not None)]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"--config.optim.peak_rat": "1"}, ["peak_rat", "peak_rate"]),
        ({"--config.model.layers": "two"}, ["model.layers", "whole number"]),
        ({"--config.phases[0].batch": "12"}, ["phases[0].batch", "mesh"]),
        ({"--config.mesh.model": "3"}, ["config.mesh", "8"]),
        ({"--config.mesh.data": "1", "--config.mesh.model": "8"}, ["heads"]),
        (
            {"--config.data.dtype": "uint16", "--config.model.vocab_size": "70000"},
            ["data.dtype"],
        ),
        ({"--config.data.source": "missing/*.txt"}, ["missing/*.txt"]),
        ({"--workdir": None}, ["--workdir"]),
        ({"--config": "configs/no.py"}, ["configs/no.py"]),
    ],
)
def test_bad_input_is_one_message_and_exit_2(tmp_path, capsys, changes, words):
    text = corpus.write(tmp_path / "text.txt")
    assert main(_bad(tmp_path, text, **changes)) == 2
    message = capsys.readouterr().err
    assert message.count("bert-jax: error:") == 1
    assert "Traceback" not in message
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("empty.txt", b"\n\n \n", "empty"),
        ("bad.txt.gz", b"\x1f\x8bnonsense", "bad.txt.gz"),
    ],
)
def test_bad_corpora_are_named(tmp_path, capsys, name, content, word):
    (tmp_path / name).write_bytes(content)
    assert main(_bad(tmp_path, tmp_path / name)) == 2
    message = capsys.readouterr().err
    assert "bert-jax: error:" in message and word in message
    assert not (tmp_path / "run" / "store").exists()


def test_another_config_in_the_same_workdir_is_refused(run, capsys):
    workdir, arguments = run
    before = (workdir / "config.json").read_bytes()
    assert main([*arguments, "--config.optim.peak_rate=0.5"]) == 2
    assert "config.optim.peak_rate" in capsys.readouterr().err
    assert (workdir / "config.json").read_bytes() == before


def test_a_store_of_another_tokenizer_is_refused(run, tmp_path, capsys):
    workdir, _ = run
    vocab = tmp_path / "vocab.txt"
    tokens = (workdir / "tokenizer" / "vocab.txt").read_text().splitlines()
    vocab.write_text("\n".join([*tokens[:5], "extra", *tokens[5:]]) + "\n")
    store = {"--config.data.store": workdir / "store", "--config.tokenizer.path": vocab}
    assert main(_bad(tmp_path, tmp_path / "none.txt", **store)) == 2
    message = capsys.readouterr().err
    assert "another tokenizer" in message and "config.tokenizer.path" in message


def test_a_vocabulary_larger_than_the_model_is_refused(run, tmp_path, capsys):
    workdir, _ = run
    changes = {
        "--config.data.store": workdir / "store",
        "--config.model.vocab_size": "256",
    }
    assert main(_bad(tmp_path, tmp_path / "none.txt", **changes)) == 2
    message = capsys.readouterr().err
    assert "config.model.vocab_size=256" in message and "set --config" in message


def test_an_unwritable_workdir_is_named(tmp_path, capsys):
    text = corpus.write(tmp_path / "text.txt")
    (tmp_path / "file").write_text("")
    workdir = {"--workdir": tmp_path / "file" / "run"}
    assert main(_bad(tmp_path, text, **workdir)) == 2
    assert "--workdir" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, capsys):
    text = corpus.write(tmp_path / "text.txt")
    changes = {"--config.optim.peak_rate": "1e30", "--config.optim.clip_norm": "0.0"}
    assert main(_bad(tmp_path, text, **changes)) == 2
    message = capsys.readouterr().err
    assert "peak_rate" in message
    assert list((tmp_path / "run").glob("not_finite_step_*.npz"))
    assert (tmp_path / "run" / "metrics.jsonl").read_text()
