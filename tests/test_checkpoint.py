import functools
import math
import os
import shutil
import unicodedata

import jax
import numpy as np
import pytest

from bert_jax import checkpoint_files, config, optim, run, sharding, step, tree
from bert_jax.checkpoint import Checkpoints
from bert_jax.errors import UserError
from tests import linear_task

SETTINGS = config.Optim(peak_rate=1e-2, warmup_share=0.0)
OPTIMIZER = optim.optimizer(SETTINGS, 10)
TASK = linear_task.TASK


@functools.cache
def mesh_of(data, fsdp, model):
    devices = jax.devices()[: data * fsdp * model]
    assert len(devices) == data * fsdp * model, "tests need 8 (fake) devices"
    return sharding.make_mesh(config.Mesh(data, fsdp, model), devices)


@functools.cache
def train_step():
    schedule = optim.learning_rate(SETTINGS, 10)
    return step.make_train_step(TASK, OPTIMIZER, schedule, mesh_of(2, 2, 2), 3)


@functools.cache
def initial():
    return step.init_state(TASK, OPTIMIZER, mesh_of(2, 2, 2), 7)


def fresh():
    """A copy, since the step consumes what it is given."""
    return jax.tree.map(lambda leaf: leaf.copy(), initial())


def abstract(*shape, task=TASK, optimizer=OPTIMIZER):
    return step.abstract_state(task, optimizer, mesh_of(*shape))


def tiny(value):
    """A state of three arrays, for tests of what is kept."""
    full = np.full(3, value, np.float32)
    return step.TrainState(np.int32(value), {"a": full}, {"mu": {"a": full}})


def small_abstract(**shapes):
    def struct(shape, dtype: type = np.float32):
        place = sharding.replicated(mesh_of(1, 1, 1))
        return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

    params = {name: struct(shape) for name, shape in shapes.items()}
    return step.TrainState(struct((), np.int32), params, {"mu": params})


def test_restored_on_any_mesh_bit_for_bit(tmp_path):
    state, _ = train_step()(fresh(), linear_task.batch())
    expected = tree.params_digest(state)
    with Checkpoints(tmp_path, 2, 0) as checkpoints:
        checkpoints.save(1, state)
        # The next step takes over the memory that is being saved.
        train_step()(state, linear_task.batch(1))
    for shape in [(1, 1, 1), (2, 2, 2), (1, 4, 2), (1, 1, 8)]:
        wanted = abstract(*shape)
        with Checkpoints(tmp_path, 2, 0) as checkpoints:
            restored = checkpoints.restore(wanted)
        assert isinstance(restored, step.TrainState)
        assert jax.tree.structure(restored) == jax.tree.structure(state)
        assert tree.params_digest(restored) == expected
        for leaf, place in zip(
            jax.tree.leaves(restored), jax.tree.leaves(wanted), strict=True
        ):
            assert leaf.sharding == place.sharding


def test_resumed_equals_unbroken(tmp_path):
    def advance(state, steps):
        for i in steps:
            state, _ = train_step()(state, linear_task.batch(i))
        return state

    unbroken = tree.params_digest(advance(fresh(), range(4)))
    with Checkpoints(tmp_path, 1, 0) as checkpoints:
        checkpoints.save(2, advance(fresh(), range(2)))
    with Checkpoints(tmp_path, 1, 0) as checkpoints:
        restored = checkpoints.restore(abstract(2, 2, 2))
    assert tree.params_digest(advance(restored, range(2, 4))) == unbroken


def test_params_are_restored_alone_and_in_any_order(tmp_path):
    state = fresh()
    with Checkpoints(tmp_path, 1, 0) as checkpoints:
        checkpoints.save(5, state)
        wanted = abstract(1, 2, 1)
        for _ in range(2):
            params = checkpoints.restore_params(wanted.params)
            assert tree.params_digest(params) == tree.params_digest(state.params)
            assert int(checkpoints.restore(wanted).step) == 0


