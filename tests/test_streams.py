"""Keyed randomness."""

from __future__ import annotations

import hashlib
import pickle
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mktsim.errors import InvalidArgumentError
from mktsim.streams import Streams, _to_unit

GOLDEN = Streams(20260711)
SEEDS = st.integers(0, 2**128 - 1)
REQUESTS = st.integers(0, 2**64 - 1)


def philox_block(key: tuple[int, int], counter: tuple[int, int, int, int]) -> list[int]:
    """Philox4x64-10 written out from its definition (Salmon et al. 2011): the oracle for the compiled one."""
    k0, k1 = key
    c0, c1, c2, c3 = counter
    mask = 2**64 - 1
    for _ in range(10):
        p0, p1 = 0xD2E7470EE14C6C93 * c0, 0xCA5A826395121157 * c2
        c0, c1, c2, c3 = (p1 >> 64) ^ c1 ^ k0, p1 & mask, (p0 >> 64) ^ c3 ^ k1, p0 & mask
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & mask, (k1 + 0xBB67AE8584CAA73B) & mask
    return [c0, c1, c2, c3]


def test_draws_equal_the_golden_vectors() -> None:
    """A seed means the same numbers in every later version."""
    assert GOLDEN.uniform("service", 0, 6).tolist() == [
        0.7246280934262163,
        0.6562396295409719,
        0.09651429615695861,
        0.1593700028610502,
        0.5360317976941033,
        0.8809945830588078,
    ]
    assert GOLDEN.uniform("service", 1, 2).tolist() == [0.8387692138674295, 0.8969409207754321]
    assert GOLDEN.child("a").uniform("é", 2**64 - 1, 2).tolist() == [0.10564692733574976, 0.06345564798054137]


