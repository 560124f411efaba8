"""What weights decide: whatever `train` accepts, every later command accepts."""

import dataclasses
import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from bert_jax import config as configs
from bert_jax import curves, initial, resolve, sharding
from bert_jax.__main__ import main
from bert_jax.config import Config, Mesh, Model, Objective, TaskSettings, Tokenizer
from bert_jax.data.tokenizer import kind_of, load_tokenizer
from bert_jax.errors import UserError
from bert_jax.interop import huggingface
from bert_jax.run import task_of
from tests.interop import hugging
from tests.test_mesh import PROGRAMS

ROOT = Path(__file__).parents[1]
POSITIONS = 40
_SIZES = dict(layers=2, hidden=32, heads=2, mlp=48, positions=POSITIONS)
FAMILIES = {
    "Bert": {},
    "Roberta": dict(segments=1, activation="gelu", norm_epsilon=1e-5),
    "Albert": dict(embedding=16, layer_groups=1),
    "Electra": dict(embedding=16, activation="gelu", pooler="gelu"),
    "DistilBert": dict(segments=0, activation="gelu", pooler="relu"),
}
WORDS = [f"w{i}" for i in (1, 2, 4, 5, 7, 8)]


def write(folder, family, rows=0, task=None, **edits):
    """Write random weights of a family in Hugging Face's format.

    Args:
      folder: directory to make.
      family: key of `FAMILIES`.
      rows: [tokens] rows of the embedding table beside those of the vocabulary.
      task: task of the head; None is masked tokens.
      edits: other fields of the model.
    """
    folder.mkdir(parents=True)
    task = task or TaskSettings()
    hugging.write_tokenizer(folder, family, 300)
    settings = Tokenizer(kind=kind_of(folder), path=str(folder))
    tokenizer = load_tokenizer(folder, settings)
    vocabulary = tokenizer.vocabulary()
    sizes = _SIZES | FAMILIES[family] | edits
    model = Model(vocab_size=vocabulary.size + rows, dtype="float32", **sizes)
    objective = Objective(pair="none")
    config = Config(model=model, task=task, objective=objective, tokenizer=settings)
    shapes = jax.eval_shape(task_of(config).init, jax.random.key(0))
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda x: rng.normal(0, 0.2, x.shape).astype("f"), shapes)
    kind, tensors = huggingface.to_tensors(params, model, task, vocabulary.pad)
    made = folder.with_name(folder.name + ".made")
    huggingface.save(made, config, kind, tensors, tokenizer, "")
    for path in made.iterdir():
        path.rename(folder / path.name)
    made.rmdir()
    assert kind.startswith(family), kind
    return folder


def _put(folder, name, text):
    (folder / name).write_text(text)
    return folder / name


def data(folder):
    """Write a small file for each kind of task; their paths by kind."""
    pairs = [(f"{a} {b}", "yes" if a == "w1" else "no") for a in WORDS for b in WORDS]
    table = "".join(f"{text}\t{label}\n" for text, label in pairs)
    numbers = table.replace("yes", "1.5").replace("no", "0.5")
    rows = "".join(f"{a},{a},{b},{b},0\n" for a in WORDS for b in WORDS)
    asked = [
        {
            "context": f"{a} {b} w4 {a}",
            "qas": [
                {
                    "id": f"{a}{b}",
                    "question": f"{b} w7",
                    "answers": [{"text": "w4", "answer_start": 6}],
                }
            ],
        }
        for a in WORDS
        for b in WORDS
    ]
    squad = json.dumps({"data": [{"title": "t", "paragraphs": asked}]})
    tags = "".join(f"{a} _ B-x\n{b} _ O\n\n" for a in WORDS for b in WORDS)
    text = "\n\n".join(f"{a} {b} w4. {b} {a} w2.\n{a} w7." for a, b in pairs)
    texts = {
        "pretrain": text,
        "classify": f"text\tlabel\n{table}",
        "regress": f"text\tlabel\n{numbers}",
        "tag": tags,
        "choice": f"sent1,sent2,a,b,label\n{rows}",
        "span": squad,
    }
    names = {"choice": "csv", "span": "json", "pretrain": "txt"}
    return {
        kind: _put(folder, f"{kind}.{names.get(kind, 'tsv')}", text)
        for kind, text in texts.items()
    }


_PRESETS = {"tag": "ner", "span": "squad", "choice": "swag", "pretrain": "bert_tiny"}
_FAST = ["model.dtype=float32", "phases[0].length=32", "log_every=1"]


