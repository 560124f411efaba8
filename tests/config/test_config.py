"""Configs: presets, overrides, and a message for every mistake."""

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert_jax import config
from bert_jax.config import presets
from bert_jax.config.load import override
from bert_jax.errors import UserError

CONFIGS = Path(__file__).parents[2] / "configs"
TINY, GLUE = str(CONFIGS / "bert_tiny.py"), str(CONFIGS / "glue.py")


def write(folder: Path, body: str) -> str:
    path = folder / "mine.py"
    path.write_text(
        "from bert_jax.config import presets\n"
        "def get_config(arg=''):\n"
        "    config = presets.bert('tiny', arg)\n"
        f"    {body}\n"
        "    return config\n"
    )
    return str(path)


def test_defaults_are_valid_and_survive_a_round_trip() -> None:
    assert config.freeze(config.to_config_dict(config.Config())) == config.Config()


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("steps=1e4", "steps", 10_000),
        ("steps=20_000", "steps", 20_000),
        ("optim.peak_rate=3e-4", "optim.peak_rate", 3e-4),
        ("optim.clip_norm=2", "optim.clip_norm", 2.0),
        ("tokenizer.lowercase=false", "tokenizer.lowercase", False),
        ("data.source=a/*.txt,b.jsonl", "data.source", ("a/*.txt", "b.jsonl")),
        ("data.source=a.txt, b.txt", "data.source", ("a.txt", "b.txt")),
        ("data.source=('a,b.txt',)", "data.source", ("a,b.txt",)),
        ("data.source=('a.txt')", "data.source", ("a.txt",)),
        ("data.store=x=y", "data.store", "x=y"),
    ],
)
def test_an_override_changes_one_field(text: str, path: str, value: object) -> None:
    found: object = config.load(TINY, [text])
    for name in path.split("."):
        found = getattr(found, name)
    assert found == value
    assert type(found) is type(value)


def test_all_bad_overrides_are_named_at_once() -> None:
    with pytest.raises(UserError, match=r"(?s)'layers'.*'steps'"):
        config.load(TINY, ["model.layer=2", "step=3"])


def test_an_override_reaches_into_one_phase() -> None:
    before, after = config.load(TINY), config.load(TINY, ["phases[1].length=256"])
    assert after.phases[0] == before.phases[0]
    assert after.phases[1].length == 256


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("optim.peak_rat=1", ["config.optim.peak_rat", "'peak_rate'"]),
        ("optimm.peak_rate=1", ["config.optimm", "'optim'"]),
        ("zzz=1", ["config.zzz", "seed"]),
        ("optim=1", ["config.optim", "group"]),
        ("steps", ["--config.steps", "VALUE"]),
        ("steps=many", ["config.steps=many", "whole number"]),
        ("steps=1.5", ["config.steps=1.5", "whole number"]),
        ("steps=nan", ["config.steps=nan", "whole number"]),
        ("optim.peak_rate=fast", ["config.optim.peak_rate=fast", "number"]),
        ("model.scan=yes", ["config.model.scan=yes", "true or false"]),
        ("data.source=(1", ["config.data.source=(1", "list"]),
        ("data.source=(1,)", ["config.data.source[0]=1", "str"]),
        ("phases[2].length=8", ["config.phases[2]", "0 to 1"]),
        ("phases.length=8", ["config.phases[length]", "0 to 1"]),
    ],
)
def test_a_bad_override_names_the_field_and_the_remedy(text: str, words: list) -> None:
    with pytest.raises(UserError) as caught:
        config.load(TINY, [text])
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize(
    "text",
    [
        "steps=0",
        "optim.peak_rate=nan",
        "optim.peak_rate=inf",
        "optim.name=sgd",
        "optim.freeze=(",
        "task.features=first",
        "task.features=last",
        "task.lstm_hidden=0",
        "task.null_windows=1.1",
        "model.heads=3",
        "model.pooler=silu",
        "model.segments=1",
        "model.positions=256",
        "objective.mask_rate=-0.1",
        "objective.random_token_share=0.3",
        "objective.mask_token_share=1.1",
        "objective.masking=words",
        "objective.pair=order",
        "objective.input=pages",
        "objective.input=full_sentences",
        "objective.span_boundary=true",
        "phases[0].share=0.5",
        "phases[0].batch=255",
        "mesh.fsdp=0",
        "mesh.fsdp=-1",
        "data.source=",
        "data.encoding=utf-9",
        "data.encoding=hex",
        "data.language=korean",
        "data.language=kr",
        "data.language=",
        "keep_best=-1",
        "patience=-1",
        "optim.layer_decay=0",
        "optim.freeze_layers=-1",
        "task.glue=snli",
        "task.skip_label=-",
    ],
)
def test_every_rule_names_its_field(text: str) -> None:
    with pytest.raises(UserError, match=r"config\.\w+") as caught:
        config.load(TINY, ["phases[0].accumulate=2", text])
    group = text.partition("=")[0].partition("[")[0].split(".")[0]
    assert f"config.{group}" in str(caught.value)


