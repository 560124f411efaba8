"""Plans of a small model on the fake devices, with ceilings that are made up."""

import dataclasses
import types

import jax
import numpy as np
import pytest

from bert_jax import config as configs
from bert_jax import metrics, plan, sharding, topology, tree
from bert_jax.chips import CHIPS, Chip
from bert_jax.config import Config, Data, Model, Objective, Optim, Phase
from bert_jax.data import pipeline
from bert_jax.errors import UserError
from bert_jax.tasks.pretrain import pretrain
from tests.data.synthetic import random_store

STORE = random_store(3_000)
CONFIG = Config(
    steps=1000,
    data=Data(eval_share=0.0),
    model=Model(
        vocab_size=STORE.vocabulary.size,
        hidden=32,
        layers=2,
        heads=4,
        mlp=64,
        positions=40,
        dtype="float32",
    ),
    optim=Optim(warmup_share=0.0),
    phases=(Phase(0.25, 24, 32, 3), Phase(0.75, 40, 64, 3)),
)
CHIP = Chip("", 1e9, 0, 1e9, 1e9, network=1e8)
TERMS = {"compute": "flops", "hbm": "memory_rate", "interconnect": "link"}


def machine(memory=10**9, chip=CHIP, count=8):
    return topology.Topology("fake:8", jax.devices()[:count], chip, memory)


def silent(text):
    del text


@pytest.fixture(scope="module")
def compiled():
    return plan.compile_step(CONFIG, 1, machine())


@pytest.mark.parametrize(
    "objective",
    [
        Objective(),
        Objective(pair="none"),
        Objective(pair="sop", masking="span", span_boundary=True),
    ],
)
@pytest.mark.parametrize("phase", [0, 1])
def test_shapes_are_those_of_a_real_batch(objective, phase):
    config = dataclasses.replace(CONFIG, objective=objective)
    batch = pipeline.Batches(STORE, config, phase).batch(0)
    real = {name: (array.shape, array.dtype) for name, array in batch.items()}
    said = pipeline.shapes(config, phase)
    assert {name: (size, np.dtype(kind)) for name, (size, kind) in said.items()} == real


def test_gradients_are_reduced_once_and_the_tied_table_twice(compiled):
    shapes = jax.eval_shape(
        pretrain(CONFIG.model, CONFIG.objective).init, jax.random.key(0)
    )
    named = tree.flatten(shapes)
    params = sum(leaf.size for leaf in named.values())
    result = plan.report(compiled)
    assert result["params"] == compiled.params == params
    moved = result["collectives"]["all-reduce"]["elements"]
    scalars = moved - params - named["embeddings/token"].size
    assert 0 < scalars < 20
    assert list(result["collectives"]) == ["all-reduce"]


def test_memory_holds_at_least_the_state(compiled):
    result = plan.report(compiled)
    assert result["fits"] and result["batch_per_chip"] == 8
    assert 3 * 4 * compiled.params < result["state_bytes"] < result["hbm_used_bytes"]
    assert result["largest"][0]["bytes"] >= result["largest"][-1]["bytes"] > 0


@pytest.mark.parametrize("slow", TERMS)
def test_the_longest_term_binds(compiled, slow):
    chip = CHIP._replace(**{TERMS[slow]: 1e3})
    result = plan.report(compiled._replace(topology=machine(chip=chip)))
    seconds = result["seconds"]
    assert result["bound"] == slow and result["step_seconds_roofline"] == seconds[slow]
    row = metrics.train_flops(CONFIG.model, 40, 6)
    ideal = 64 * row / 8 / chip.flops
    assert result["flops_per_token"] == pytest.approx(row / 40)
    assert seconds["compute"] == pytest.approx(ideal)
    assert result["mfu_roofline"] == pytest.approx(ideal / seconds[slow])
    assert result["tokens_per_second"] == pytest.approx(64 * 40 / seconds[slow])
    # Both phases, at the FLOP/s of the compiled one.
    first = 250 * 32 * metrics.train_flops(CONFIG.model, 24, 4)
    total = 750 * 64 * row + first
    hours = total / (result["mfu_roofline"] * chip.flops) / 3600
    assert result["chip_hours"] == pytest.approx(hours)
    assert result["days"] == pytest.approx(hours / 8 / 24)


def test_another_batch_is_as_much_work(compiled):
    phases = (CONFIG.phases[0], dataclasses.replace(CONFIG.phases[1], batch=128))
    twice = dataclasses.replace(CONFIG, phases=phases)
    found = compiled._replace(config=twice)
    hours = [plan.report(one, CONFIG) for one in (compiled, found)]
    first, second = (one["chip_hours"] * one["mfu_roofline"] for one in hours)
    assert first == pytest.approx(second)


def test_repeated_work_costs_time_but_is_not_useful():
    model = CONFIG.model
    useful = metrics.train_flops(model, 40, 6)
    again = {
        remat: metrics.repeated_flops(dataclasses.replace(model, remat=remat), 40)
        for remat in ("none", "dots", "full")
    }
    assert again["none"] == 0 < again["dots"] < again["full"]
    # A third of the layers' own, which is all but the head.
    head = useful - metrics.train_flops(model, 40, 0)
    assert again["full"] == pytest.approx((useful - head) / 3)


def test_unknown_ceilings_leave_the_seconds_open(compiled):
    place = machine()._replace(chip=None)
    result = plan.report(compiled._replace(topology=place))
    assert result["fits"] and result["collectives"]["all-reduce"]["count"] > 1
    assert result["seconds"] is result["bound"] is result["chip_hours"] is None