def flags(kind, file):
    """Flags of `train` for two or three steps of a kind of task."""
    name = ROOT / f"configs/{_PRESETS.get(kind, 'glue')}.py"
    given = [f"--config={name}:smoke", *(f"--config.{edit}" for edit in _FAST)]
    if kind == "pretrain":
        edits = [f"data.source={file}", "steps=2", "data.num_workers=1"]
        edits += ["phases[1].length=32", "save_every=2", "eval_every=2"]
    else:
        edits = [f"task.train_file={file}", f"task.dev_file={file}", "task.epochs=0.3"]
        edits += [f"task.kind={kind}"]
    if kind == "choice":
        edits.append("task.pair_column=a,b")
    return given + [f"--config.{edit}" for edit in edits]


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """A directory of Hugging Face's format of each family."""
    folder = tmp_path_factory.mktemp("models")
    return {family: write(folder / family, family) for family in FAMILIES}


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """A small file for each kind of task."""
    return data(tmp_path_factory.mktemp("data"))


def given(kind, files, *edits):
    """The config that `train` reads from the flags of a kind of task."""
    preset, *rest = flags(kind, files[kind])
    overrides = [flag.removeprefix("--config.") for flag in rest]
    return configs.load(preset.partition("=")[2], [*overrides, *edits])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["pretrain", "classify", "tag", "span"])
def test_a_resolved_config_obeys_the_rules_and_stays_as_it_is(
    models, files, tmp_path, family, kind
):
    edits = [f"init={models[family]}", "objective.pair=none"]
    found, _ = resolve.resolve(given(kind, files, *edits))
    assert configs.problems(found) == []
    saved = tmp_path / "config.json"
    saved.write_text(configs.to_json(found))
    assert configs.load(str(saved), stored=True) == found
    assert resolve.resolve(found)[0] == found
    assert found.model.positions == POSITIONS
    assert found.model.segments == FAMILIES[family].get("segments", 2)


def test_rules_of_pretraining_do_not_bind_other_tasks(models, files):
    edits = [f"init={models['Roberta']}", "objective.pair=nsp"]
    assert resolve.resolve(given("classify", files, *edits))[0].model.segments == 1
    with pytest.raises(UserError, match=r"objective\.pair='nsp'"):
        resolve.resolve(given("pretrain", files, *edits))


BROKEN = [  # family, kind of task, what is asked for, how many rules that breaks
    ("Roberta", "pretrain", ["objective.pair=nsp"], 1),
    ("DistilBert", "pretrain", ["objective.pair=sop", "phases[1].length=64"], 2),
    ("Albert", "classify", ["optim.layer_decay=0.9"], 1),
    ("Albert", "tag", ["optim.freeze_layers=1", "optim.layer_decay=0.9"], 2),
    ("Bert", "span", ["phases[0].length=384"], 1),
    ("Electra", "pretrain", ["objective.kind=ltr", "objective.pair=none"], 1),
]


@pytest.mark.parametrize("form", ["", "none:"])
@pytest.mark.parametrize(("family", "kind", "edits", "count"), BROKEN)
def test_every_broken_rule_has_a_remedy_that_works(
    models, files, family, kind, edits, count, form
):
    edits = [*edits, f"init={form}{models[family]}"]
    with pytest.raises(UserError) as error:
        resolve.resolve(given(kind, files, *edits))
    message = str(error.value)
    assert len(message.splitlines()) == 1 + count, message
    remedies = re.findall(r"--config\.([^\s',;]+)", message)
    assert remedies and not any(text.startswith("model.") for text in remedies)
    resolve.resolve(given(kind, files, *edits, *remedies))


def test_a_tokenizer_of_more_tokens_than_the_weights_have_is_refused(
    models, files, tmp_path
):
    hugging.write_vocabulary(tmp_path, 400)
    edits = [f"init={models['Bert']}", f"tokenizer.path={tmp_path / 'vocab.txt'}"]
    for kind in ("classify", "pretrain"):
        with pytest.raises(UserError, match=r"tokenizer\.path.* 400 tokens.* 300"):
            resolve.resolve(given(kind, files, *edits))


def test_rows_that_no_token_uses_are_kept(files, tmp_path):
    folder = write(tmp_path / "hf", "Bert", rows=7)
    for form, rows in (("", 7), ("none:", 0)):
        found, _ = resolve.resolve(given("classify", files, f"init={form}{folder}"))
        assert found.model.vocab_size == 300 + rows


