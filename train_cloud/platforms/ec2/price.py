"""What this machine costs an hour with its volume and its public address, as AWS says it. Never a guess: the machine's
own price is unknown where AWS cannot be asked; for the two others there are AWS's published prices, with their date.

Sources: "DescribeSpotPriceHistory" (Amazon EC2 API Reference): of the prices from ``StartTime`` on, the one that is in
effect at it comes too; "GetProducts" (AWS Billing and Cost Management API Reference); "Spot Instance pricing history"
(Amazon EC2 User Guide); "Amazon EBS pricing" and "Amazon VPC pricing" (aws.amazon.com). All prices are in US dollars an
hour, for Linux, without taxes and discounts.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError
from pydantic import BaseModel, ConfigDict

from train_cloud.errors import CloudError
from train_cloud.platforms.ec2.api import call, region_name

_log = logging.getLogger(__name__)

_DESCRIPTIONS = ["Linux/UNIX", "Linux/UNIX (Amazon VPC)"]
"""The second is what accounts with EC2-Classic called the first inside a VPC."""
_PRICING_REGIONS = {"eu": "eu-central-1", "ap": "ap-south-1"}
"""The price list is served from three regions, for all of them ("AWS Price List Query API endpoints")."""
_MONTH_HOURS = 730.0
"""AWS lists volumes by the month and bills them by the second, in months of their real length; this is their mean."""
_GP3_INCLUDED = {"IOPS-Mo": 3000.0, "GiBps-mo": 125.0 / 1024}
"""What a gp3 volume has without being paid for: operations a second, GiB/s."""
_US_GP3 = {"GB-Mo": 0.08, "GiBps-mo": 40.96, "IOPS-Mo": 0.005}
_PUBLISHED_GP3: dict[str, dict[str, float]] = {
    **dict.fromkeys(("us-east-1", "us-east-2", "us-west-2"), _US_GP3),
    "ap-northeast-1": {"GB-Mo": 0.096, "GiBps-mo": 49.152, "IOPS-Mo": 0.006},
}
"""As published in September 2026, by the price list's units, for a role that may not ask. Other regions: unknown."""
_PUBLISHED_ADDRESS = 0.005
"""Of a public IPv4 address in use, an hour, in every region since February 2024."""
_ABSURD = 1000.0
"""Dollars: nothing that a worker has costs so much."""
_HURRY = Config(connect_timeout=2, read_timeout=5, retries={"total_max_attempts": 1})
"""A training waits for it."""


class Volume(BaseModel):
    """A root volume, as launched."""

    model_config = ConfigDict(frozen=True)

    type: str
    gb: float
    iops: float
    throughput: float
    """MiB/s."""


class Price(BaseModel):
    """Of one machine, at the start of a session."""

    model_config = ConfigDict(frozen=True)

    spot: float | None = None
    """Dollars an hour for such a machine in this zone, at that time; None: unknown, or not bought as spot."""
    on_demand: float | None = None
    """Dollars an hour for such a machine in this region; None: unknown."""
    life_cycle: str = "spot"
    """How it was bought: ``spot``, ``on-demand``, …: the metadata service's ``instance-life-cycle``."""
    volume: float | None = None
    """Dollars an hour for the root volume; None: unknown."""
    address: float | None = None
    """Dollars an hour for the public IPv4 address, 0 where there is none; None: unknown."""
    because: str | None = None
    """Why one of them is unknown."""

    @property
    def machine(self) -> float | None:
        """What is paid for an hour of the machine alone; None: unknown."""
        return self.spot if self.life_cycle == "spot" else self.on_demand

    @property
    def hourly(self) -> float | None:
        """What is paid for an hour, with those of volume and address that are known; None: the machine is unknown."""
        return self._whole(self.machine)

    @property
    def at_most(self) -> float | None:
        """The same at most: a spot machine never costs more than the same on demand, unless one asks for it ("Spot
        Instances", Amazon EC2 User Guide).
        """
        return self._whole(self.machine if self.machine is not None else self.on_demand)

    @property
    def left_out(self) -> list[str]:
        """What ``hourly`` leaves out because it is unknown, though the machine is not."""
        return [name for name in ("volume", "address") if getattr(self, name) is None]

    def _whole(self, machine: float | None) -> float | None:
        return None if machine is None else machine + (self.volume or 0.0) + (self.address or 0.0)