@given(SEEDS, st.text(max_size=5), REQUESTS, st.integers(0, 40))
def test_draws_are_philox_of_the_key_and_the_counter(seed: int, stream: str, request: int, n: int) -> None:
    """The numbers are the cipher's words and nothing of numpy's own making."""
    digest = hashlib.blake2b(digest_size=16, person=b"mktsim.uniform")
    for kind, text in (("i", hex(seed)), ("s", stream)):
        digest.update(f"{kind}{len(text.encode())}:{text}".encode())
    raw = digest.digest()
    key = (int.from_bytes(raw[:8], "little"), int.from_bytes(raw[8:], "little"))
    # numpy counts up before it enciphers, hence block 1 first.
    words = [word for block in range(1, n // 4 + 2) for word in philox_block(key, (block, request, 0, 0))]
    expected = [((word >> 12) + 0.5) / 2**52 for word in words[:n]]
    assert Streams(seed).uniform(stream, request, n).tolist() == expected


@given(SEEDS, st.text(), REQUESTS, st.integers(0, 300), st.integers(0, 300))
def test_a_shorter_draw_is_the_prefix_of_a_longer(seed: int, stream: str, request: int, a: int, b: int) -> None:
    """Vendor i's draw does not depend on how many vendors are asked."""
    short, long = sorted((a, b))
    streams = Streams(seed)
    assert streams.uniform(stream, request, short).tolist() == streams.uniform(stream, request, long)[:short].tolist()


@given(SEEDS, st.text(), REQUESTS, st.integers(0, 3000))
def test_one_draw_alone_is_bit_equal_to_the_same_in_the_array(seed: int, stream: str, request: int, index: int) -> None:
    """The counter jump lands on the same word."""
    streams = Streams(seed)
    assert streams.uniform_at(stream, request, index) == streams.uniform(stream, request, index + 1)[index]


@given(SEEDS, REQUESTS, st.integers(0, 300), st.integers(0, 300))
def test_a_draw_that_starts_later_is_a_slice(seed: int, request: int, first: int, n: int) -> None:
    """Vendor i's draw does not depend on the vendor the array starts with."""
    streams = Streams(seed)
    whole = streams.uniform("s", request, first + n)
    assert streams.uniform("s", request, n, first=first).tolist() == whole[first:].tolist()


def test_a_far_index_costs_no_memory() -> None:
    """The counter jumps: vendor 2**47 is as near as vendor 0."""
    assert 0 < GOLDEN.uniform_at("service", 0, 2**47) < 1


def test_draws_stay_inside_the_open_interval() -> None:
    """The extreme words map to the centre of their cells, never to 0 or 1."""
    ends = _to_unit(np.array([0, 2**64 - 1, 1 << 12], dtype=np.uint64))
    assert ends.tolist() == [2.0**-53, 1.0 - 2.0**-53, 1.5 * 2.0**-52]


def test_draws_are_uniform_and_uncorrelated() -> None:
    """Chi-square over 256 cells and the correlation of neighbouring requests and streams are within 4.5 sigma."""
    n = 262_144
    first, second, other = (
        GOLDEN.uniform("a", 0, n),
        GOLDEN.uniform("a", 1, n),
        GOLDEN.uniform("b", 0, n),
    )
    counts = np.bincount((first * 256).astype(int), minlength=256)
    chi = ((counts - n / 256) ** 2 / (n / 256)).sum()
    assert abs(chi - 255) < 4.5 * np.sqrt(2 * 255)
    for one, two in ((first, second), (first, other), (first[:-1], first[1:])):
        assert abs(np.corrcoef(one, two)[0, 1]) < 4.5 / np.sqrt(n)


def test_each_part_of_the_key_matters() -> None:
    """Seed, path, stream, request: change one and the draw changes; and no two paths share an encoding."""
    draws = [
        GOLDEN.uniform_at("s", 0, 0),
        Streams(20260712).uniform_at("s", 0, 0),
        GOLDEN.uniform_at("t", 0, 0),
        GOLDEN.uniform_at("s", 1, 0),
        GOLDEN.uniform_at("s", 0, 1),
        GOLDEN.child("c").uniform_at("s", 0, 0),
        GOLDEN.child("c").child("").uniform_at("s", 0, 0),
        GOLDEN.child("").child("c").uniform_at("s", 0, 0),
        GOLDEN.child("cs").uniform_at("", 0, 0),
        GOLDEN.uniform_at("c\0s", 0, 0),
    ]
    assert len(set(draws)) == len(draws)


def test_generators_repeat_by_key_and_differ_between_keys() -> None:
    """Two generators of one key agree; 1 and "1", or a part moved into the path, do not."""
    keys = [(), ("1",), (1,), ("a", 1), ("a1",), ("a", "1"), (-1,), (2**70,)]
    first = [GOLDEN.generator(*key).bit_generator.random_raw() for key in keys]
    assert first == [GOLDEN.generator(*key).bit_generator.random_raw() for key in keys]
    first.append(GOLDEN.child("a").generator(1).bit_generator.random_raw())
    assert len(set(first)) == len(first)
    assert GOLDEN.generator("x", 1).bit_generator.random_raw(2).tolist() == [2247290033906891544, 11031288835044079740]


def test_another_process_with_another_hash_seed_draws_the_same() -> None:
    """Nothing depends on the process, nor on Python's own hash."""
    code = (
        "from mktsim.streams import Streams as S; s = S(20260711).child('a');"
        "print(s.uniform('service', 3, 5).tolist(), s.generator('x', 2).bit_generator.random_raw())"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    streams = GOLDEN.child("a")
    here = f"{streams.uniform('service', 3, 5).tolist()} {streams.generator('x', 2).bit_generator.random_raw()}\n"
    assert seen == {here}


def test_streams_are_values() -> None:
    """Equal by content, hashable, picklable, frozen; the path may be given as a list."""
    streams = Streams(7, ["a"])  # type: ignore[arg-type]
    assert streams == Streams(7).child("a") == pickle.loads(pickle.dumps(streams))
    assert hash(streams) == hash(Streams(7, ("a",)))
    with pytest.raises(AttributeError):
        streams.seed = 8  # type: ignore[misc]


def test_draws_of_one_call_are_not_shared_with_the_next() -> None:
    """The array is the caller's to change."""
    drawn = GOLDEN.uniform("a", 0, 4)
    kept = drawn.copy()
    drawn[:] = 0
    assert (GOLDEN.uniform("a", 0, 4) == kept).all()


@pytest.mark.parametrize("seed", [-1, 2**128, 1.0, float("nan"), "7", None, True, pytest.param(10**6000, id="huge")])
def test_a_bad_seed_is_refused_by_name(seed: object) -> None:
    """A seed is a whole number from 0 to 2**128 - 1."""
    with pytest.raises(InvalidArgumentError, match=r"seed must be a whole number from 0 to 2\*\*128 - 1, not"):
        Streams(seed)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, 0, 0), "stream must be a string"),
        (("a", -1, 0), "request must be"),
        (("a", 2**64, 0), "request must be"),
        (("a", float("nan"), 0), "request must be"),
        (("a", 0, -1), "must be a whole number from 0"),
        (("a", 0, 1.5), "must be a whole number"),
        (("a", 0, 2**48), "must be a whole number from 0"),
    ],
)
def test_bad_arguments_are_refused_by_name(arguments: tuple[object, ...], message: str) -> None:
    """Both ways to draw check the same."""
    for draw in (GOLDEN.uniform, GOLDEN.uniform_at):
        with pytest.raises(InvalidArgumentError, match=message):
            draw(*arguments)  # type: ignore[arg-type]


def test_bad_keys_and_paths_are_refused_by_name() -> None:
    """Only strings and whole numbers have a stable encoding."""
    with pytest.raises(InvalidArgumentError, match="whole numbers"):
        GOLDEN.generator(1.5)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="name must be a string"):
        GOLDEN.child(3)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="not the string"):
        Streams(1, "ab")  # type: ignore[arg-type]


def test_odd_strings_have_streams_too() -> None:
    """NUL, lone surrogates and a million characters are names like any other."""
    draws = {GOLDEN.uniform_at(name, 0, 0) for name in ("", "\0", "\ud800", "'; DROP", "x" * 1_000_000)}
    assert len(draws) == 5


@pytest.mark.parametrize("request_number", [0, 1, 2**64 - 1])
def test_numbers_looked_up_one_by_one_are_those_of_the_row(request_number):
    """The cipher written out in numpy against numpy's own Philox, in any order, far apart and at the ends."""
    streams = Streams(2**127 + 12345, ("x",))
    row = streams.uniform("a", request_number, 50_000)
    chosen = np.random.default_rng(1).permutation(50_000)[:3_000]
    assert streams.uniform_of("a", request_number, chosen).tobytes() == row[chosen].tobytes()
    far = [2**48 - 1, 0, 2**47 + 5, 2**34, 2**34 + 3]
    assert streams.uniform_of("a", 7, far).tolist() == [streams.uniform_at("a", 7, each) for each in far]
    assert streams.uniform_of("a", 7, []).shape == (0,)
    for bad in ([-1], [0.5], [[1]], [2**48], 3):
        with pytest.raises(InvalidArgumentError):
            streams.uniform_of("a", 7, bad)