def test_the_config_of_a_run_is_read_whatever_the_rules_say(files, tmp_path):
    # Of an earlier version, which checked the sizes of the preset and not the model's.
    old = given("classify", files)
    model = dataclasses.replace(old.model, segments=1, positions=16, layers=1)
    optim = dataclasses.replace(old.optim, freeze_layers=2)
    old = dataclasses.replace(old, model=model, optim=optim)
    assert configs.problems(old)
    saved = tmp_path / "a:b#[c]" / "config.json"
    saved.parent.mkdir()
    saved.write_text(configs.to_json(old))
    assert configs.load(str(saved), stored=True) == old
    assert configs.load(str(saved), ["seed=3"], stored=True).seed == 3
    with pytest.raises(UserError) as error:
        configs.load(str(saved), ["optim.peak_rate=-1"], stored=True)
    assert len(str(error.value).splitlines()) == 2


def test_nothing_is_written_where_a_rule_is_broken(models, files, tmp_path, capsys):
    for command in ("train", "prepare"):
        run = tmp_path / command
        flag = f"--config.init={models['Roberta']}"
        given = flags("pretrain", files["pretrain"])
        assert main([command, *given, flag, f"--workdir={run}"]) == 2
        assert "--config.objective.pair=none" in capsys.readouterr().err
        assert not run.exists()


@pytest.mark.parametrize(
    ("ours", "theirs", "order"),
    [
        (("a", "b"), ("b", "a"), [1, 0]),
        (("a", "b", "c"), ("c", "a", "b"), [1, 2, 0]),
        (("0", "1"), ("LABEL_1", "LABEL_0"), [1, 0]),
        (("a", "b"), ("a", "c"), []),
        (("a", "b"), ("LABEL_0", "LABEL_1"), []),
        (("1", "2"), ("LABEL_0", "LABEL_1"), []),
    ],
)
def test_a_head_is_kept_only_for_classes_of_the_same_names(ours, theirs, order):
    config = Config(task=TaskSettings(kind="tag", labels=ours))
    kernel = np.arange(2.0 * len(theirs)).reshape(2, -1)
    found = {"head/kernel": kernel, "pooler/bias": np.zeros(2)}
    kept, why = initial._same_heads(
        config, found, TaskSettings(kind="tag", labels=theirs), "none"
    )
    assert kept["pooler/bias"] is found["pooler/bias"]
    if order:
        assert not why
        np.testing.assert_array_equal(kept["head/kernel"], kernel[:, order])
    else:
        assert "head/kernel" not in kept and all(name in why["head"] for name in theirs)


def test_a_head_of_another_task_is_not_kept():
    for ours, theirs in (("classify", "tag"), ("regress", "choice"), ("span", "tag")):
        config, found = Config(task=TaskSettings(kind=ours)), {"head/bias": np.zeros(1)}
        kept, why = initial._same_heads(config, found, TaskSettings(kind=theirs), "nsp")
        assert not kept and theirs in why["head"]
    # Start and end of an answer mean the same whatever transformers calls them.
    config, found = Config(task=TaskSettings(kind="span")), {"head/bias": np.zeros(2)}
    named = TaskSettings(kind="span", labels=("LABEL_0", "LABEL_1"))
    assert initial._same_heads(config, found, named, "none") == (found, {})
    config, found = Config(), {"nsp/bias": np.zeros(2), "mlm/bias": np.zeros(3)}
    kept, why = initial._same_heads(config, found, TaskSettings(), "sop")
    assert list(kept) == ["mlm/bias"] and "sop" in why["nsp"]


# Every family and every kind of task, and all kinds for RoBERTa, which differs most
# from BERT: another tokenizer, one segment, positions from 2 on.
MATRIX = [
    *(("Roberta", kind) for kind in ("none", "classify", "regress", "tag")),
    *(("Roberta", kind) for kind in ("span", "choice")),
    *(("Bert", "nsp"), ("Albert", "sop"), ("Albert", "tag"), ("Electra", "choice")),
    ("DistilBert", "span"),
]


@pytest.fixture
def one_device(monkeypatch):
    """One of the fake devices, for which steps compile sooner; no plots."""
    make, one = sharding.make_mesh, Mesh(1, 1, 1)
    monkeypatch.setattr(sharding, "make_mesh", lambda *_: make(one, jax.devices()[:1]))
    monkeypatch.setattr(curves, "draw", lambda *_: None)