def test_newest_and_best_are_kept(tmp_path):
    losses = {1: 3.0, 2: 1.0, 3: math.nan, 4: None, 5: 2.0, 6: 2.5, 7: 4.0}
    with Checkpoints(tmp_path, keep_last=2, keep_best=2) as checkpoints:
        for number, loss in losses.items():
            metrics = None if loss is None else {"eval_mlm_loss": loss}
            checkpoints.save(number, tiny(number), metrics)
    # A new process knows the losses from the disk.
    with Checkpoints(tmp_path, keep_last=2, keep_best=2) as checkpoints:
        assert checkpoints.steps() == [2, 5, 6, 7]
        assert (checkpoints.best_step(), checkpoints.latest_step()) == (2, 7)
        checkpoints.save(8, tiny(8), {"eval_mlm_loss": 0.5})
        checkpoints.wait()
        assert checkpoints.steps() == [2, 7, 8]
        assert checkpoints.best_step() == 8
        best = checkpoints.restore(small_abstract(a=(3,)), step=2)
    np.testing.assert_array_equal(best.params["a"], 2)


def test_saving_a_step_twice_keeps_the_first(tmp_path):
    with Checkpoints(tmp_path, 2, 1) as checkpoints:
        checkpoints.save(3, tiny(3))
        checkpoints.save(3, tiny(4))
        restored = checkpoints.restore(small_abstract(a=(3,)))
    assert int(restored.step) == 3


def test_unfinished_checkpoint_is_not_the_latest(tmp_path):
    with Checkpoints(tmp_path, 3, 0) as checkpoints:
        checkpoints.save(4, tiny(4))
    left_over = tmp_path / "9.orbax-checkpoint-tmp-1"
    (left_over / "params").mkdir(parents=True)
    with Checkpoints(tmp_path, 3, 0) as checkpoints:
        assert checkpoints.latest_step() == 4
        assert int(checkpoints.restore(small_abstract(a=(3,))).step) == 4


def test_missing_checkpoint_is_a_user_error(tmp_path):
    with Checkpoints(tmp_path, 1, 0) as checkpoints:
        assert checkpoints.latest_step() is None
        assert checkpoints.best_step() is None
        with pytest.raises(UserError, match="complete ones: none"):
            checkpoints.restore(small_abstract(a=(3,)))
        checkpoints.save(4, tiny(4))
        with pytest.raises(UserError, match="of step 6; complete ones: 4"):
            checkpoints.restore(small_abstract(a=(3,)), step=6)


def test_other_model_is_a_user_error_that_lists_names(tmp_path):
    with Checkpoints(tmp_path, 1, 0) as checkpoints:
        checkpoints.save(4, tiny(4))
        with pytest.raises(UserError) as caught:
            checkpoints.restore_params(small_abstract(a=(5,), b=(2,)).params)
    text = str(caught.value)
    assert "a: float32[3] in the checkpoint, float32[5] in this run" in text
    assert "b: absent in the checkpoint, float32[2] in this run" in text
    assert "config.model" in text


def test_unwritable_directory_names_workdir(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="--workdir"):
        Checkpoints(tmp_path / "file" / "checkpoints", 1, 0)


def damage(tmp_path, name, change):
    """Two checkpoints, of which `change` alters files of the newer called `name`."""
    state, _ = train_step()(fresh(), linear_task.batch())
    with Checkpoints(tmp_path, 2, 0) as checkpoints:
        checkpoints.save(1, state)
        checkpoints.save(2, state)
    paths = [p for p in (tmp_path / "2").rglob(name) if p.is_file()]
    assert paths, name
    for path in paths:
        change(path)
    return tree.params_digest(state)


def newest(tmp_path, **settings):
    told = []
    with Checkpoints(tmp_path, 2, 0, **settings) as checkpoints:
        return checkpoints.newest_whole(told.append), told, checkpoints.steps()


