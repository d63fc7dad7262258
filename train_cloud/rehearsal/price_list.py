"""What the embedded AWS charges: prices like AWS's in its first region, so that a rehearsal shows money as a run does.

The shape is that of "GetProducts" (AWS Price List API Reference). The numbers are examples, after those of us-east-1;
spot is two fifths of on demand, which is usual for these types. A real worker asks the real AWS.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

#: Dollars an hour, Linux, shared hardware.
ON_DEMAND = {
    "c6i.large": 0.085,
    "c6i.xlarge": 0.17,
    "c7i.large": 0.08925,
    "c7i.xlarge": 0.1785,
    "g4dn.xlarge": 0.526,
    "g4dn.2xlarge": 0.752,
    "g5.xlarge": 1.006,
    "g5.2xlarge": 1.212,
    "g6.xlarge": 0.8048,
    "g6.2xlarge": 0.9776,
    "g6e.xlarge": 1.861,
    "m6i.large": 0.096,
    "m6i.xlarge": 0.192,
    "m7i.large": 0.1008,
}
_SPOT_SHARE = 0.4
_TRAINING = 1.4
"""SageMaker's machines cost so much more than the same of EC2."""
#: Unit of the price list → dollars: a month of a GB, of a GiB/s and of one operation a second.
_GP3 = {"GB-Mo": 0.08, "GiBps-mo": 40.96, "IOPS-Mo": 0.005}
_ADDRESS_HOUR = 0.005


def spot_price(instance_type: str, zone: str) -> float | None:
    """Dollars an hour; a little more in each later zone. None: a type that is not in the list."""
    price = ON_DEMAND.get(instance_type)
    return None if price is None else round(price * _SPOT_SHARE * (1 + 0.03 * (ord(zone[-1]) - ord("a"))), 4)


def get_products(asked: Mapping[str, Any]) -> dict[str, Any]:
    """The answer to one GetProducts; products that a filter names otherwise are left out, as AWS does.

    :param asked: the request's ``ServiceCode`` and ``Filters``
    """
    wanted = {each["Field"]: each["Value"] for each in asked.get("Filters", [])}
    region = wanted.get("regionCode", "us-east-1")
    found = [
        json.dumps(product)
        for service, attributes, product in _products(region)
        if service == asked["ServiceCode"] and all(attributes.get(name) == value for name, value in wanted.items())
    ]
    return {"FormatVersion": "aws_v1", "PriceList": found}


def _products(region: str) -> Iterator[tuple[str, dict[str, str], dict[str, Any]]]:
    for instance_type, price in ON_DEMAND.items():
        attributes = {
            "instanceType": instance_type,
            "regionCode": region,
            "operatingSystem": "Linux",
            "preInstalledSw": "NA",
            "tenancy": "Shared",
            "capacitystatus": "Used",
            "marketoption": "OnDemand",
        }
        yield "AmazonEC2", attributes, _product("Compute Instance", attributes, "Hrs", price)
        training = f"ml.{instance_type}"
        attributes = {"instanceName": training, "regionCode": region, "usagetype": f"USE1-Train:{training}"}
        yield "AmazonSageMaker", attributes, _product("ML Instance", attributes, "Hrs", price * _TRAINING)
    for unit, price in _GP3.items():
        attributes = {"volumeApiName": "gp3", "regionCode": region}
        yield "AmazonEC2", attributes, _product("Storage", attributes, unit, price)
    attributes = {"group": "VPCPublicIPv4Address", "regionCode": region, "usagetype": "PublicIPv4:InUseAddress"}
    yield "AmazonVPC", attributes, _product("", attributes, "Hrs", _ADDRESS_HOUR)


def _product(family: str, attributes: Mapping[str, str], unit: str, price: float) -> dict[str, Any]:
    dimension = {"unit": unit, "pricePerUnit": {"USD": f"{price:.10f}"}}
    return {
        "product": {"productFamily": family, "attributes": dict(attributes)},
        "terms": {"OnDemand": {"term": {"priceDimensions": {"dimension": dimension}}}},
    }
