"""Single values."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontd.config import units


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"), ("yes", "yes"), ("on", "on"), ("22:22", "22:22"), ("010", "010"), ("0", 0), ("-7", -7), ("+7", 7),
        ("1_000", "1_000"), ("0o17", 15), ("0x1F", 31), ("0b1", "0b1"), ("1.5", 1.5), ("1e3", 1000.0), (".5", 0.5),
        ("1.", 1.0), ("01.5", "01.5"), (".inf", ".inf"), (".nan", ".nan"), ("1e999", "1e999"), ("true", True),
        ("FALSE", False), ("tRue", "tRue"), ("~", None), ("null", None), ("", None), ("1" * 19, "1" * 19), ("-", "-"),
        ("2026-11-20", "2026-11-20"), ("=", "="), ("1.2.3", "1.2.3"),
    ],
)  # fmt: skip
def test_plain_scalars_by_yaml_1_2(text: str, value: object) -> None:
    assert units.resolve(text) == value
    assert type(units.resolve(text)) is type(value)


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("20m", 1200.0),
        ("1h30m", 5400.0),
        ("500ms", 0.5),
        ("1.5s", 1.5),
        ("30", 30.0),
        ("0", 0.0),
        ("1d", 86400.0),
        (3, 3.0),
    ],
)
def test_durations(written: str | int, seconds: float) -> None:
    assert units.seconds(units.Scalar.of(written) if isinstance(written, str) else written) == seconds


@pytest.mark.parametrize(
    "written", ["", "m", "1m1h", "1s1s", "-1s", "1 h", "1w", "nan", "inf", "1e400", "٣s", "367d", True]
)
def test_what_is_not_a_duration(written: object) -> None:
    with pytest.raises(ValueError, match="a duration"):
        units.seconds(written)


@pytest.mark.parametrize(
    ("written", "size"),
    [("30MB", 30 * 10**6), ("32MiB", 2**25), ("1.5KiB", 1536), ("7", 7), (7, 7), ("64 kB", 64000), ("0", 0), ("5B", 5)],
)
def test_sizes(written: object, size: int) -> None:
    assert units.size(written) == size


@pytest.mark.parametrize("written", ["-1", "1.5", "MB", "1mb", "30M", "1e3", "", True, 1.0, "0100", "٣"])
def test_what_is_not_a_size(written: object) -> None:
    with pytest.raises(ValueError, match="size"):
        units.size(written)


@given(st.text())
def test_units_refuse_with_a_value_error_and_nothing_else(text: str) -> None:
    for read in (units.seconds, units.size, units.number, units.boolean, units.address_and_port, units.network):
        for value in (text, units.Scalar.of(text)):
            with contextlib.suppress(ValueError):
                read(value)


@given(st.integers(0, 10**18 - 1))
def test_a_number_of_bytes_is_itself(size: int) -> None:
    assert units.size(str(size)) == size


def test_a_near_miss() -> None:
    assert units.nearest("Concurency", ["queue", "concurrency"]) == "concurrency"
    assert units.nearest("zebra", ["queue", "concurrency"]) is None