def test_korean_is_cased_unless_something_else_says_so() -> None:
    def lowercase(*edits: str) -> bool:
        return config.load(TINY, list(edits)).tokenizer.lowercase

    assert lowercase() and lowercase("data.language=en")
    assert not lowercase("data.language=ko") and not lowercase("data.language=ko-KR")
    for other in ("lowercase=true", "path=vocab.txt"):
        assert lowercase(f"tokenizer.{other}", "data.language=ko")


@pytest.mark.parametrize("other", ["keep_best=0", "save_every=700"])
def test_patience_needs_every_evaluation_saved(other: str) -> None:
    config.load(TINY, ["patience=2"])
    with pytest.raises(UserError, match="config.patience=2"):
        config.load(TINY, ["patience=2", other])


def test_all_faults_are_listed_together() -> None:
    edits = ["steps=-1", "optim.name=sgd", "model.heads=7", "data.dtype=uint16"]
    with pytest.raises(UserError) as caught:
        config.load(TINY, [*edits, "model.vocab_size=70000"])
    for field in ("steps", "optim.name", "model.heads", "data.dtype"):
        assert f"config.{field}=" in str(caught.value)


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ("config.optim.peak_rat = 1.0", "peak_rat"),
        ("config.steps = 'many'", "steps"),
        ("config.phases[0].lenght = 64", "'length'"),
        ("del config.phases[0].batch", "config.phases[0].batch: missing"),
        ("config.phases = 3", "phases"),
        ("config = 3", "must return a ConfigDict"),
        ("raise RuntimeError('boom')", "mine.py:4: RuntimeError: boom"),
    ],
)
def test_a_bad_config_file_is_a_user_error(
    tmp_path: Path, body: str, word: str
) -> None:
    with pytest.raises(UserError) as caught:
        config.load(write(tmp_path, body))
    assert word in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text"),
    [("a.py", "x = 1"), ("a.py", "def"), ("a.json", "{"), ("a.json", "{}")]
    + [("a.json", '{"phases": [], "zzz": 1}'), ("a.yaml", "x: 1")],
)
def test_a_file_that_is_no_config_is_named(
    tmp_path: Path, name: str, text: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=name):
        config.load(str(tmp_path / name))


def test_missing_file_and_unknown_variant() -> None:
    with pytest.raises(UserError, match=r"no file 'gone.py'"):
        config.load("gone.py:smoke")
    with pytest.raises(UserError, match=r"mean '.*bert_tiny.py'"):
        config.load(TINY.replace("tiny", "tny"))
    with pytest.raises(UserError, match="use paper, cpu, smoke"):
        config.load(f"{TINY}:fast")
    roberta = str(Path(TINY).with_name("roberta.py"))
    assert config.load(f"{roberta}:smoke,large").optim.peak_rate == 4e-4
    with pytest.raises(UserError, match="use base, large, cpu, smoke"):
        config.load(f"{roberta}:paper")


def test_saved_config_takes_overrides(tmp_path: Path) -> None:
    saved = tmp_path / "config.json"
    saved.write_text(config.to_json(config.load(TINY)))
    assert config.load(str(saved), ["seed=7"]).seed == 7


