"""What a session costs: prices as AWS tells them, and what follows from them and from the sessions' records."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from prices import Prices, serving

from train_cloud.config.run_file import Limits as Configured
from train_cloud.platforms.ec2.price import Price, Volume, read_price
from train_cloud.run.cost import cost, repeated
from train_cloud.run.session import SessionRecord, begin_session, read_sessions
from train_cloud.runtime.limits import Limits
from train_cloud.store import open_store

AT = datetime(2026, 3, 1, 12, tzinfo=timezone.utc)


@pytest.fixture
def prices(monkeypatch: pytest.MonkeyPatch) -> Iterator[Prices]:
    with serving() as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        server.spot = [
            ("us-east-1a", "2026-03-01T11:00:00Z", "0.400000"),
            ("us-east-1a", "2026-02-28T09:00:00Z", "0.900000"),
            ("us-east-1a", "2026-03-01T12:30:00Z", "0.500000"),
            ("us-east-1b", "2026-03-01T11:59:00Z", "0.100000"),
        ]
        server.on_demand = ["1.0060000000"]
        server.volumes = {"GB-Mo": "0.1", "GiBps-mo": "51.2", "IOPS-Mo": "0.01"}
        server.addresses = {
            "PublicIPv4:InUseAddress": "0.006",
            "PublicIPv4:IdleAddress": "0.5",
            "PublicIPv4:ContiguousBlock": "0",
        }
        yield server


def test_the_price_that_is_in_effect_in_the_zone_at_that_time(prices: Prices) -> None:
    price = read_price("g5.xlarge", "us-east-1a", AT, volume=VOLUME, public_address=False)
    assert (price.spot, price.on_demand, price.life_cycle, price.because) == (0.4, 1.006, "spot", None)
    assert (price.machine, price.address) == (0.4, 0.0)
    (asked,) = (asked for asked in prices.asked if "Action" in asked)
    assert asked["AvailabilityZone"] == "us-east-1a" and asked["StartTime"] == "2026-03-01T12:00:00Z"
    lists: list[Any] = [asked["Filters"] for asked in prices.asked if "Filters" in asked]
    filters = [{entry["Field"]: entry["Value"] for entry in each} for each in lists]
    (wanted,) = (each for each in filters if "instanceType" in each)
    assert wanted["instanceType"] == "g5.xlarge" and wanted["regionCode"] == "us-east-1"
    assert wanted["tenancy"] == "Shared" and wanted["operatingSystem"] == "Linux"


def test_on_demand_pays_the_on_demand_price(prices: Prices) -> None:
    price = read_price("g5.xlarge", "us-east-1a", AT, life_cycle="on-demand", volume=VOLUME, public_address=False)
    assert (price.spot, price.machine, price.because) == (None, 1.006, None)
    assert not any("Action" in asked for asked in prices.asked), "there is no spot price to ask for"


def test_what_cannot_be_read_is_unknown_and_never_a_guess(prices: Prices) -> None:
    prices.spot = [("us-east-1b", "2026-03-01T11:59:00Z", "0.1")]
    prices.on_demand = ["1.0", "2.0"]
    price = read_price("g5.xlarge", "us-east-1a", AT, volume=VOLUME, public_address=True)
    assert (price.spot, price.on_demand, price.hourly, price.at_most) == (None, None, None, None)
    assert price.because == (
        "spot price: the history has none for g5.xlarge in us-east-1a; "
        "on-demand price: the price list has 2 prices for g5.xlarge in us-east-1"
    )
    prices.refuses = 403
    assert "not authorized" in (read_price("g5.xlarge", "us-east-1a", AT).because or "")


VOLUME = Volume(type="gp3", gb=150, iops=3000, throughput=500)


def test_volume_and_public_address_cost_too(prices: Prices) -> None:
    price = read_price("g5.xlarge", "us-east-1a", AT, volume=VOLUME, public_address=True)
    assert price.volume == pytest.approx((150 * 0.1 + (500 - 125) * 51.2 / 1024) / 730)
    assert price.address == 0.006, "of one in use, not of an idle one"
    assert price.hourly == price.at_most == pytest.approx(0.4 + (price.volume or 0) + 0.006)
    faster = Volume(type="gp3", gb=150, iops=4000, throughput=125)
    found = read_price("g5.xlarge", "us-east-1a", AT, volume=faster, public_address=True)
    assert found.volume == pytest.approx((150 * 0.1 + 1000 * 0.01) / 730)


def test_a_price_list_that_does_not_tell_them_is_replaced_by_what_was_published(
    prices: Prices, monkeypatch: pytest.MonkeyPatch
) -> None:
    prices.volumes = prices.addresses = {}
    price = read_price("g5.xlarge", "us-east-1a", AT, volume=VOLUME, public_address=True)
    assert price.volume == pytest.approx((150 * 0.08 + 375 * 0.04) / 730) and price.address == 0.005
    monkeypatch.setenv("AWS_REGION", "eu-south-2")
    elsewhere = read_price("g5.xlarge", "eu-south-2a", AT, volume=VOLUME, public_address=True)
    assert (elsewhere.volume, elsewhere.address) == (None, 0.005)
    assert "volume's price: the price list has no price for gp3 in eu-south-2" in (elsewhere.because or "")


@pytest.mark.parametrize(
    ("volume", "public", "missing", "said"),
    [
        (None, False, ["volume"], "the launch says nothing of the volume"),
        (Volume(type="io2", gb=1, iops=1, throughput=1), False, ["volume"], "a volume of type io2 is not priced here"),
        (VOLUME, None, ["address"], "does not say whether there is a public one"),
    ],
)
def test_what_a_machine_has_may_be_unknown_too(
    prices: Prices, volume: Volume | None, public: bool | None, missing: list[str], said: str
) -> None:
    price = read_price("g5.xlarge", "us-east-1a", AT, volume=volume, public_address=public)
    assert price.left_out == missing and said in (price.because or "")
    assert price.machine == 0.4 and price.hourly is not None


@pytest.mark.parametrize("price", ["0", "-1", "free", "nan", "5000"])
def test_a_price_that_makes_no_sense_is_none(prices: Prices, price: str) -> None:
    prices.spot, prices.on_demand = [("us-east-1a", "2026-03-01T11:00:00Z", price)], [price]
    found = read_price("g5.xlarge", "us-east-1a", AT)
    assert (found.spot, found.on_demand) == (None, None)


def test_nobody_who_answers_is_unknown_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    began = datetime.now(timezone.utc)
    assert read_price("g5.xlarge", "us-east-1a", AT).at_most is None
    assert datetime.now(timezone.utc) - began < timedelta(seconds=30)


def record(
    number: int,
    first: int,
    last: int,
    hours: float,
    price: Price | None,
    *,
    setup: float | None = None,
    ended: bool = True,
    late_price: Price | None = None,
) -> SessionRecord:
    """A session as its machine would have left it."""
    start: dict[str, Any] = {"session": number, "setup_seconds": setup}
    if price is not None:
        start["price"] = price.model_dump()
    progress: dict[str, Any] = {"seconds": 3600 * hours, "first_timestep": first, "timesteps": last}
    if late_price is not None:
        progress["price"] = late_price.model_dump()
    end = {"seconds": 3600 * hours, "first_timestep": first, "last_timestep": last} if ended else None
    return SessionRecord(number=number, start=start, progress=progress, end=end)


SPOT = Price(spot=0.5, on_demand=2.0)


def test_hours_times_price_repeated_steps_and_what_was_saved() -> None:
    found = cost([record(1, 0, 1000, 2, SPOT, ended=False), record(2, 800, 1800, 1.5, SPOT, setup=1800)])
    first, second = found.sessions
    assert (first.hours, first.dollars, first.on_demand_dollars) == (2, 1.0, 4.0)
    assert first.repeated_timesteps == 200 and first.repeated_dollars == pytest.approx(0.2)
    assert (second.hours, second.dollars) == (2, 1.0), "the boot is paid for too"
    assert (second.repeated_timesteps, second.repeated_dollars) == (0, 0.0)
    assert (found.dollars, found.saved_dollars) == (2.0, 6.0) and found.repeated_dollars == pytest.approx(0.2)
    assert (found.hours, found.unknown) == (4, ())


def test_the_sum_has_volume_and_address_and_says_what_it_leaves_out() -> None:
    whole = Price(spot=0.5, on_demand=2.0, volume=0.04, address=0.005)
    found = cost([record(1, 0, 1000, 2, whole), record(2, 1000, 2000, 2, SPOT), record(3, 2000, 2000, 1, None)])
    first, second, third = found.sessions
    assert (first.machine_dollars, first.volume_dollars, first.address_dollars) == (1.0, 0.08, 0.01)
    assert first.dollars == pytest.approx(1.09) and first.on_demand_dollars == pytest.approx(4.09)
    assert (second.dollars, second.volume_dollars, third.dollars) == (1.0, None, None)
    assert found.dollars == pytest.approx(2.09) and found.saved_dollars == pytest.approx(6.0)
    assert (found.machine_dollars, found.volume_dollars, found.address_dollars) == (2.0, 0.08, 0.01)
    assert (found.unknown, found.without_volume, found.without_address) == ((3,), (2,), (2,))


@pytest.mark.parametrize(("volume", "reached"), [(71.0, True), (0.01, False), (None, False)])
def test_a_dollar_limit_counts_the_volume(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, volume: float | None, reached: bool
) -> None:
    store = open_store(str(tmp_path))
    price = Price(spot=1.0, on_demand=1.0, volume=volume, address=0.0, because=None if volume else "nobody says")
    details = {"setup_seconds": 60.0, "price": price.model_dump()}
    session = begin_session(store, tmp_path, instance_id="i", boot_id="b", details=details, persist=False)
    limits = Limits(Configured(dollars=1.0), session, read_sessions(store), price=price, store=store, deadline=None)
    assert (limits.reached() is not None) == reached
    assert ("counts without the volume here: nobody says" in caplog.text) == (volume is None)


def test_unknown_stays_unknown_and_is_named() -> None:
    nothing = Price(because="spot price: refused")
    no_spot = Price(on_demand=2.0, because="spot price: refused")
    found = cost([record(1, 0, 10, 1, nothing), record(2, 10, 20, 1, no_spot), record(3, 20, 30, 1, None)])
    assert [session.dollars for session in found.sessions] == [None, None, None]
    assert (found.dollars, found.saved_dollars, found.unknown) == (None, None, (1, 2, 3))
    assert found.sessions[1].on_demand_dollars == 2.0
    assert [s.because for s in found.sessions] == ["spot price: refused"] * 2 + ["no price was recorded"]
    mixed = cost([record(1, 0, 10, 1, nothing), record(2, 10, 20, 1, SPOT)])
    assert (mixed.dollars, mixed.saved_dollars, mixed.unknown) == (0.5, 1.5, (1,))


def test_a_price_that_was_learned_later_counts() -> None:
    (session,) = cost([record(1, 0, 10, 1, Price(because="not yet"), late_price=SPOT)]).sessions
    assert (session.dollars, session.because) == (0.5, None)


def test_on_demand_saves_nothing() -> None:
    found = cost([record(1, 0, 10, 3, Price(on_demand=2.0, life_cycle="on-demand"))])
    assert (found.dollars, found.saved_dollars) == (6.0, 0.0)


@pytest.mark.parametrize(
    ("first", "then", "repeated"),
    [
        (record(1, 0, 0, 1, SPOT), record(2, 0, 10, 1, SPOT), 0),  # it took no step
        (record(1, 0, 100, 1, SPOT), record(2, 0, 10, 1, SPOT), 100),  # nothing of it was committed
        (record(1, 50, 100, 1, SPOT), record(2, 0, 10, 1, SPOT), 50),  # rolled back further than it had begun
        (record(1, 0, 100, 1, SPOT), SessionRecord(number=2, start={}), 0),  # not known yet
    ],
)
def test_repeated_steps_are_at_most_those_of_the_session(
    first: SessionRecord, then: SessionRecord, repeated: int
) -> None:
    found = cost([first, then]).sessions[0]
    assert found.repeated_timesteps == repeated
    assert found.repeated_dollars is not None and 0 <= found.repeated_dollars <= 0.5


DEAD = {"first_timestep": 0, "timesteps": 1003, "committed_timesteps": 1000, "steps_per_second": 50.0, "seconds": 60.0}


@pytest.mark.parametrize(
    ("progress", "start", "reached", "least", "most", "words"),
    [
        ({}, {}, None, 3, 3 + 50 * 70, "3 to about 3,503"),  # reported every minute
        ({"at_risk": 520, "commit_seconds": 0.4}, {}, None, 3, 540, "3 to about 540"),  # committed more often than that
        ({"commit_seconds": 0.4}, {"run_file": {"save_frequency": 500}}, None, 3, 520, "3 to about 520"),
        ({"steps_per_second": None}, {}, None, 3, None, "at least 3"),
        ({}, {}, 1303, 303, 303, "303"),  # somebody has its disk
        ({"repeated": 40, "at_risk": 520}, {}, None, 43, 560, "43 to about 560"),
    ],
)
def test_a_session_that_died_without_a_word_gives_a_range(
    progress: dict[str, Any], start: dict[str, Any], reached: int | None, least: int, most: int | None, words: str
) -> None:
    dead = SessionRecord(number=1, start=start, progress={**DEAD, **progress})
    after = SessionRecord(number=2, start={}, progress={"first_timestep": 1000, "timesteps": 1000})
    found = cost([dead, after], {1: reached} if reached is not None else None).sessions[0]
    assert (found.repeated_timesteps, found.repeated_at_most, repeated(found)) == (least, most, words)
    on_disk = SessionRecord(number=2, start={"predecessor": {"session": 1, "timesteps": 1303}}, progress=after.progress)
    known = cost([dead, on_disk]).sessions[0]
    assert (known.repeated_timesteps, known.repeated_at_most) == (303 + progress.get("repeated", 0),) * 2
    assert cost([dead]).sessions[0].repeated_at_most == progress.get("repeated", 0), "nobody has gone on yet"


def test_a_run_without_a_session_costs_nothing_known() -> None:
    found = cost([])
    assert (found.sessions, found.dollars, found.saved_dollars, found.unknown) == ((), None, None, ())