@pytest.fixture
def simple(monkeypatch):
    """A compiler whose programs need 1000 bytes of state and 100 a row.

    Up to 16 rows stay on the chip.
    """
    tried = []

    def compile_step(config, phase, place):
        sharding.check_batch(
            mesh := sharding.make_mesh(config.mesh), config.phases[1], 1
        )
        shape, fsdp = config.phases[phase], mesh.shape["fsdp"]
        rows = shape.batch // shape.accumulate // (mesh.shape["data"] * fsdp)
        row = {"none": 100, "dots": 60, "full": 30}[config.model.remat]
        state = 1000 // fsdp
        tried.append((rows, config.model.remat, fsdp))
        used = state + rows * row
        traffic = used if rows <= 16 else 10**9 * used
        program = plan.program.Program((), traffic, (), (), {})
        return plan.Compiled(config, phase, place, mesh, 1, state, used, program)

    monkeypatch.setattr(plan, "compile_step", compile_step)
    return tried


@pytest.mark.parametrize(
    ("memory", "edits"),
    [
        (1400, {"phases[1].accumulate": 2}),
        (1110, {"phases[1].accumulate": 8}),
        (1070, {"model.remat": "dots"}),
        (1040, {"model.remat": "full"}),
        (700, {"mesh.data": -1, "mesh.fsdp": 2}),
        (300, {"mesh.data": -1, "mesh.fsdp": 8}),
        (100, None),
    ],
)
def test_the_first_remedy_that_helps(memory, edits, simple):
    rows = 8 if memory > 1100 else 1
    failed = plan.attempt(CONFIG, 1, machine(memory), silent, rows)
    found = plan.remedy(failed, silent)
    assert (found and found[0]) == edits
    if found:
        assert found[1].fits and found[1].config.phases[1].batch == 8 * rows
    # A micro-batch cannot mend a state that is too large.
    assert memory > 1000 or all(tried[0] == 1 for tried in simple)


@pytest.mark.parametrize(
    ("memory", "rows"), [(1050, 1), (1350, 2), (1800, 8), (5e3, 16), (9e3, 64)]
)
def test_the_largest_batch_that_fits_or_half_of_it_if_faster(memory, rows, simple):
    found = plan.best_batch(CONFIG, 1, machine(memory), silent)
    assert found.rows == rows and found.fits == (memory > 1100)
    assert len(simple) == len(set(simple)) <= 6


def test_an_error_that_too_much_is_needed_is_an_answer(monkeypatch):
    class Step:
        def lower(self, *_):
            return self

        def compile(self):
            text = "RESOURCE_EXHAUSTED: HLO temporaries (2.00G) exceeds available HBM"
            raise jax.errors.JaxRuntimeError(text)

    monkeypatch.setattr(plan.step, "make_train_step", lambda *_: Step())
    found = plan.compile_step(CONFIG, 1, machine())
    assert not found.fits and found.used == 2 * 2**30 + found.state
    result = plan.report(found)
    assert result["collectives"] == {} and result["step_seconds_roofline"] is None


def test_only_pretraining_is_planned():
    config = dataclasses.replace(CONFIG, task=configs.TaskSettings(kind="tag"))
    with pytest.raises(UserError, match=r"config\.task\.kind=tag"):
        plan.compile_step(config, 1, machine())


@pytest.mark.parametrize(
    "name", ["v9:4x4", "v5e", "v5e:16", "h100", "h100:0", "v4:2x2"]
)
def test_unknown_machines_list_the_known(name):
    with pytest.raises(UserError, match="such as v5e:4x4.*h100:8"):
        topology.named(name)


@pytest.mark.parametrize(("name", "extra"), [("v5e:4x4", "tpu"), ("a100:8", "gpu")])
def test_a_compiler_that_is_missing_is_named(name, extra, monkeypatch):
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=rf"bert-jax\[aot-{extra}\]"):
        topology.named(name)


def test_machines_of_gpus_are_whole(monkeypatch):
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda _: True)
    with pytest.raises(UserError, match="multiple of 8"):
        topology.named("h100:12")


def device(*coords):
    return types.SimpleNamespace(coords=coords, id=coords[0])


@pytest.mark.parametrize(
    ("chip", "shape", "cut", "links"),
    [
        ("v5e", (16, 16), (slice(None), slice(None)), 4),  # both axes wrap around
        ("v5e", (4, 4), (slice(None), slice(None)), 2),
        ("v5e", (16, 16), (0, slice(None)), 2),
        ("v5e", (16, 16), (0, slice(4)), 1),
        ("v5p", (4, 4, 4), (slice(None),) * 3, 6),
    ],
)
def test_links_that_a_group_of_tpus_can_use(chip, shape, cut, links):
    grid = np.empty(shape, object)
    for place in np.ndindex(*shape):
        grid[place] = device(*place)
    whole = topology.Topology("", grid.ravel().tolist(), CHIPS[chip], 0)
    group = np.atleast_1d(grid[cut]).ravel().tolist()
    assert whole.link_rate(group) == links * CHIPS[chip].link


def test_gpus_of_two_machines_talk_over_the_network():
    chip = CHIPS["h100"]
    gpus = [device(number) for number in range(16)]
    place = topology.Topology("", gpus, chip, 0)
    assert place.link_rate(gpus[:8]) == chip.link
    assert place.link_rate(gpus[4:12]) == chip.network
