"""import, export and config.init, as a user types them."""

import json
from pathlib import Path

import pytest

from bert_jax.__main__ import main
from bert_jax.cli import import_
from bert_jax.errors import UserError
from tests import random_run
from tests.cli import corpus
from tests.interop import hugging

ROOT = Path(__file__).parents[2]
SMOKE = f"--config={ROOT / 'configs/bert_tiny.py'}:smoke"
STILL = [  # a rate that is nothing in float32, so that no weight changes
    "--config.optim.peak_rate=1e-50",
    "--config.phases[0].length=32",
    "--config.phases[1].length=32",
    "--config.model.dropout=0.0",
]


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """A run directory made by `import`, and text to train on."""
    folder = tmp_path_factory.mktemp("imported")
    text = corpus.write(folder / "text.txt")
    return random_run.write(folder), text


def _summary(workdir):
    return json.loads((workdir / "summary.json").read_text())


def _train(text, workdir, *flags):
    flags = (f"--config.data.source={text}", "--config.data.num_workers=1", *flags)
    return main(["train", SMOKE, f"--workdir={workdir}", *flags])


def test_training_starts_from_the_weights(imported, tmp_path, capsys):
    run, text = imported
    init = f"--config.init={run.parent / 'hf'}"
    assert _train(text, tmp_path / "new", init, *STILL) == 0
    said = capsys.readouterr().err  # of a vocabulary of made-up words
    assert "lowercase" in said and "letters are [UNK]" in said, said
    new = _summary(tmp_path / "new")
    assert new["params_digest"] == _summary(run)["params_digest"]
    # A second generation, from a run that was itself trained.
    init = f"--config.init={tmp_path / 'new'}"
    assert _train(text, tmp_path / "newer", init, *STILL, "--config.seed=9") == 0
    assert _summary(tmp_path / "newer")["params_digest"] == new["params_digest"]
    saved = json.loads((tmp_path / "newer" / "config.json").read_text())
    assert saved["model"]["hidden"] == random_run.CONFIG.model.hidden
    assert saved["model"]["dropout"] == 0.0  # not the weights' to decide


def test_an_imported_run_is_evaluated_and_never_changed(imported, tmp_path, capsys):
    run, text = imported
    flags = [f"--config.data.source={text}", "--config.data.num_workers=1"]
    flags += [
        f"--config.data.store={tmp_path / 'store'}",
        "--config.data.eval_share=0.2",
    ]
    assert main(["evaluate", f"--workdir={run}", *flags, "--json"]) == 0
    scores = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert scores["step"] == 0 and scores["eval_mlm_loss"] > 0
    assert "eval_nsp_loss" in scores
    before = sorted(run.rglob("*"))
    assert main(["train", f"--config={run / 'config.json'}", f"--workdir={run}"]) == 2
    told = capsys.readouterr().err
    assert "--config.init=" in told and "Traceback" not in told
    assert sorted(run.rglob("*")) == before


def test_fill_needs_the_head(tmp_path, capsys):
    hugging.saved(tmp_path / "source", "BertModel", hugging.TINY)
    run = f"--workdir={tmp_path / 'run'}"
    assert main(["import", f"--source={tmp_path / 'source'}", run]) == 0
    assert main(["fill", run, "w3 [MASK]"]) == 2
    assert "no mlm part" in capsys.readouterr().err


def test_a_directory_without_a_model(imported, tmp_path, capsys):
    _, text = imported
    assert _train(text, tmp_path / "run", f"--config.init={tmp_path}") == 2
    assert "no model there" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "kind"),
    [
        *(("bert_tiny", kind) for kind in ("wordpiece", "bpe", "byte_bpe", "unigram")),
        ("roberta", "byte_bpe"),
        ("albert", "unigram"),
        ("spanbert", "wordpiece"),
    ],
)
def test_fill_mask_of_transformers_gives_the_same_answer(
    preset, kind, tmp_path, capsys
):
    hugging.torch()
    import transformers

    text = corpus.write(tmp_path / "text.txt")
    run, out = tmp_path / "run", tmp_path / "out"
    flags = [f"--config.tokenizer.kind={kind}", f"--config.data.source={text}"]
    flags += ["--config.data.num_workers=1", f"--workdir={run}"]
    smoke = f"--config={ROOT / 'configs' / preset}.py:smoke"
    assert main(["train", smoke, *flags]) == 0
    assert main(["export", f"--workdir={run}", f"--output={out}"]) == 0
    pipeline = transformers.pipeline("fill-mask", model=str(out), top_k=5)
    words = text.read_text().split()
    for sentence in (
        f"{words[0]} [MASK] {words[2]}.",
        f"[MASK] {words[5]} {words[7]}",
        f"{words[3]}, {words[8]} {words[9]} [MASK]",
    ):
        capsys.readouterr()
        assert main(["fill", f"--workdir={run}", "--json", sentence]) == 0
        (ours,) = json.loads(capsys.readouterr().out.splitlines()[-1])
        theirs = pipeline(sentence)
        assert [x["token"] for x in ours] == [
            pipeline.tokenizer.convert_ids_to_tokens(x["token"]) for x in theirs
        ]
        for mine, other in zip(ours, theirs, strict=True):
            assert mine["probability"] == pytest.approx(other["score"], rel=1e-4)
    card = (out / "README.md").read_text()
    assert "text.txt" in card and "eval_mlm_loss" in card and "Steps: 8" in card
    assert "bert-jax train --config=bert_jax_config.json" in card


def test_only_what_a_killed_import_left_is_written_over(tmp_path):
    import_._check_empty(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="is not empty"):
        import_._check_empty(tmp_path)  # somebody's own
    (tmp_path / ".owner.json").write_text("{}")
    import_._check_empty(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="is not empty"):
        import_._check_empty(tmp_path)  # a whole run