def read_price(
    instance_type: str,
    zone: str,
    at: datetime,
    *,
    life_cycle: str = "spot",
    volume: Volume | None = None,
    public_address: bool | None = None,
) -> Price:
    """Ask AWS, all at once and once each; takes at most about 8 seconds.

    :param zone: availability zone
    :param at: when the session began
    :param volume: the root volume; None: nobody has said what it is
    :param public_address: whether the machine has a public IPv4 address; None: unknown
    :return: what is known; never raises for what is not
    """
    region = region_name() or zone.rstrip("abcdefghijklmnopqrstuvwxyz")
    questions: dict[str, Callable[[], float]] = {
        "on-demand price": lambda: on_demand_price(instance_type, region=region),
        "volume's price": lambda: volume_price(volume, region=region),
        "address's price": lambda: address_price(public_address, region=region),
    }
    if life_cycle == "spot":
        questions = {"spot price": lambda: spot_price(instance_type, zone, at, region=region), **questions}
    with ThreadPoolExecutor(len(questions)) as threads:
        answers = dict(zip(questions, threads.map(_answer, questions.values()), strict=True))
    because = "; ".join(f"{name}: {answer}" for name, answer in answers.items() if isinstance(answer, str))
    known = {name: answer for name, answer in answers.items() if not isinstance(answer, str)}
    if because:
        _log.info("unknown %s", because)
    return Price(
        spot=known.get("spot price"),
        on_demand=known.get("on-demand price"),
        life_cycle=life_cycle,
        volume=known.get("volume's price"),
        address=known.get("address's price"),
        because=because or None,
    )


def spot_price(instance_type: str, zone: str, at: datetime, *, region: str) -> float:
    """Dollars an hour in ``zone`` at ``at``.

    :raises CloudError: AWS refuses, does not answer, or has no such price
    """
    found = _ask(
        "ec2",
        region,
        "describe_spot_price_history",
        InstanceTypes=[instance_type],
        AvailabilityZone=zone,
        ProductDescriptions=_DESCRIPTIONS,
        StartTime=at,
        EndTime=at,
    )
    prices = [e for e in found["SpotPriceHistory"] if e["AvailabilityZone"] == zone and e["Timestamp"] <= at]
    if not prices:
        raise CloudError(f"the history has none for {instance_type} in {zone}")
    return _dollars(max(prices, key=lambda entry: entry["Timestamp"])["SpotPrice"])


def on_demand_price(instance_type: str, *, region: str) -> float:
    """Dollars an hour in ``region``, on shared hardware, without licences.

    :raises CloudError: AWS refuses, does not answer, or has not exactly one such price
    """
    wanted = {
        "instanceType": instance_type,
        "regionCode": region,
        "operatingSystem": "Linux",
        "preInstalledSw": "NA",
        "tenancy": "Shared",
        "capacitystatus": "Used",
        "marketoption": "OnDemand",
    }
    prices = {price for unit, price, _ in products("AmazonEC2", wanted, region) if unit == "Hrs"}
    if len(prices) != 1:
        raise CloudError(f"the price list has {len(prices)} prices for {instance_type} in {region}")
    return prices.pop()


