"""The least that an adapter adds, against counts by hand; and the constants that follow from measured times."""

import pytest

import tnadapt
from tnadapt import families

pytestmark = pytest.mark.usefixtures("modules")

TOKENS, HIDDEN, KEYS, INNER, RANK = 100, 64, 32, 96, 4
KINDS = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (KEYS, HIDDEN),
    "self_attn.v_proj": (KEYS, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INNER, HIDDEN),
    "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
}
READ = 3 * HIDDEN + INNER  # q, k and v read one x; so do gate and up
MADE = sum(out for out, _ in KINDS.values())


def limit(family, **words):
    from limits import limit_of

    adapter = getattr(families, family)().bind(tnadapt.grid(layers=2, kinds=KINDS), rank=RANK, seed=0)
    return limit_of(adapter, **({"tokens": TOKENS, "training": True, "size": 2} | words))


def test_lora_reads_x_twice_a_group_and_each_gradient_once():
    """Launches: three a group, three a layer. Flops: two products forward, and two gradients of each."""
    found = limit("lora")
    assert found.bytes == 2 * 2 * TOKENS * (2 * READ + MADE)
    assert found.launches == 2 * (3 * 4 + 3 * 7)
    assert found.flops == 2 * sum(3 * 2 * TOKENS * RANK * (out + inner) for out, inner in KINDS.values())


def test_a_frozen_factor_at_x_saves_a_pass():
    found = limit("tlora")
    assert found.bytes == 2 * 2 * TOKENS * (READ + MADE)
    assert found.launches == 2 * (2 * 4 + 3 * 7)


def test_one_token_reads_x_once_and_launches_two_products():
    found = limit("lora", tokens=1, training=False)
    assert (found.bytes, found.launches) == (2 * 2 * READ, 2 * (4 + 7))
    assert found.flops <= 2 * sum(2 * RANK * (out + inner) for out, inner in KINDS.values())


def test_a_limit_in_seconds_overlaps_where_the_device_does():
    from limits import Limit, Speeds

    one = Limit(flops=100, bytes=30, launches=2)
    slow = Speeds(flops=100.0, bytes=10.0, launch=1.0, overlaps=False)
    fast = Speeds(flops=100.0, bytes=10.0, launch=1.0, overlaps=True)
    assert one.seconds(slow) == 1 + 3 + 2
    assert one.seconds(fast) == one.seconds(slow, launches=False) == 4
    assert Limit(0, 0, 9).seconds(fast) == 9


def test_the_constants_follow_from_the_times():
    """A machine of 2,048 flops a number moved, on which gradients are slow from a ratio of 8."""
    from calibrate import Measured, Sizes, constants, skinny_of

    sizes = Sizes(tokens=16, width=64, ranks=(2, 4, 8, 16), large=1024)
    copy, entries = 1e-6, 16 * 64
    found = Measured(
        sizes,
        wide=2 * entries * 64 / 1e12,
        skinny=1.0,
        copy=copy,
        large=1.0,
        launch=3e-6,
        transform=5e-6,
        last={2: 4e-6, 4: 4e-6, 8: 4e-6, 16: 1e-6},
        first=dict.fromkeys((2, 4, 8, 16), 1e-6),
    )
    rows = {row["constant"]: row["measured"] for row in constants(found)}
    assert rows["MOVED"] == pytest.approx(1e12 * copy / (2 * entries))
    assert rows["call"] == pytest.approx(3 * entries)
    assert rows["CALL"] == pytest.approx(5 * 2 * entries)
    assert rows["slow"] == pytest.approx(4 / 3)  # rank 4: 4,096 multiplications in 3 us, 3,072 numbers copied
    assert rows["skinny"] == 64 / 8
    even = Measured(**{**vars(found), "last": found.first})
    assert skinny_of(even) is None
    assert {row["constant"]: row["measured"] for row in constants(even)}["slow"] == "not slow"
