"""Where news of a run go: a topic of Amazon SNS, or a webhook such as Slack's, Discord's or Mattermost's.

Sources: "Publish" (Amazon Simple Notification Service API Reference); "Sending messages using incoming webhooks" (Slack
API documentation), whose ``text`` others take too; "Execute Webhook" (Discord developer documentation): ``content``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import requests

from train_cloud.errors import CloudError, CloudUnavailable, InputError
from train_cloud.platforms.ec2.api import call, client, until_it_holds

SUBJECT_LENGTH = 100
"""Characters; a subject is one line of printable ASCII."""
_WEBHOOK_SECONDS = 10.0


class Topic:
    """One topic.

    :param arn: its ARN, which names its region too
    :param retry_timeout_s: how long :meth:`publish` keeps trying where another try may help; None: without end
    """

    name = "topic"

    def __init__(self, arn: str, *, retry_timeout_s: float | None = 0) -> None:
        self.arn = arn
        self._retry_timeout_s = retry_timeout_s
        self._client = client("sns", arn.split(":")[3] if arn.count(":") >= 5 else None)

    def publish(self, subject: str, message: str, attributes: Mapping[str, str]) -> str:
        """Send a message to all who subscribed; SNS itself repeats deliveries that fail.

        :param subject: of an e-mail; shortened and stripped of what SNS refuses
        :param attributes: what a subscription's filter policy may look at
        :return: the message's id
        :raises CloudForbidden, CloudUnavailable: once the retry timeout is over
        :raises CloudError: there is no such topic, or it refuses for good
        """
        plain = re.sub(r"[^ -~]+", " ", subject)[:SUBJECT_LENGTH]
        typed = {name: {"DataType": "String", "StringValue": value} for name, value in attributes.items()}
        given = {"TopicArn": self.arn, "Subject": plain, "Message": message, "MessageAttributes": typed}
        answer = until_it_holds(lambda: call(self._client, "publish", **given), retry_timeout_s=self._retry_timeout_s)
        return str((answer or {}).get("MessageId", ""))


class Webhook:
    """A URL that takes JSON. It is a secret, and so stands in no message of ours.

    :param url: read when it is needed first
    :param retry_timeout_s: as a topic's
    """

    name = "webhook"

    def __init__(self, url: Callable[[], str], *, retry_timeout_s: float | None = 0) -> None:
        self._read = url
        self._url: str | None = None
        self._retry_timeout_s = retry_timeout_s

    def publish(self, subject: str, message: str, attributes: Mapping[str, str]) -> str:
        """POST ``{text, content, subject, …attributes}``.

        :return: the HTTP status
        :raises CloudUnavailable: no answer, 429 or 5xx, once the retry timeout is over
        :raises CloudError: the URL is none, or it refuses for good
        """
        body = {"text": message, "content": message, "subject": subject, **attributes}
        return until_it_holds(lambda: self._post(body), retry_timeout_s=self._retry_timeout_s)

    def _post(self, body: Mapping[str, str]) -> str:
        try:
            self._url = self._url or self._read().strip()
        except InputError as error:
            raise CloudError(f"the webhook's URL is not known: {error}") from error
        try:
            answer = requests.post(self._url, json=body, timeout=_WEBHOOK_SECONDS, allow_redirects=False)
        except (requests.exceptions.InvalidSchema, requests.exceptions.MissingSchema, requests.exceptions.InvalidURL):
            raise CloudError("the webhook's secret is no URL") from None  # the cause's text has it
        except requests.RequestException as error:
            raise CloudUnavailable(f"the webhook does not answer: {type(error).__name__}") from None
        if answer.status_code == 429 or answer.status_code >= 500:
            raise CloudUnavailable(f"the webhook answers {answer.status_code}")
        if not answer.ok or answer.is_redirect:
            raise CloudError(f"the webhook refuses: {answer.status_code}")
        return f"HTTP {answer.status_code}"