def volume_price(volume: Volume | None, *, region: str) -> float:
    """Dollars an hour.

    :raises CloudError: not a gp3 volume, or of a region whose price AWS does not tell and that is not published here
    """
    if volume is None:
        raise CloudError("the launch says nothing of the volume")
    if volume.type != "gp3":
        raise CloudError(f"a volume of type {volume.type} is not priced here")
    wanted = {"volumeApiName": "gp3", "regionCode": region}
    months = _published_or(
        lambda: {unit: price for unit, price, _ in products("AmazonEC2", wanted, region)},
        _PUBLISHED_GP3.get(region),
        {"GB-Mo", *_GP3_INCLUDED},
        f"gp3 in {region}",
    )
    has = {"IOPS-Mo": volume.iops, "GiBps-mo": volume.throughput / 1024}
    beyond = sum(months[unit] * max(0.0, has[unit] - included) for unit, included in _GP3_INCLUDED.items())
    return (months["GB-Mo"] * volume.gb + beyond) / _MONTH_HOURS


def address_price(has_one: bool | None, *, region: str) -> float:
    """Dollars an hour of a public IPv4 address; 0 for none.

    :raises CloudError: unknown whether there is one
    """
    if has_one is None:
        raise CloudError("the metadata service does not say whether there is a public one")
    if not has_one:
        return 0.0
    wanted = {"group": "VPCPublicIPv4Address", "regionCode": region}

    def listed() -> dict[str, float]:
        found = products("AmazonVPC", wanted, region)
        return {unit: price for unit, price, usage in found if usage.endswith("PublicIPv4:InUseAddress")}

    return _published_or(listed, {"Hrs": _PUBLISHED_ADDRESS}, {"Hrs"}, f"public addresses in {region}")["Hrs"]


def _published_or(
    ask: Callable[[], dict[str, float]], published: dict[str, float] | None, units: set[str], what: str
) -> dict[str, float]:
    """What the price list says, by unit; else what was published.

    :raises CloudError: neither has all ``units``
    """
    try:
        found = ask()
        if units <= found.keys():
            return found
        raise CloudError(f"the price list has no price for {what}")
    except CloudError as error:
        if published is None:
            raise
        _log.info("%s at the published price: %s", what, error)
        return published


def products(service: str, wanted: Mapping[str, str], region: str) -> list[tuple[str, float, str]]:
    """Unit, dollars and usage type of all that the price list has of it on demand; what is free is not listed.

    :raises CloudError: AWS refuses, does not answer, or makes no sense
    """
    filters = [{"Type": "TERM_MATCH", "Field": field, "Value": value} for field, value in wanted.items()]
    serving = _PRICING_REGIONS.get(region.split("-")[0], "us-east-1")
    found = _ask("pricing", serving, "get_products", ServiceCode=service, Filters=filters, MaxResults=100)
    try:
        products = [json.loads(product) if isinstance(product, str) else product for product in found["PriceList"]]
        listed = [
            (
                dimension["unit"],
                float(dimension["pricePerUnit"]["USD"]),
                product["product"].get("attributes", {}).get("usagetype", ""),
            )
            for product in products
            for term in product["terms"]["OnDemand"].values()
            for dimension in term["priceDimensions"].values()
        ]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CloudError(f"the price list's answer makes no sense: {error!r}") from error
    return [entry for entry in listed if 0 < entry[1] < _ABSURD]


def _ask(service: str, region: str, operation: str, **arguments: Any) -> Mapping[str, Any]:
    try:
        session: Any = boto3.Session()
        client = session.client(service, region_name=region, config=_HURRY)
    except BotoCoreError as error:
        raise CloudError(f"{service}: {error}") from error
    found = call(client, operation, **arguments)
    if found is None:
        raise CloudError(f"{operation}: AWS knows nothing of it")
    return found


def _dollars(text: object) -> float:
    """:raises CloudError: no price"""
    try:
        price = float(str(text))
    except ValueError as error:
        raise CloudError(f"{text!r} is no price") from error
    if not 0 < price < _ABSURD:
        raise CloudError(f"{text!r} is no price")
    return price


def _answer(ask: Callable[[], float]) -> float | str:
    """The price, or why there is none."""
    try:
        return ask()
    except CloudError as error:
        return str(error)
