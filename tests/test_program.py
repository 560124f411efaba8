"""Collectives and traffic of small programs that were really compiled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from bert_jax import program

ROWS, WIDTH, TRIPS = 16, 24, 5


def mesh_of(*sizes):
    return jax.make_mesh(sizes, ("a", "b"), axis_types=(AxisType.Auto,) * 2)


def compiled(function, mesh, places, shapes, out=None):
    wanted = [NamedSharding(mesh, PartitionSpec(*place)) for place in places]
    structs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    result = None if out is None else NamedSharding(mesh, PartitionSpec(*out))
    jitted = jax.jit(function, in_shardings=wanted, out_shardings=result)
    return program.read(jitted.lower(*structs).compile().as_text())


def gradient(w, x):
    return jax.grad(lambda w: jnp.square(x @ w).sum())(w)


def test_a_reduced_gradient_is_counted_once_whole():
    found = compiled(
        gradient, mesh_of(8, 1), [(), ("a",)], [(WIDTH, WIDTH), (ROWS, WIDTH)], ()
    )
    (one,) = found.collectives
    assert one[:4] == ("all-reduce", 1, 4 * WIDTH**2, WIDTH**2)
    assert sorted(one.group) == list(range(8))


def test_a_loop_counts_as_often_as_it_runs():
    def function(w, x):
        def layer(x, w):
            return jnp.tanh(x @ w), None

        return jax.lax.scan(layer, x, w)[0]

    shapes = [(TRIPS, WIDTH, WIDTH), (ROWS, WIDTH)]
    found = compiled(function, mesh_of(1, 8), [(None, "b"), (None, "b")], shapes, ())
    reduced = [one for one in found.collectives if one.elements == ROWS * WIDTH]
    assert sum(one.times for one in reduced if one.kind == "all-reduce") == TRIPS


def test_a_loop_in_a_loop_multiplies():
    def function(w, x):
        def inner(x, w):
            return jnp.tanh(x @ w), None

        def outer(x, _):
            return jax.lax.scan(inner, x, w)[0], None

        return jax.lax.scan(outer, x, None, length=3)[0]

    shapes = [(TRIPS, WIDTH, WIDTH), (ROWS, WIDTH)]
    found = compiled(function, mesh_of(1, 8), [(None, "b"), (None, "b")], shapes, ())
    assert max(one.times for one in found.collectives) == 3 * TRIPS


def test_cut_parameters_are_gathered_and_their_gradient_reduced():
    mesh = mesh_of(4, 2)

    def function(w, x):
        def loss(w):
            y = jax.lax.with_sharding_constraint(
                x @ w, NamedSharding(mesh, PartitionSpec(("a", "b")))
            )
            return jnp.square(y).sum()

        return jax.grad(loss)(w)

    places, shapes = [("b",), (("a", "b"),)], [(WIDTH, WIDTH), (ROWS, WIDTH)]
    found = compiled(function, mesh, places, shapes, ("b",))
    kinds = {one.kind: one for one in found.collectives}
    assert kinds["all-gather"].bytes == 4 * WIDTH**2
    assert len(kinds["all-gather"].group) == 2
    assert {"all-reduce", "reduce-scatter"} & set(kinds)
    np.testing.assert_array_equal(kinds["all-gather"].group, [0, 1])


@pytest.mark.parametrize(
    ("text", "group"),
    [
        ("replica_groups={{0,4},{1,5}}, x", (0, 4)),
        ("replica_groups=[2,4]<=[8], x", (0, 1, 2, 3)),
        ("replica_groups=[4,2]<=[2,4]T(1,0), x", (0, 4)),
        ("replica_groups=mesh['a'=2,'b'=4] {'b'}, x", (0, 1, 2, 3)),
        ("replica_groups=mesh['a'=2,'b'=4] {'a'}, x", (0, 4)),
        (
            "replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}, x",
            (0, 1, 2, 3),
        ),
        ("replica_groups=mesh['a'=8] {'a':(2)2}, x", (0, 2)),
        ("source_target_pairs={{3,1},{1,3}}, x", (3, 1)),
    ],
)
def test_groups_of_devices(text, group):
    assert program._group(text) == group


ASYNC = """HloModule m
%start (p: f32[4]) -> f32[8] {
  %p = f32[4]{0} parameter(0)
  ROOT %g = f32[8]{0} all-gather(%p), channel_id=7, replica_groups={{0,1}}
}
%between (p: f32[4]) -> f32[8] {
  %p = f32[4]{0} parameter(0)
  ROOT %g = f32[8]{0} all-gather(%p), channel_id=7, replica_groups={{0,1}}
}
%all-reduce-scatter.1 (p: f32[8]) -> f32[4] {
  %p = f32[8]{0} parameter(0)
  %r = f32[8]{0} all-reduce(%p), channel_id=8, replica_groups={{0,1}}
  %z = u32[] constant(0)
  ROOT %s = f32[4]{0} dynamic-slice(%r, %z), dynamic_slice_sizes={4}
}
ENTRY %main (x: f32[4]) -> f32[4] {
  %x = f32[4]{0} parameter(0)
  %a = f32[8]{0} fusion(%x), kind=kCustom, calls=%start
  %b = f32[8]{0} fusion(%x), kind=kCustom, calls=%between
  ROOT %c = f32[4]{0} fusion(%b), kind=kCustom, calls=%all-reduce-scatter.1
}
"""


def test_fused_collectives_of_a_tpu():
    gather, scatter = program.read(ASYNC).collectives
    assert (gather.kind, gather.times, gather.bytes) == ("all-gather", 1, 32)
    assert (scatter.kind, scatter.bytes) == ("reduce-scatter", 32)


def test_traffic_of_a_product_and_of_a_slice_in_a_loop():
    def product(w, x):
        return x @ w

    shapes = [(WIDTH, WIDTH), (ROWS, WIDTH)]
    single = jax.make_mesh(
        (1, 1), ("a", "b"), (AxisType.Auto,) * 2, devices=jax.devices()[:1]
    )
    found = compiled(product, single, [(), ()], shapes)
    assert found.traffic == 4 * (WIDTH**2 + 2 * ROWS * WIDTH)

    def total(w):
        return jax.lax.scan(lambda c, w: (c + jnp.tanh(w), None), w[0], w)[0]

    count = 1000
    found = compiled(total, single, [()], [(count, WIDTH)])
    # A layer is read once each time, not the whole stack.
    assert found.traffic < 20 * count * WIDTH * 4


PREFETCH = """HloModule m
ENTRY %main (x: s8[4096]) -> s8[1024] {
  %x = s8[4096]{0:T(1024)} parameter(0)
  %room = bf16[9,4096]{1,0:T(8,128)} custom-call(), custom_call_target="AllocateBuffer"
  %s = ((s8[4096]{0:T(1024)}), s8[1024]{0:T(1024)S(1)}, s32[]{:S(2)}) slice-start(%x)
  ROOT %d = s8[1024]{0:T(1024)S(1)} slice-done(%s)
}
"""


def test_a_prefetched_slice_counts_as_what_it_reads_and_room_as_nothing():
    assert program.read(PREFETCH).traffic == 1024


@pytest.mark.parametrize(
    ("message", "asked"),
    [
        (
            "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: the total memory required "
            "for HLO temporaries (2.50G) exceeds available HBM (15.75G).",
            2.5 * 2**30 + 100,
        ),
        ("Ran out of memory in memory space hbm. Used 20.25G of 15.75G", 20.25 * 2**30),
        ("something else", None),
    ],
)
def test_memory_that_an_error_states(message, asked):
    assert program.memory_asked(message, 100) == asked


def test_the_largest_arrays_are_named():
    def function(w, x):
        with jax.named_scope("here"):
            return (x @ w) @ w.T

    found = compiled(function, mesh_of(8, 1), [(), ()], [(WIDTH, 512), (ROWS, WIDTH)])
    assert found.largest[0].bytes == 4 * WIDTH * 512
    assert any("here" in array.name for array in found.largest)


def test_arrays_that_change_their_order_are_told():
    shape, places = (ROWS, WIDTH), [("a",)]
    mesh = mesh_of(1, 1)
    (moved,) = compiled(lambda x: x.T + 1, mesh, places, [shape]).relaid
    assert moved.bytes == 4 * ROWS * WIDTH
    assert compiled(lambda x: x + 1, mesh, places, [shape]).relaid == ()