@pytest.mark.parametrize(
    ("pair", "fits"),
    [
        ("nsp", "segment_pair sentence_pair"),
        ("sop", "segment_pair sentence_pair"),
        ("none", "doc_sentences full_sentences"),
    ],
)
def test_each_pair_has_its_inputs(pair: str, fits: str) -> None:
    every = "segment_pair sentence_pair doc_sentences full_sentences".split()
    for name in every:
        edits = [f"objective.pair={pair}", f"objective.input={name}"]
        if name in fits.split():
            assert config.load(TINY, edits).objective.input == name
        else:
            with pytest.raises(UserError, match="choose one of auto, " + fits[:3]):
                config.load(TINY, edits)


@pytest.mark.parametrize(
    "shares", [(1, 0), (0.8, 0), (0.8, 0.2), (0, 0.8), (0, 1), (0.7, 0.3)]
)
def test_every_split_of_the_masked_tokens_is_allowed(shares: tuple) -> None:
    names = "mask_token_share", "random_token_share"
    edits = [f"objective.{n}={s}" for n, s in zip(names, shares, strict=True)]
    found = config.load(TINY, edits).objective
    assert (found.mask_token_share, found.random_token_share) == shares


@pytest.mark.parametrize(
    ("old", "masking", "form"),
    [
        ({"whole_word": True, "cross_documents": False}, "whole_word", "auto"),
        ({"whole_word": False, "cross_documents": True}, "token", "full_sentences"),
    ],
)
def test_a_run_from_before_the_choices_is_read(
    tmp_path: Path, old: dict, masking: str, form: str
) -> None:
    values = json.loads(config.to_json(config.load(TINY, ["objective.pair=none"])))
    for name in ("input", "masking", "span_boundary"):
        del values["objective"][name]
    values["objective"] |= old
    (tmp_path / "config.json").write_text(json.dumps(values))
    found = config.load(str(tmp_path / "config.json")).objective
    assert (found.masking, found.input) == (masking, form)


def test_paper_and_smoke_combine() -> None:
    both = config.load(f"{TINY}:paper,smoke")
    assert both.steps == 8
    assert not both.optim.bias_correction
    assert {phase.max_packed for phase in both.phases} == {1}


TUNING = {"glue", "ner", "squad", "swag"}


@pytest.mark.parametrize(
    "file", [f for f in sorted(CONFIGS.glob("*.py")) if f.stem not in TUNING]
)
def test_a_small_variant_trains_every_position(file: Path) -> None:
    small = config.load(f"{file}:cpu")
    assert max(phase.length for phase in small.phases) == small.model.positions


@pytest.mark.parametrize("task", presets.GLUE)
def test_every_glue_task_brings_its_name(task: str) -> None:
    found = config.load(f"{GLUE}:{task}").task
    assert found.glue == task
    assert (found.skip_label == "-") == (task == "mnli")


def test_replace_reaches_into_groups() -> None:
    edited = presets.replace(config.Config(), optim={"name": "lamb"}, seed=3)
    assert (edited.optim.name, edited.seed) == ("lamb", 3)
    assert edited.optim.peak_rate == config.Config().optim.peak_rate


@given(
    steps=st.integers(1, 10**7),
    cuts=st.lists(st.integers(1, 100), min_size=1).map(list),
)
def test_phases_cover_the_run_in_order(steps: int, cuts: list[int]) -> None:
    phases = tuple(config.Phase(share=cut / sum(cuts)) for cut in cuts)
    starts = config.Config(steps=steps, phases=phases).phase_starts()
    assert starts[0] == 0
    assert starts[-1] == steps
    assert list(starts) == sorted(starts)
    for i, phase in enumerate(phases):
        assert math.isclose(starts[i + 1] - starts[i], phase.share * steps, abs_tol=1)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_float_survives_its_text(value: float) -> None:
    edited = config.to_config_dict(config.Config())
    override(edited, f"optim.end_rate={value!r}")
    assert edited.optim.end_rate == value


@pytest.mark.parametrize("seed", [-1, 2**32, 2**63, 2**64])
def test_a_seed_that_jax_would_shorten_is_refused(seed):
    with pytest.raises(UserError, match=r"config\.seed=.*between 0 and"):
        config.load("bert_tiny", [f"seed={seed}"])
    assert config.load("bert_tiny", [f"seed={2**32 - 1}"]).seed == 2**32 - 1
