"""The server process of the embedded AWS: moto, and the answers that moto 5.2.5 lacks or gives wrongly.

Started by :class:`train_cloud.rehearsal.aws.EmbeddedAws` as ``python -m train_cloud.rehearsal.moto_gaps``. Each answer
below says which gap it fills; it goes when moto closes the gap. What moto lets through and AWS refuses (spot options
inside a mixed instances policy, user-data over 16 KB, an unknown image) is guarded in ``terraform/`` itself.
"""

from __future__ import annotations

import io
import json
import logging
import os
import sys
import threading
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any
from xml.etree import ElementTree

# Both are read when moto is imported. Without the first, a policy of AWS's own (AdministratorAccess) is "not
# found"; without the second, an image need not exist.
os.environ["MOTO_IAM_LOAD_MANAGED_POLICIES"] = "true"
os.environ["MOTO_ENABLE_AMI_VALIDATION"] = "true"

from moto import backends
from moto.autoscaling.models import AutoScalingBackend, FakeAutoScalingGroup
from moto.autoscaling.responses import AutoScalingResponse
from moto.core.responses import ActionResult, EmptyResult
from moto.ec2.models import ec2_backends
from moto.ec2.models.instances import Instance
from moto.ec2.models.launch_templates import LaunchTemplateBackend
from moto.ec2.models.vpcs import VPCBackend
from moto.ec2.responses.spot_instances import SpotInstances
from moto.iam.access_control import IAMPolicyStatement, IAMRequestBase, PermissionResult
from moto.logs.responses import LogsResponse
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from moto.s3.models import FakeBucket, FakeDeleteMarker, FakeKey, S3Backend
from moto.s3.responses import S3Response
from moto.sns.responses import SNSResponse
from moto.ssm.models import Parameter, SimpleSystemManagerBackend
from werkzeug.serving import make_server

from train_cloud.rehearsal.price_list import get_products, spot_price

Answer = Callable[..., Any]
IMAGE_PARAMETERS = ("/aws/service/deeplearning/ami/", "/aws/service/canonical/")


def fills(owner: type, name: str) -> Callable[[Answer], Answer]:
    """Put ``answer(original, self, ...)`` in the place of a method; ``original`` is None where moto has none."""

    def put(answer: Answer) -> Answer:
        original = getattr(owner, name, None)

        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            return answer(original, self, *args, **kwargs)

        setattr(owner, name, method)
        return answer

    return put


@fills(LaunchTemplateBackend, "create_launch_template")
def _template(
    original: Answer, self: Any, name: str, description: str, data: dict[str, Any], *args: Any, **kwargs: Any
) -> Any:
    """Tags *of* a launch template come back as tags of what it launches: a plan that is never empty."""
    specifications = [s for s in data.get("TagSpecifications", []) if s.get("ResourceType") != "launch-template"]
    data = {key: value for key, value in data.items() if key != "TagSpecifications"}
    if specifications:
        data["TagSpecifications"] = specifications
    return original(self, name, description, data, *args, **kwargs)


@fills(Instance, "add_block_device")
def _volume(original: Answer, self: Any, size: int, device: str, *args: Any, **kwargs: Any) -> None:
    """A template's root volume is attached over the image's, which stays behind for ever."""
    replaced = self.block_device_mapping.get(device)
    if replaced is not None:
        self.ec2_backend.detach_volume(replaced.volume_id, self.id, device)
        self.ec2_backend.delete_volume(replaced.volume_id)
    original(self, size, device, *args, **kwargs)


@fills(FakeAutoScalingGroup, "update")
def _group(original: Answer, self: Any, *args: Any, **kwargs: Any) -> None:
    """A change of anything else, such as the capacity, removes the mixed instances policy."""
    policy = self.mixed_instances_policy
    original(self, *args, **kwargs)
    if not (kwargs.get("mixed_instances_policy") or kwargs.get("launch_template") or kwargs.get("launch_config_name")):
        self.mixed_instances_policy = policy


@fills(AutoScalingBackend, "put_scheduled_update_group_action")
def _schedule(original: Answer, self: Any, name: str, *args: Any, scheduled_action_name: str, **kwargs: Any) -> Any:
    """One group's scheduled action takes the place of another group's of the same name."""
    action = original(self, name, *args, scheduled_action_name=scheduled_action_name, **kwargs)
    self.scheduled_actions[f"{name}/{scheduled_action_name}"] = self.scheduled_actions.pop(scheduled_action_name)
    return action


@fills(AutoScalingBackend, "delete_scheduled_action")
def _unschedule(original: Answer, self: Any, auto_scaling_group_name: str, scheduled_action_name: str) -> None:
    """As above."""
    original(self, auto_scaling_group_name, scheduled_action_name)  # an error where there is none
    del self.scheduled_actions[f"{auto_scaling_group_name}/{scheduled_action_name}"]


