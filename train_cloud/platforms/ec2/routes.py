"""Whether a worker in a subnet can reach S3, AWS's interfaces and package indexes.

One that cannot leaves no word: it ends, and the group sends the next, until the limit. Sources: "Subnet route tables",
"Enable internet access for a VPC using an internet gateway" (Amazon VPC User Guide), "DescribeRouteTables" (Amazon EC2
API Reference).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from train_cloud.platforms.ec2.api import call

_ANYWHERE = "0.0.0.0/0"
_GATEWAYS = ("NatGatewayId", "TransitGatewayId", "NetworkInterfaceId", "InstanceId", "VpcPeeringConnectionId")
"""What a default route may lead to besides an internet gateway; whether there is a way out behind it is not asked."""


def ways_out(ec2: Any, subnets: Sequence[Mapping[str, Any]]) -> dict[str, str | None]:
    """For each subnet's id what keeps a worker in it from the internet; None: nothing that can be seen here.

    :param ec2: a client
    :param subnets: as DescribeSubnets has them
    :raises CloudError: it could not be asked
    """
    vpcs = sorted({subnet["VpcId"] for subnet in subnets})
    found = call(ec2, "describe_route_tables", Filters=[{"Name": "vpc-id", "Values": vpcs}])
    tables = (found or {"RouteTables": []})["RouteTables"]
    return {subnet["SubnetId"]: _obstacle(subnet, _table(subnet, tables)) for subnet in subnets}


def _table(subnet: Mapping[str, Any], tables: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The subnet's own table, else its VPC's main one."""
    for table in tables:
        if any(each.get("SubnetId") == subnet["SubnetId"] for each in table["Associations"]):
            return table
    mains = (t for t in tables if t["VpcId"] == subnet["VpcId"] and any(each.get("Main") for each in t["Associations"]))
    return next(mains, None)


def _obstacle(subnet: Mapping[str, Any], table: Mapping[str, Any] | None) -> str | None:
    routes = [] if table is None else table["Routes"]
    route = next((route for route in routes if route.get("DestinationCidrBlock") == _ANYWHERE), None)
    if route is None:
        return f"no route to {_ANYWHERE}"
    if route.get("State") == "blackhole":
        return f"its route to {_ANYWHERE} leads to something that is gone"
    gateway = str(route.get("GatewayId", ""))
    if gateway.startswith("igw-") and not subnet.get("MapPublicIpOnLaunch"):
        return f"its way out is {gateway}, and machines get no public address there"
    if gateway or any(route.get(name) for name in _GATEWAYS):
        return None
    return f"its route to {_ANYWHERE} leads nowhere"