@pytest.mark.parametrize(
    ("name", "change", "fault"),
    [
        ("d/*", lambda p: p.write_bytes(p.read_bytes()[:-1]), "has changed"),
        ("_METADATA", lambda p: p.unlink(), "is missing"),
        ("_CHECKPOINT_METADATA", lambda p: p.unlink(), "is missing"),
        ("_CHECKPOINT_METADATA", lambda p: p.write_text("{"), "has changed"),
        ("manifest.ocdbt", lambda p: p.unlink(), "is missing"),
        ("checksums.json", lambda p: p.write_text("{"), "is not JSON"),
    ],
)
def test_damage_is_told_and_the_older_checkpoint_used(tmp_path, name, change, fault):
    digest = damage(tmp_path, name, change)
    step, told, steps = newest(tmp_path)
    assert step == 1 and steps == [1]
    assert f"{tmp_path / '2'} is damaged and not used" in told[0] and fault in told[0]
    assert (tmp_path / "damaged-2").is_dir()  # nothing is thrown away
    with Checkpoints(tmp_path, 2, 0) as checkpoints:
        restored = checkpoints.restore(abstract(1, 1, 1))
        assert tree.params_digest(restored) == digest
        checkpoints.save(2, restored)  # the run comes to that step again
        assert checkpoints.newest_whole(told.append) == 2


def test_every_flipped_bit_is_found(tmp_path):
    """Sixty places over all files of a checkpoint, large and small ones alike."""
    damage(tmp_path, "checksums.json", lambda path: None)
    rng = np.random.default_rng(0)
    paths = sorted(p for p in (tmp_path / "2").rglob("*") if p.is_file())
    unlisted = "commit_success.txt", "checksums.json", "_CHECKPOINT_METADATA"
    paths = [p for p in paths if p.name not in unlisted]
    for number in range(60):
        path = paths[number % len(paths)]
        data = bytearray(path.read_bytes())
        if not data:
            continue
        byte, bit = rng.integers(len(data)), rng.integers(8)
        data[byte] ^= 1 << bit
        path.write_bytes(data)
        step, told, _ = newest(tmp_path, read_only=True)
        assert step == 1, f"bit {bit} of byte {byte} of {path}"
        assert f"{path.name} has changed" in told[0]
        with Checkpoints(tmp_path, 2, 0, read_only=True) as checkpoints:
            with pytest.raises(UserError, match="is damaged"):
                checkpoints.restore(abstract(1, 1, 1), 2)
        data[byte] ^= 1 << bit
        path.write_bytes(data)
    assert newest(tmp_path, read_only=True)[0] == 2


def test_nothing_but_damage_is_a_user_error_each_time(tmp_path):
    damage(tmp_path, "_METADATA", lambda path: path.unlink())
    for path in (tmp_path / "1").rglob("_METADATA"):
        path.unlink()
    for _ in range(2):  # a second start must not begin again at step 0
        with pytest.raises(UserError, match="every checkpoint is damaged"):
            newest(tmp_path)
        assert (tmp_path / "1").is_dir() and (tmp_path / "2").is_dir()


def test_no_checkpoint_is_no_damage(tmp_path):
    assert newest(tmp_path) == (None, [], [])


NAMES = [
    *("a[x]", "a*", "a?", "a%20b", "a%23", "a#b", "a,b=c", "a b", "-a", "~", "a:b"),
    *("a'b", 'a"b', "a\\b", "a|b;c&d", "$HOME", "{a}", "**", "[", "a]", "!a", "a\nb"),
    *(unicodedata.normalize(form, "한국어 모델") for form in ("NFC", "NFD")),
    *("🤗", "é", "gs:", "file:", "..a", ".a", "a" * 200, os.fsdecode(b"a\xff")),
]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_directory_of_any_name_holds_what_a_plain_one_does(tmp_path, name):
    place = tmp_path / name / "checkpoints"
    for folder in (tmp_path / "plain", place):
        with Checkpoints(folder, 1, 1) as checkpoints:
            checkpoints.save(1, tiny(1), {"eval_mlm_loss": 1.0})
            checkpoints.save(2, tiny(2), {"eval_mlm_loss": 2.0})

    def files(folder):
        found = [p.relative_to(folder) for p in folder.rglob("*") if p.is_file()]
        return sorted(str(path) for path in found if path.parent.name != "d")

    assert files(place) == files(tmp_path / "plain")
    with Checkpoints(place, 1, 1, read_only=True) as checkpoints:
        assert checkpoints.newest_whole(print) == 2
        assert checkpoints.best() == (1, {"eval_mlm_loss": 1.0, "step": 1.0})
        restored = checkpoints.restore(small_abstract(a=(3,)))
    np.testing.assert_array_equal(restored.params["a"], 2)
    (place / "2" / "params" / "_METADATA").write_bytes(b"{}")
    assert newest(place)[0] == 1