@fills(AutoScalingResponse, "complete_lifecycle_action")
@fills(AutoScalingResponse, "record_lifecycle_action_heartbeat")
def _lifecycle_action(_: Answer | None, self: Any) -> Any:
    """Not implemented. moto's machines go at once, so there is nothing to wait for."""
    return EmptyResult()


@fills(AutoScalingResponse, "_determine_resource")
def _resource(_: Answer | None, self: Any) -> str:
    """With permissions enforced, every Auto Scaling action is checked against ``*`` instead of the group's ARN."""
    name, instance = self._get_param("AutoScalingGroupName"), self._get_param("InstanceId")
    for group in self.autoscaling_backend.autoscaling_groups.values():
        if group.name == name or any(state.instance.id == instance for state in group.instance_states):
            return str(group.arn)
    return "*"


@fills(SNSResponse, "_determine_resource")
def _topic(_: Answer | None, self: Any) -> str:
    """As with Auto Scaling: ``*`` instead of the topic's ARN."""
    return str(self._get_param("TopicArn") or "*")


@fills(LogsResponse, "_determine_resource")
def _log_stream(_: Answer | None, self: Any) -> str:
    """As with Auto Scaling: ``*`` instead of the log group's or stream's ARN."""
    group, stream = self._get_param("logGroupName"), self._get_param("logStreamName")
    if not group:
        return "*"
    return f"arn:aws:logs:{self.region}:{self.current_account}:log-group:{group}:log-stream:{stream or ''}"


@fills(FakeBucket, "get_permission")
def _permission(original: Answer, self: Any, action: str, resource: str) -> Any:
    """Conditions in a bucket policy are ignored: "refuse what is not TLS" refuses all. Loopback is plain HTTP."""
    if not self.policy:
        return original(self, action, resource)
    policy, whole = json.loads(self.policy), self.policy
    statements = [s for s in policy["Statement"] if "aws:SecureTransport" not in json.dumps(s.get("Condition", {}))]
    if not statements:
        return PermissionResult.NEUTRAL
    self.policy = json.dumps({**policy, "Statement": statements}).encode()
    try:
        return original(self, action, resource)
    finally:
        self.policy = whole


@fills(S3Response, "_authenticate_and_authorize_s3_action")
def _authorize(original: Answer, self: Any, bucket_name: str | None = None, key_name: str | None = None) -> None:
    """Deleting several objects at once is checked against the bucket. Here one that may not be deleted keeps the others
    from it too, which AWS would delete."""
    keys = [key_name]
    if key_name is None and self.data.get("Action") == "DeleteObject" and self.is_delete_keys():
        keys = [element.text for element in ElementTree.fromstring(self.body).iter() if element.tag.endswith("Key")]
    for key in keys:
        original(self, bucket_name=bucket_name, key_name=key)


@fills(FakeKey, "__deepcopy__")
def _copied(_: Answer | None, self: Any, memo: object) -> Any:
    """Listing versions copies the bytes of all objects, for each object that Terraform deletes. Nobody reads them."""
    known = self.etag  # made from the bytes, where nobody has asked for it yet
    twin = object.__new__(type(self))
    # A copy that goes closes its bytes and its parts: not the original's.
    twin.__dict__.update(
        self.__dict__, _etag=known.strip('"'), _value_buffer=io.BytesIO(), multipart=None, disposed=True
    )
    return twin


@fills(S3Backend, "list_object_versions")
def _versions(original: Answer, self: Any, bucket_name: str, *args: Any, prefix: str = "", **kwargs: Any) -> Any:
    """Copies and sorts the versions of all keys, whatever the prefix. Terraform asks twice for each of its objects, so
    that the stack of many runs took minutes to destroy."""
    bucket = self.get_bucket(bucket_name)
    whole = bucket.keys
    bucket.keys = type(whole)()
    try:
        for key, versions in whole.lists():
            if key.startswith(prefix):
                bucket.keys.setlist(key, versions)
        return original(self, bucket_name, *args, prefix=prefix, **kwargs)
    finally:
        bucket.keys = whole


@fills(FakeDeleteMarker, "dispose")
def _dispose(_: Answer | None, self: Any, *args: Any, **kwargs: Any) -> None:
    """Deleting a delete marker fails with a server error, so that emptying a versioned bucket never ends."""


@fills(SimpleSystemManagerBackend, "get_parameter")
def _parameter(original: Answer, self: Any, name: str) -> Any:
    """The public parameters that name the Deep Learning and Ubuntu images are missing."""
    found = original(self, name)
    if found is not None or not name.startswith(IMAGE_PARAMETERS):
        return found
    images = ec2_backends[self.account_id][self.region_name].describe_images()
    image = next(image for image in images if "Deep Learning AMI Ubuntu" in str(image.name))
    parameter: Any = Parameter
    return parameter(
        account_id=self.account_id,
        name=name,
        value=image.id,
        parameter_type="String",
        description="",
        allowed_pattern=None,
        keyid=None,
        last_modified_date=datetime.now(timezone.utc),
        version=1,
        data_type="aws:ec2:image",
    )


