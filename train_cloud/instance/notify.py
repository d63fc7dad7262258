"""A topic of Amazon SNS that people subscribe to: by e-mail, SMS, HTTPS or a queue.

Source: "Publish" (Amazon Simple Notification Service API Reference).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from train_cloud.instance.api import call, client, until_it_holds

SUBJECT_LENGTH = 100
"""Characters; a subject is one line of printable ASCII."""


class Topic:
    """One topic.

    :param arn: its ARN, which names its region too
    :param patience_s: how long :meth:`publish` keeps trying where another try may help; None: without end
    """

    def __init__(self, arn: str, *, patience_s: float | None = 0) -> None:
        self.arn = arn
        self._patience_s = patience_s
        self._client = client("sns", arn.split(":")[3] if arn.count(":") >= 5 else None)

    def publish(self, subject: str, message: str, attributes: Mapping[str, str]) -> str:
        """Send a message to all who subscribed; SNS itself repeats deliveries that fail.

        :param subject: of an e-mail; shortened and stripped of what SNS refuses
        :param attributes: what a subscription's filter policy may look at
        :return: the message's id
        :raises CloudForbidden, CloudUnavailable: once patience is over
        :raises CloudError: there is no such topic, or it refuses for good
        """
        plain = re.sub(r"[^ -~]+", " ", subject)[:SUBJECT_LENGTH]
        typed = {name: {"DataType": "String", "StringValue": value} for name, value in attributes.items()}
        given = {"TopicArn": self.arn, "Subject": plain, "Message": message, "MessageAttributes": typed}
        answer = until_it_holds(lambda: call(self._client, "publish", **given), patience_s=self._patience_s)
        return str((answer or {}).get("MessageId", ""))
