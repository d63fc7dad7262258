"""What this machine costs an hour, as AWS says it; unknown where AWS cannot be asked. Never a guess.

Sources: "DescribeSpotPriceHistory" (Amazon EC2 API Reference): of the prices from ``StartTime`` on, the one that is in
effect at it comes too; "GetProducts" (AWS Billing and Cost Management API Reference); "Spot Instance pricing history"
(Amazon EC2 User Guide). All prices are in US dollars an hour, for Linux, without taxes, discounts and the volume.
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
from train_cloud.instance.api import call, region_name

_log = logging.getLogger(__name__)

_DESCRIPTIONS = ["Linux/UNIX", "Linux/UNIX (Amazon VPC)"]
"""The second is what accounts with EC2-Classic called the first inside a VPC."""
_PRICING_REGIONS = {"eu": "eu-central-1", "ap": "ap-south-1"}
"""The price list is served from three regions, for all of them ("AWS Price List Query API endpoints")."""
_HURRY = Config(connect_timeout=2, read_timeout=5, retries={"total_max_attempts": 1})
"""A training waits for it."""


class Price(BaseModel):
    """Of one machine, at the start of a session."""

    model_config = ConfigDict(frozen=True)

    spot: float | None = None
    """Dollars an hour for such a machine in this zone, at that time; None: unknown, or not bought as spot."""
    on_demand: float | None = None
    """Dollars an hour for such a machine in this region; None: unknown."""
    life_cycle: str = "spot"
    """How it was bought: ``spot``, ``on-demand``, …: the metadata service's ``instance-life-cycle``."""
    because: str | None = None
    """Why one of the two is unknown."""

    @property
    def hourly(self) -> float | None:
        """What is paid for an hour; None: unknown."""
        return self.spot if self.life_cycle == "spot" else self.on_demand

    @property
    def at_most(self) -> float | None:
        """What is paid for an hour at most: a spot machine never costs more than the same on demand, unless one asks
        for it ("Spot Instances", Amazon EC2 User Guide). None: unknown.
        """
        return self.hourly if self.hourly is not None else self.on_demand


def read_price(instance_type: str, zone: str, at: datetime, *, life_cycle: str = "spot") -> Price:
    """Ask AWS, both at once and once each; takes at most about 8 seconds.

    :param zone: availability zone
    :param at: when the session began
    :return: what is known; never raises for what is not
    """
    region = region_name() or zone.rstrip("abcdefghijklmnopqrstuvwxyz")
    questions: dict[str, Callable[[], float]] = {
        "on-demand price": lambda: on_demand_price(instance_type, region=region),
    }
    if life_cycle == "spot":
        questions = {"spot price": lambda: spot_price(instance_type, zone, at, region=region), **questions}
    with ThreadPoolExecutor(2) as threads:
        answers = dict(zip(questions, threads.map(_answer, questions.values()), strict=True))
    because = "; ".join(f"{name}: {answer}" for name, answer in answers.items() if isinstance(answer, str))
    known = {name: answer for name, answer in answers.items() if not isinstance(answer, str)}
    if because:
        _log.info("unknown %s", because)
    return Price(
        spot=known.get("spot price"),
        on_demand=known.get("on-demand price"),
        life_cycle=life_cycle,
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
    filters = [{"Type": "TERM_MATCH", "Field": field, "Value": value} for field, value in wanted.items()]
    serving = _PRICING_REGIONS.get(region.split("-")[0], "us-east-1")
    found = _ask("pricing", serving, "get_products", ServiceCode="AmazonEC2", Filters=filters, MaxResults=100)
    try:
        prices = {
            _dollars(dimension["pricePerUnit"]["USD"])
            for product in found["PriceList"]
            for term in (json.loads(product) if isinstance(product, str) else product)["terms"]["OnDemand"].values()
            for dimension in term["priceDimensions"].values()
            if dimension["unit"] == "Hrs"
        }
    except (KeyError, TypeError, ValueError) as error:
        raise CloudError(f"the price list's answer makes no sense: {error!r}") from error
    if len(prices) != 1:
        raise CloudError(f"the price list has {len(prices)} prices for {instance_type} in {region}")
    return prices.pop()


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
    if not 0 < price < 1000:
        raise CloudError(f"{text!r} is no price of a machine")
    return price


def _answer(ask: Callable[[], float]) -> float | str:
    """The price, or why there is none."""
    try:
        return ask()
    except CloudError as error:
        return str(error)