@pytest.mark.parametrize("place", ["temporary[1]", "missing"])
def test_a_link_is_made_where_the_temporary_directory_has_a_strange_name(
    tmp_path, monkeypatch, place
):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / place))
    if place != "missing":
        (tmp_path / place).mkdir()
    with Checkpoints(tmp_path / "a[x]") as checkpoints:
        checkpoints.save(1, tiny(1))
    assert newest(tmp_path / "a[x]")[0] == 1


def test_what_cannot_be_read_back_does_not_count_as_saved(tmp_path, monkeypatch):
    seal = checkpoint_files.seal

    def lose(folder):
        seal(folder)
        (folder / "params" / "_METADATA").write_bytes(b"{}")

    with Checkpoints(tmp_path, 2) as checkpoints:
        checkpoints.save(1, tiny(1))
        checkpoints.wait()
        for spoil in (lose, lambda folder: None):
            monkeypatch.setattr(checkpoint_files, "seal", spoil)
            checkpoints.save(2, tiny(2))
            with pytest.raises(UserError, match="2 was saved and cannot be read back"):
                checkpoints.wait()
            shutil.rmtree(tmp_path / "2")
            checkpoints._manager.reload()
    assert newest(tmp_path)[0] == 1


def keep(folder, *wanted):
    for path in folder.rglob("*"):
        if path.is_file() and str(path.relative_to(folder)) not in wanted:
            path.unlink()


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (lambda f: (shutil.rmtree(f), f.mkdir()), "it holds no files"),
        (lambda f: keep(f, "_CHECKPOINT_METADATA"), "params/_METADATA is missing"),
        (lambda f: shutil.rmtree(f / "params"), "params/_METADATA is missing"),
        (lambda f: shutil.rmtree(f / "rest"), "rest/_METADATA is missing"),
        (lambda f: (f / "rest" / "_METADATA").write_text("{"), "is not JSON"),
        (lambda f: (f / "params" / "manifest.ocdbt").unlink(), "params"),
        (lambda f: shutil.rmtree(f / "params" / "d"), "cannot be read"),
    ],
)
def test_a_checkpoint_without_checksums_is_used_only_if_whole(tmp_path, spoil, fault):
    with Checkpoints(tmp_path, 3) as checkpoints:
        for number in (1, 2, 3):
            checkpoints.save(number, tiny(number), {"eval_mlm_loss": -number})
    for number in (1, 2, 3):
        (tmp_path / str(number) / "checksums.json").unlink()  # an older version
    spoil(tmp_path / "3")
    with Checkpoints(tmp_path, 3, read_only=True) as checkpoints:
        told = []
        assert checkpoints.newest_whole(told.append) == 2
        assert checkpoints.best_step() == 2
        restored = checkpoints.restore(small_abstract(a=(3,)), 2)
    np.testing.assert_array_equal(restored.params["a"], 2)
    assert "3 is damaged and not used" in told[0] and fault in told[0]
    assert newest(tmp_path)[::2] == (2, [1, 2])


def test_empty_step_folders_are_no_checkpoints(tmp_path):
    for number in (3, 7):
        (tmp_path / str(number)).mkdir()
    step, told, steps = newest(tmp_path)
    assert step is None and steps == [] and "holds no files" in told[0]


def test_scores_of_another_held_out_set_are_not_compared(tmp_path):
    """Longer rows score lower: the best of the first phase is not the run's best."""
    losses = {1: 1.0, 2: 0.5, 3: 3.0, 4: 2.0, 5: 2.5}
    with Checkpoints(tmp_path, 1, 2, borders=(3,)) as checkpoints:
        for number, loss in losses.items():
            checkpoints.save(number, tiny(number), {"eval_mlm_loss": loss})
            checkpoints.wait()
            best = {1: 1, 2: 2, 3: 3, 4: 4, 5: 4}[number]
            assert checkpoints.best_step() == best
        assert checkpoints.steps() == [4, 5]


def test_borders_are_where_the_rows_change():
    phases = [config.Phase(0.25, length=n) for n in (64, 64, 128, 128)]
    settings = config.Config(steps=100, phases=tuple(phases))
    assert run.Stored(None, settings).borders() == [50]  # pyright: ignore