def commands(kind, run, files):
    """The later commands of a run, with what each of them writes."""
    workdir = f"--workdir={run}"
    made = [
        ("evaluate", [workdir], None),
        ("export", [workdir], run.with_name(f"{run.name}.hf")),
        ("extract", [workdir, f"--input={files['pretrain']}"], run.with_suffix(".npz")),
    ]
    if kind != "pretrain":
        suffix = ".json" if kind == "span" else ".tsv"
        made.append(
            ("predict", [workdir, f"--input={files[kind]}"], run.with_suffix(suffix))
        )
    return [
        ([name, *given, *([f"--output={output}"] if output else [])], output)
        for name, given, output in made
    ]


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        pytest.param(*cell, marks=[pytest.mark.slow] * (cell != MATRIX[1]))
        for cell in MATRIX
    ],
)
def test_what_train_accepts_every_later_command_accepts(
    models, files, tmp_path, capsys, one_device, family, kind
):
    pair, kind = ("none", kind) if kind in files else (kind, "pretrain")
    run = tmp_path / "run"
    edits = [f"--config.init={models[family]}", f"--config.objective.pair={pair}"]
    train = ["train", *flags(kind, files[kind]), *edits, f"--workdir={run}"]
    assert main(train) == 0
    before = sorted(path for path in run.rglob("*") if "summary" not in path.name)
    assert main(train) == 0
    assert "was finished already" in capsys.readouterr().out
    for command, output in commands(kind, run, files):
        assert main(command) == 0, (command[0], capsys.readouterr().err)
        assert output is None or output.exists()
    if kind == "pretrain":
        mask = "<mask>" if family == "Roberta" else "[MASK]"
        assert main(["fill", f"--workdir={run}", f"w1 {mask} w4"]) == 0
    assert before == sorted(p for p in run.rglob("*") if "summary" not in p.name)
    again = tmp_path / "again"
    hf = run.with_name(f"{run.name}.hf")
    assert main(["import", f"--source={hf}", f"--workdir={again}"]) == 0
    kept = configs.load(str(again / "config.json"), stored=True).task
    own = configs.load(str(run / "config.json"), stored=True).task
    assert kept.kind == own.kind and kept.labels == own.labels


# Of transformers' classes none that is known here computes these.
NO_CLASS = {"mamba", "modern"}


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_every_command_on_every_preset(
    name, models, files, tmp_path, capsys, one_device
):
    kind, run = PROGRAMS[name].task.kind, tmp_path / "run"
    _, *given = flags(kind, files[kind])
    given = [flag for flag in given if "phases[1]" not in flag]
    given.insert(0, f"--config={ROOT}/configs/{name}.py:smoke")
    if kind == "pretrain":
        given.append(f"--config.data.store={tmp_path / 'store'}")
        assert main(["prepare", *given]) == 0
    else:
        given.append(f"--config.init={models['Bert']}")
    assert main(["train", *given, f"--workdir={run}"]) == 0
    for command, output in commands(kind, run, files):
        status, said = main(command), capsys.readouterr().err
        if command[0] == "export" and name in NO_CLASS:
            assert status == 2 and "cannot be exported" in said
        else:
            assert status == 0 and (output is None or output.exists()), said
    if kind == "pretrain":
        assert main(["fill", f"--workdir={run}", "w1 [MASK] w4"]) == 0
    if name not in NO_CLASS:
        # Of ELECTRA each half has a directory.
        for number, file in enumerate(run.with_name("run.hf").rglob("config.json")):
            made = f"--source={file.parent}", f"--workdir={tmp_path / str(number)}"
            assert main(["import", *made]) == 0


@pytest.mark.slow
def test_an_imported_model_is_scored_on_text_that_is_named(
    models, files, tmp_path, capsys, one_device
):
    run = tmp_path / "run"
    assert main(["import", f"--source={models['Roberta']}", f"--workdir={run}"]) == 0
    before = sorted(run.rglob("*"))
    assert main(["evaluate", f"--workdir={run}"]) == 2
    assert "--config.data.source" in capsys.readouterr().err
    text = [f"--config.data.source={files['pretrain']}", "--config.data.num_workers=1"]
    found = []
    for share in ("0.01", "0.5"):  # plays no part: all of it is scored
        flag = f"--config.data.eval_share={share}"
        assert main(["evaluate", f"--workdir={run}", *text, flag, "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out.splitlines()[-1]))
    assert found[0] == found[1] and found[0]["eval_mlm_loss"] > 0
    assert before == sorted(run.rglob("*"))


@pytest.mark.slow
def test_prepare_and_train_agree_on_the_tokenizer_of_weights(
    models, files, tmp_path, one_device
):
    given = [*flags("pretrain", files["pretrain"]), "--config.objective.pair=none"]
    given += [f"--config.init={models['Albert']}", f"--config.data.store={tmp_path}/s"]
    assert main(["prepare", *given]) == 0
    assert main(["train", *given, "--config.steps=1", f"--workdir={tmp_path}/run"]) == 0