@fills(VPCBackend, "create_default_vpc")
def _default_vpc(original: Answer, self: Any) -> Any:
    """The default VPC has no internet gateway, and its subnets no route out."""
    vpc = original(self)
    gateway = self.create_internet_gateway()
    self.attach_internet_gateway(gateway.id, vpc.id)
    (table,) = self.describe_route_tables(filters={"vpc-id": [vpc.id]})
    self.create_route(table.id, "0.0.0.0/0", gateway_id=gateway.id)
    return vpc


@fills(SpotInstances, "describe_spot_price_history")
def _spot_prices(_: Answer | None, self: Any) -> Any:
    """Everything costs 0.00001 dollars, since 2006, in every zone, whatever was asked for."""
    zone = self._get_param("AvailabilityZone")
    offers = self.ec2_backend.describe_spot_price_history(self._get_param("InstanceTypes", []), {})
    changed = datetime.now(timezone.utc) - timedelta(hours=3)
    history = [
        {
            "InstanceType": offer["InstanceType"],
            "ProductDescription": "Linux/UNIX",
            "SpotPrice": f"{price:.6f}",
            "AvailabilityZone": offer["Location"],
            "Timestamp": changed.strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        for offer in offers
        if zone in (None, offer["Location"]) and (price := spot_price(offer["InstanceType"], offer["Location"]))
    ]
    return ActionResult({"SpotPriceHistory": history})


@fills(IAMPolicyStatement, "_check_principal")
def _principal(original: Answer, self: Any, principal: Any) -> Any:
    """Assuming a role that trusts a service is a server error; the rehearsal assumes it in EC2's place."""
    trusted = self._statement.get("Principal")
    if isinstance(trusted, dict) and "Service" in trusted and "AWS" not in trusted:
        return True
    return original(self, principal)


@fills(IAMRequestBase, "check_signature")
def _signature(_: Answer, self: Any) -> None:
    """Some S3 signatures are recomputed wrongly. It is the permissions that are rehearsed, not the signatures."""


# Twice with each request moto lists its own folder on the disk, which takes it a millisecond.
_MODULES = frozenset(backends.list_of_moto_modules())
backends.list_of_moto_modules = lambda: _MODULES


#: Server errors in moto, by the target of AWS's JSON protocol.
_UNKNOWN_TO_MOTO: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "AWSPriceListService.GetProducts": get_products,
    "AWSFreeTierService.GetAccountPlanState": lambda _: {"accountPlanType": "PAID", "accountPlanStatus": "ACTIVE"},
}


class _Application:
    """moto as a WSGI application that answers one request at a time, and each just once."""

    def __init__(self) -> None:
        self._backend: Any = DomainDispatcherApplication(create_backend_app)
        # S3 checks If-Match and writes in one step, moto in two.
        self._one_at_a_time = threading.Lock()
        self._answered: dict[str, tuple[str, list[tuple[str, str]], bytes]] = {}

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        """On a busy machine a reply is lost now and then. The SDK repeats the request under the same id, and "add this
        role" would be answered with "there is one": a repetition gets the first answer. S3's writes are PUTs and left
        alone: what a repeated conditional write is answered is what the store has to live with."""
        answer = _UNKNOWN_TO_MOTO.get(environ.get("HTTP_X_AMZ_TARGET", ""))
        if answer is not None:
            asked = json.loads(environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0)))
            start_response("200 OK", [("Content-Type", "application/x-amz-json-1.1")])
            return [json.dumps(answer(asked)).encode()]
        invocation = environ.get("HTTP_AMZ_SDK_INVOCATION_ID") if environ["REQUEST_METHOD"] == "POST" else None
        with self._one_at_a_time:
            if invocation in self._answered:
                logging.getLogger(__name__).warning("repeated request: %s", environ.get("HTTP_AMZ_SDK_REQUEST"))
                status, headers, body = self._answered[invocation]
            else:
                reply: list[Any] = []
                iterable = self._backend(environ, lambda status, headers, error=None: reply.extend((status, headers)))
                body = b"".join(iterable)
                iterable.close()
                status, headers = reply
                if invocation is not None and status.startswith("2"):
                    self._answered[invocation] = (status, headers, body)
        start_response(status, headers)
        return [body]


def main() -> None:
    """Serve on a free loopback port, print its number, and end with the standard input: no parent, no server."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = make_server("127.0.0.1", 0, _Application(), threaded=True, request_handler=MotoRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_port, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
