"""EC2 and the price list as far as they tell prices, over HTTP, in the words of their API references."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs


class Prices(ThreadingHTTPServer):
    """:ivar spot: (zone, ISO 8601, dollars an hour) of each change
    :ivar on_demand: dollars an hour of each product that matches
    :ivar volumes: dollars a month of gp3, by unit
    :ivar addresses: dollars an hour of a public address, by usage type
    :ivar refuses: status of every answer, if it is no 200
    :ivar asked: what came, as it came
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Exchange)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.spot: list[tuple[str, str, str]] = []
        self.on_demand: list[str] = []
        self.volumes: dict[str, str] = {}
        self.addresses: dict[str, str] = {}
        self.refuses = 0
        self.asked: list[dict[str, object]] = []

    def environment(self) -> dict[str, str]:
        """For a process that asks."""
        return {"AWS_ENDPOINT_URL_EC2": self.url, "AWS_ENDPOINT_URL_PRICING": self.url}

    def answer(self, target: str, body: str) -> str:
        if target == "AWSPriceListService.GetProducts":
            asked = json.loads(body)
            self.asked.append(asked)
            filters = {entry["Field"]: entry["Value"] for entry in asked["Filters"]}
            if asked["ServiceCode"] == "AmazonVPC":
                found = [_product(price, usage=usage) for usage, price in self.addresses.items()]
            elif filters.get("volumeApiName") == "gp3":
                found = [_product(price, unit) for unit, price in self.volumes.items()]
            else:
                found = [_product(price) for price in self.on_demand]
            return json.dumps({"FormatVersion": "aws_v1", "PriceList": found})
        call = {name: values[0] for name, values in parse_qs(body).items()}
        assert call["Action"] == "DescribeSpotPriceHistory", call
        self.asked.append(dict(call))
        items = "".join(
            f"<item><instanceType>{call['InstanceType.1']}</instanceType>"
            f"<productDescription>Linux/UNIX</productDescription><spotPrice>{price}</spotPrice>"
            f"<timestamp>{when}</timestamp><availabilityZone>{zone}</availabilityZone></item>"
            for zone, when, price in self.spot
        )
        return (
            '<DescribeSpotPriceHistoryResponse xmlns="http://ec2.amazonaws.com/doc/2016-11-15/">'
            f"<spotPriceHistorySet>{items}</spotPriceHistorySet></DescribeSpotPriceHistoryResponse>"
        )


def _product(price: str, unit: str = "Hrs", *, usage: str = "BoxUsage") -> str:
    dimension = {"unit": unit, "pricePerUnit": {"USD": price}, "description": f"${price} per {unit}"}
    term = {"priceDimensions": {"A.B.C": dimension}, "sku": "A"}
    product = {"sku": "A", "attributes": {"usagetype": usage}}
    return json.dumps({"product": product, "terms": {"OnDemand": {"A.B": term}, "Reserved": {}}})


class _Exchange(BaseHTTPRequestHandler):
    server: Prices

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        status, text = 200, self.server.answer(self.headers.get("X-Amz-Target", ""), body)
        if self.server.refuses:
            status, text = (
                self.server.refuses,
                (
                    "<Response><Errors><Error><Code>UnauthorizedOperation</Code><Message>You are not authorized"
                    "</Message></Error></Errors></Response>"
                ),
            )
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serving() -> Iterator[Prices]:
    with Prices() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()
