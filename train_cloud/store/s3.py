"""An S3 bucket as an object store: bytes move with obstore, credentials come from boto3.

What S3 promises is in the Amazon S3 User Guide, "How to prevent object overwrites with conditional requests" and "Add
preconditions to S3 operations with conditional requests": ``If-None-Match: *`` creates once, ``If-Match`` swaps; 412 is
lost, 409 is a race whose outcome a re-read tells. Conditions are sent on single PUTs only, never on a multipart upload.
"""

from __future__ import annotations

import builtins
import contextlib
import ipaddress
import logging
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from itertools import chain
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar
from urllib.parse import urlsplit

import boto3
import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from obstore.auth.boto3 import Boto3CredentialProvider
from obstore.exceptions import BaseError
from obstore.store import S3Store

from train_cloud.retry import Retry

from ..errors import (
    BucketMissing,
    ConditionFailed,
    CredentialsExpired,
    InputError,
    ObjectMissing,
    StoreError,
    StoreForbidden,
    StoreUnavailable,
)
from ..generators import leave_to_training
from .foreign import ignore
from .protocol import Body, ObjectInfo, StoredObject, check_key, check_prefix, is_key

if TYPE_CHECKING:
    from obstore import GetOptions
    from obstore.store import S3Config

T = TypeVar("T")
log = logging.getLogger(__name__)

leave_to_training()
_PART = 16 << 20
"""Bytes. Larger objects travel in parts of this size, several at once."""
_LEAST_COPIED, _MOST_COPIED = 5 << 20, 4 << 30
"""Bytes of a part that is copied; S3 allows 5 MiB to 5 GiB ("Amazon S3 multipart upload limits")."""
_CHECKSUM = "CRC64NVME"
"""Of all that is written. S3 refuses a part whose checksum is of another algorithm than its upload was begun with
(Amazon S3 API Reference, "UploadPart"), and boto3 would choose CRC32 for the one and nothing for the other."""
_PARALLEL = 4
"""With ``_PART``, what a line must move within half the retry timeout: 18 Mbit/s by default. Each connection on EC2 has
more than ten times that."""
_KEYS_LIVE = timedelta(minutes=10)
"""obstore keeps credentials until 5 minutes before this has passed (its ``TokenCache``); boto3 renews an instance's at
the latest 10 minutes before they expire. So none has expired when it signs, as it may with obstore's 30 minutes."""

_EXPIRED = ("ExpiredToken", "TokenRefreshRequired", "InvalidToken", "InvalidAccessKeyId", "SignatureDoesNotMatch")
_ELSEWHERE = ("AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "PermanentRedirect")
_NO_PATH = "contained empty path segment"
"""obstore, of a key with ``//``."""
_DELETED_AT_ONCE = 1000
"""Amazon S3 API Reference, "DeleteObjects"."""
_SAY_AFTER = 3.0
"""Seconds of waiting for a first answer, after which it is said."""
_TRY_AGAIN = (408, 409, 412, 429)
_DAMAGED = ("BadDigest", "IncompleteBody", "RequestTimeout")
"""With status 400: what arrived is not what was sent (Amazon S3 API Reference, "Error responses")."""
_UNREACHABLE = re.compile(r"Connect|Timeout|Metadata|iam-role|container-role", re.IGNORECASE)
"""In botocore's text: the credentials could not be fetched, which is not the same as being refused."""

# obstore raises FileNotFoundError for every 404, a missing bucket's too.
_ERRORS = (BaseError, FileNotFoundError)


_PAUSES = {"first_s": 0.1, "longest_s": 5.0}


class BucketStore:
    """Objects under ``prefix`` in ``bucket``. Needs ListBucket, GetObject, PutObject and DeleteObject there."""

    def __init__(self, bucket: str, prefix: str, *, retry_timeout: float) -> None:
        self.bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._retry_timeout = retry_timeout
        self._endpoint = _endpoint()
        self._opening = threading.Lock()
        self._opened: S3Store | None = None
        self._client_for_parts: Any = None
        self._answered = self._said_waiting = False

    @property
    def url(self) -> str:
        return f"s3://{self.bucket}/{self._prefix}".rstrip("/")

    def get(self, key: str) -> StoredObject:
        path = self._path(key)
        for _ in range(2):
            try:
                return self._retried(lambda: self._read(path))
            except _ERRORS as error:
                if _status(error) not in (403, 404) or _code(error) == "NoSuchBucket":
                    self._raise(key, error)
                # AWS answers 403 for a missing key in some policies, and a 404 may be older than a write.
                if not self._exists(key, empty=_status(error) == 403):
                    raise ObjectMissing(f"{self.url}/{key} does not exist") from error
                if _status(error) == 403:
                    self._raise(key, error)
        raise StoreUnavailable(f"{self.url}/{key}: listed, but not found")

    def put(self, key: str, body: Body) -> str:
        path = self._path(key)
        view = memoryview(body).cast("B")
        try:
            reply = self._retried(
                lambda: self._client.put(
                    path, view, use_multipart=len(view) > _PART, chunk_size=_PART, max_concurrency=_PARALLEL
                )
            )
        except _ERRORS as error:
            self._raise(key, error)
        return _etag(reply)

    def create(self, key: str, body: Body) -> str:
        path, view = self._path(key), memoryview(body).cast("B")
        retry = Retry(self._retry_timeout, **_PAUSES)
        while True:
            try:
                return _etag(self._retried(lambda: self._client.put(path, view, mode="create")))
            except _ERRORS as error:
                if _status(error) not in (409, 412):
                    self._raise(key, error)
                if _status(error) == 412 or self._exists(key):
                    raise ConditionFailed(f"{self.url}/{key} exists already") from error
                if not retry.has_time():
                    raise StoreUnavailable(f"{self.url}/{key}: conflicting writes, and none comes through") from error
            retry.pause()

    def swap(self, key: str, body: Body, etag: str) -> str:
        path, view = self._path(key), memoryview(body).cast("B")
        try:
            return _etag(self._retried(lambda: self._client.put(path, view, mode={"e_tag": etag})))
        except _ERRORS as error:
            status = _status(error)
            changed = (
                status == 412
                or (status == 404 and _code(error) != "NoSuchBucket")
                or (status == 403 and not self._exists(key))
                or (status == 409 and self._changed(key, etag))  # obstore sent it again until its time was over
            )
            if changed:
                raise ConditionFailed(f"{self.url}/{key} has changed since it was read, or is gone") from error
            self._raise(key, error)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        foreign: builtins.list[str] = []
        held: ObjectInfo | None = None
        for info in self._listed(prefix):
            # obstore leaves the slash out at the end of the empty object by which S3's console shows a folder, and
            # which comes right before what lies in it.
            if held is not None and info.key.startswith(f"{held.key}/"):
                foreign.append(f"{held.key}/")
            elif held is not None:
                yield held
            held = info if is_key(info.key) else None
            if held is None:
                foreign.append(info.key)
            elif info.size:
                yield info
                held = None
        if held is not None:
            yield held
        ignore(self.url, foreign)

    def _listed(self, prefix: str) -> Iterator[ObjectInfo]:
        # obstore lists whole folders only. Keys come in order, so that the wanted ones are asked for and left by name.
        folder, slash, start = (self._prefix + check_prefix(prefix)).rpartition("/")
        offset = folder + slash + start[:-1] if start[:-1] not in ("", ".", "..") else None
        retry = Retry(self._retry_timeout, **_PAUSES)
        while True:
            try:
                pages = self._client.list(folder or None, offset=offset)
                while page := self._answer(lambda pages=pages: next(pages, None)):  # type: ignore[misc]
                    for found in page:
                        offset = found["path"]
                        if not offset.startswith(self._prefix):
                            continue  # a marker of the store's own folder
                        key = offset.removeprefix(self._prefix)
                        if key.startswith(prefix):
                            yield ObjectInfo(key, found["size"], found["last_modified"], found["e_tag"] or "")
                        elif key > prefix:
                            return
                return
            except _ERRORS as error:
                if _NO_PATH in str(error):
                    break
                if not _again(error, retry):
                    self._raise(prefix, error)
        # obstore ends at a key that it has no form for: boto3 shows what comes after the last one that it had.
        for found in self._raw(self._prefix + prefix, after=offset):
            key, etag = found["Key"].removeprefix(self._prefix), str(found.get("ETag", ""))
            yield ObjectInfo(key, found["Size"], found["LastModified"], etag)

    def _raw(self, prefix: str, *, after: str | None = None) -> Iterator[dict[str, Any]]:
        """What boto3 lists below ``prefix``, with keys as they are."""
        try:
            asked = {"Bucket": self.bucket, "Prefix": prefix, **({"StartAfter": after} if after else {})}
            for page in self._boto().get_paginator("list_objects_v2").paginate(**asked):
                yield from page.get("Contents", ())
        except BotoCoreError as error:
            raise StoreUnavailable(f"{self.url}: {error}") from error
        except ClientError as error:
            self._raise_boto(prefix.removeprefix(self._prefix), error)

    def within(self, folder: str) -> BucketStore:
        there = BucketStore(self.bucket, self._prefix + check_key(folder), retry_timeout=self._retry_timeout)
        there._opened, there._answered = self._client, self._answered
        return there

    def folders(self, prefix: str = "") -> builtins.list[str]:
        folder = (self._prefix + check_prefix(prefix)).rstrip("/")
        try:
            found = self._retried(lambda: self._client.list_with_delimiter(folder or None)["common_prefixes"])
            names = [name.rstrip("/").rsplit("/", 1)[-1] for name in found]
        except _ERRORS as error:
            if _NO_PATH not in str(error):
                self._raise(prefix, error)
            names = self._raw_folders(f"{folder}/" if folder else "")
        ignore(self.url, (f"{prefix}{name}" for name in names if not is_key(name)))
        return sorted(name for name in names if is_key(name))

    def _raw_folders(self, prefix: str) -> builtins.list[str]:
        try:
            pages = (
                self._boto().get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix, Delimiter="/")
            )
            found = [each["Prefix"] for page in pages for each in page.get("CommonPrefixes", ())]
        except BotoCoreError as error:
            raise StoreUnavailable(f"{self.url}: {error}") from error
        except ClientError as error:
            self._raise_boto(prefix.removeprefix(self._prefix), error)
        return [name.removeprefix(prefix).removesuffix("/") for name in found]

    def clear(self) -> tuple[int, builtins.list[str]]:
        left: builtins.list[str] = []
        keys = [found["Key"] for found in self._raw(self._prefix)]
        for start in range(0, len(keys), _DELETED_AT_ONCE):
            batch = [{"Key": key} for key in keys[start : start + _DELETED_AT_ONCE]]
            try:
                reply = self._boto().delete_objects(Bucket=self.bucket, Delete={"Objects": batch, "Quiet": True})
            except BotoCoreError as error:
                raise StoreUnavailable(f"{self.url}: {error}") from error
            except ClientError as error:
                self._raise_boto("", error)
            left += [f"{ascii(each['Key'])[1:-1]} ({each.get('Code', 'refused')})" for each in reply.get("Errors", ())]
        return len(keys) - len(left), left

    def delete(self, keys: Iterable[str]) -> None:
        paths = [self._path(key) for key in keys]
        if not paths:
            return
        try:
            self._retried(lambda: self._client.delete(paths))
        except _ERRORS as error:
            self._raise(paths[0].removeprefix(self._prefix), error)

    def stream(self, key: str, chunks: Iterator[bytes]) -> str:
        path = self._path(key)
        raised: list[BaseException] = []

        def watched() -> Iterator[bytes]:
            try:
                yield from chunks
            except BaseException as error:  # obstore would make an error of S3's of it
                raised.append(error)
                raise

        try:
            reply = self._client.put(path, watched(), use_multipart=True, chunk_size=_PART, max_concurrency=_PARALLEL)
        except Exception as error:
            if raised:
                raise raised[0] from None
            if not isinstance(error, _ERRORS):
                raise
            self._raise(key, error)
        return _etag(reply)

    def extend(self, key: str, tail: Iterator[bytes], etag: str) -> str:
        """A multipart upload whose first parts S3 copies from the object itself ("Copying an object using multipart
        upload", Amazon S3 User Guide), so that only the tail travels. What is too small to be a part is sent again.
        """
        path = self._path(key)
        where = {"Bucket": self.bucket, "Key": path}
        size = self._size(path, etag, key)
        if size < _LEAST_COPIED:
            before = self.get(key)
            if before.etag != etag:
                raise ConditionFailed(f"{self.url}/{key} has changed since it was written")
            return self.stream(key, chain([bytes(before.body)], tail))
        client = self._boto()
        upload = ""
        try:
            upload = client.create_multipart_upload(**where, ChecksumAlgorithm=_CHECKSUM)["UploadId"]
            own = {**where, "UploadId": upload}
            parts: list[dict[str, Any]] = []
            for start in range(0, size, _MOST_COPIED):
                end = min(start + _MOST_COPIED, size)
                if size - end < _LEAST_COPIED:
                    end = size  # 5 GiB are allowed, so that no little piece is left over
                copied = client.upload_part_copy(
                    **own,
                    PartNumber=len(parts) + 1,
                    CopySource=where,
                    CopySourceIfMatch=etag,
                    CopySourceRange=f"bytes={start}-{end - 1}",
                )
                parts.append({"PartNumber": len(parts) + 1, "ETag": copied["CopyPartResult"]["ETag"]})
                if end == size:
                    break
            for body in _joined(tail, _PART):
                sent = client.upload_part(**own, PartNumber=len(parts) + 1, Body=body, ChecksumAlgorithm=_CHECKSUM)
                parts.append({"PartNumber": len(parts) + 1, "ETag": sent["ETag"]})
            done = client.complete_multipart_upload(**own, MultipartUpload={"Parts": parts})
        except BaseException as error:
            if upload:
                with contextlib.suppress(BotoCoreError, ClientError):  # S3's lifecycle rule does it after a day
                    client.abort_multipart_upload(**where, UploadId=upload)
            if isinstance(error, BotoCoreError):
                raise StoreUnavailable(f"{self.url}/{key}: {error}") from error
            if isinstance(error, ClientError):
                self._raise_boto(key, error)
            raise
        return str(done["ETag"])

    def version(self, key: str, etag: str) -> Body:
        path = self._path(key)
        options: GetOptions = {"if_match": etag}
        try:
            return self._retried(lambda: memoryview(self._client.get(path, options=options).bytes()))
        except _ERRORS as error:
            status = _status(error)
            gone = status == 404 and _code(error) != "NoSuchBucket"
            if status == 412 or ((gone or status == 403) and not self._exists(key)):
                raise ConditionFailed(f"{self.url}/{key} has changed since it was listed, or is gone") from error
            self._raise(key, error)

    def beginning(self, key: str, size: int) -> Body:
        """The first ``size`` bytes of an object, whichever version it is, as cheaply as they can be had.

        :raises ConditionFailed: it has not as many, or does not exist
        """
        path = self._path(key)
        try:
            return memoryview(self._retried(lambda: self._client.get_range(path, start=0, length=size)))
        except _ERRORS as error:
            if _status(error) in (404, 416) and _code(error) != "NoSuchBucket":
                raise ConditionFailed(f"{self.url}/{key} is smaller, or gone") from error
            self._raise(key, error)

    def encryption(self, key: str) -> str:
        """How S3 encrypts the object: ``AES256``, ``aws:kms``, … or empty. Only with the first and the last is an e-tag
        the MD5 of what was sent in one piece (Amazon S3 API Reference, "Object").
        """
        try:
            head = self._boto().head_object(Bucket=self.bucket, Key=self._path(key))
        except BotoCoreError as error:
            raise StoreUnavailable(f"{self.url}/{key}: {error}") from error
        except ClientError as error:
            self._raise_boto(key, error)
        return str(head.get("ServerSideEncryption") or (head.get("SSECustomerAlgorithm", "") and "customer"))

    def tail(self, key: str, start: int) -> Body:
        path = self._path(key)
        try:
            return memoryview(self._client.get(path, options={"range": {"offset": start}}).bytes())
        except _ERRORS as error:
            if _status(error) == 416:  # "InvalidRange": it ends there or before
                return b""
            missing = _status(error) in (403, 404) and _code(error) != "NoSuchBucket"
            if missing and not self._exists(key, empty=_status(error) == 403):
                raise ObjectMissing(f"{self.url}/{key} does not exist") from error
            self._raise(key, error)

    def _size(self, path: str, etag: str, key: str) -> int:
        try:
            meta = self._client.head(path)
        except _ERRORS as error:
            if _status(error) == 404 or (_status(error) == 403 and not self._exists(key)):
                raise ConditionFailed(f"{self.url}/{key} is gone") from error
            self._raise(key, error)
        if meta["e_tag"] != etag:
            raise ConditionFailed(f"{self.url}/{key} has changed since it was written")
        return meta["size"]

    def _boto(self) -> Any:
        with self._opening:
            if self._client_for_parts is None:
                session = boto3.Session(region_name=self._region())
                config = Config(
                    connect_timeout=5,
                    read_timeout=self._retry_timeout / 2,
                    retries={"total_max_attempts": 1},  # who calls has tries of its own
                    s3={"addressing_style": "path"} if self._endpoint is not None or "." in self.bucket else {},
                )
                self._client_for_parts = session.client("s3", endpoint_url=self._endpoint, config=config)
            return self._client_for_parts

    def _raise_boto(self, key: str, error: ClientError) -> NoReturn:
        code = str(error.response.get("Error", {}).get("Code", ""))
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        where = f"{self.url}/{key}"
        if code in ("PreconditionFailed", "NoSuchKey") or status == 412:
            raise ConditionFailed(f"{where} has changed since it was written, or is gone") from error
        if code == "NoSuchBucket":
            raise BucketMissing(f"s3://{self.bucket} does not exist: create it, or correct its name") from error
        if status in (401, 403):
            raise StoreForbidden(f"{where}: {code}: {error}") from error
        if status >= 500 or status in _TRY_AGAIN or code in _DAMAGED or code == "NoSuchUpload":
            raise StoreUnavailable(f"{where}: {error}") from error
        raise StoreError(f"{where}: S3 refuses the request: {error}") from error

    def _read(self, path: str) -> StoredObject:
        reply = self._client.get(path)
        size, etag = reply.meta["size"], _etag(reply.meta)
        if size <= _PART:
            return StoredObject(memoryview(reply.bytes()), etag)  # no copy: it would hold the interpreter lock
        body = bytearray(size)
        view = memoryview(body)

        def fetch(start: int) -> None:
            end = min(start + _PART, size)
            options: GetOptions = {"range": (start, end), "if_match": etag}
            view[start:end] = self._retried(lambda: self._client.get(path, options=options).bytes())

        with ThreadPoolExecutor(_PARALLEL) as threads:
            for _ in threads.map(fetch, range(0, size, _PART)):
                pass
        return StoredObject(body, etag)

    def _retried(self, act: Callable[[], T]) -> T:
        """``act``, again where its connection broke."""
        retry = Retry(self._retry_timeout, **_PAUSES)
        while True:
            try:
                return self._answer(act)
            except _ERRORS as error:
                if not _again(error, retry):
                    raise

    def _answer(self, act: Callable[[], T]) -> T:
        """``act``; until anything has been answered, it is said who is waited for."""
        if self._answered or self._retry_timeout <= _SAY_AFTER:
            return act()
        timer = threading.Timer(_SAY_AFTER, self._say_waiting)
        timer.daemon = True
        timer.start()
        try:
            found = act()
        except _ERRORS as error:
            self._answered = _status(error) is not None
            raise
        finally:
            timer.cancel()
        self._answered = True
        return found

    def _say_waiting(self) -> None:
        with self._opening:
            said, self._said_waiting = self._said_waiting, True
        if not said:
            endpoint = self._endpoint or f"S3 in {self._region()}"
            log.warning("waiting for an answer of %s (%s), for %.0f s in all", endpoint, self.url, self._retry_timeout)

    def _exists(self, key: str, *, empty: bool = True) -> bool:
        """:param empty: whether an object without a byte counts, which may be the marker of a folder of that name"""
        return any(info.key == key and (info.size or empty) for info in self.list(key))

    def _changed(self, key: str, etag: str) -> bool:
        try:
            return self.get(key).etag != etag
        except ObjectMissing:
            return True

    def _path(self, key: str) -> str:
        return self._prefix + check_key(key)

    @property
    def _client(self) -> S3Store:
        with self._opening:
            if self._opened is None:
                self._opened = self._open()
            return self._opened

    def _open(self) -> S3Store:
        session = botocore.session.Session()
        if "AWS_METADATA_SERVICE_NUM_ATTEMPTS" not in os.environ:
            # The default is one, of a second: too little for a machine that is busy booting.
            session.set_config_variable("metadata_service_num_attempts", 3)
        try:
            region = self._region(session)
            boto = boto3.Session(botocore_session=session, region_name=region)
            found = boto.get_credentials() is not None
            credentials = Boto3CredentialProvider(boto, ttl=_KEYS_LIVE) if found else None
        except BotoCoreError as error:
            raise StoreForbidden(f"{self.url}: the AWS credentials cannot be read: {error}") from error
        if credentials is None and "TRAIN_CLOUD_AUTOSCALING_GROUP" in os.environ:
            raise StoreUnavailable(f"{self.url}: the instance role's credentials are not there yet")
        if credentials is None:
            raise StoreForbidden(
                f"{self.url}: there are no AWS credentials: run `aws configure`, set AWS_PROFILE, or set "
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; on a machine of AWS, give it an instance role"
            )
        config: S3Config = {
            "region": region,
            # Certificates of virtual-hosted addresses cover one label: a bucket name with a dot needs the path style.
            "virtual_hosted_style_request": self._endpoint is None and "." not in self.bucket,
            "checksum_algorithm": _CHECKSUM,
            "unsigned_payload": True,
        }
        if self._endpoint is not None:
            config["aws_endpoint_url_s3"] = self._endpoint
        return S3Store(
            self.bucket,
            config=config,
            client_options={
                "allow_http": self._endpoint is not None and self._endpoint.startswith("http:"),
                "connect_timeout": timedelta(seconds=min(5.0, self._retry_timeout)),
                # For each attempt, so that a connection that hangs gets a second one.
                "timeout": timedelta(seconds=self._retry_timeout / 2),
            },
            retry_config={
                "max_retries": 1000,  # time ends them
                "retry_timeout": timedelta(seconds=self._retry_timeout),
                "backoff": {
                    # Below the longest: object_store panics where the two are equal.
                    "init_backoff": timedelta(seconds=min(0.1, self._retry_timeout / 16)),
                    "max_backoff": timedelta(seconds=min(5.0, self._retry_timeout / 8)),
                    "base": 2,
                },
            },
            credential_provider=credentials,
        )

    def _region(self, session: botocore.session.Session | None = None) -> str:
        session = session or botocore.session.Session()
        region = str(os.environ.get("AWS_REGION") or session.get_config_variable("region") or "us-east-1")
        if self._endpoint is None and _OTHER_PARTITION.match(region):
            raise InputError("AWS_REGION", region, "S3 has another address there: name it in AWS_ENDPOINT_URL_S3")
        return region

    def _raise(self, key: str, error: Exception) -> NoReturn:
        """One of our errors for one of obstore's, which differ by little more than their text."""
        status, code = _status(error), _code(error)
        where = f"{self.url}/{key}"
        text = str(error).partition("\n\nDebug source")[0]
        if code == "NoSuchBucket":
            raise BucketMissing(f"s3://{self.bucket} does not exist: create it, or correct its name") from error
        if code in _ELSEWHERE or "incorrectly configured region" in text:
            raise BucketMissing(
                f"s3://{self.bucket} is in another region: set AWS_REGION to the bucket's region"
            ) from error
        if "External AWS credential provider" in text:
            why = f"{self.url}: the AWS credentials cannot be had: {text.partition('credential provider: ')[2]}"
            if _UNREACHABLE.search(why):
                raise StoreUnavailable(why) from error
            raise StoreForbidden(why) from error
        if code == "RequestTimeTooSkewed":
            raise StoreForbidden(f"{where}: this machine's clock is wrong: set it, then try again") from error
        if code in _EXPIRED:
            raise CredentialsExpired(
                f"{where}: {code}: renew the AWS credentials: `aws sso login`, or new keys"
            ) from error
        if status in (401, 403) or code == "AccessDenied":
            raise StoreForbidden(
                f"{where}: {code or status}: these AWS credentials need s3:ListBucket on the bucket, and s3:GetObject, "
                "s3:PutObject and s3:DeleteObject below this prefix"
            ) from error
        temporary = status is None or not 400 <= status < 500 or status in _TRY_AGAIN or code in _DAMAGED
        if not temporary:
            raise StoreError(f"{where}: S3 refuses the request: {status} {code}: {text}") from error
        cause = re.search(r'(?:message|error): "([^"]+)"|TimedOut', str(error)) if status is None else None
        why = (cause[1] or "time-out") if cause else f"{status} {code}" if status else text
        at = f" at {self._endpoint}" if self._endpoint else ""
        raise StoreUnavailable(f"{where}: S3{at} does not answer: {why}") from error


def _again(error: Exception, retry: Retry) -> bool:
    """Whether the connection broke and there is time for another try, before which it has paused then.

    These are tries beyond obstore's own, which sends nothing again that has a condition or that it has begun to read. A
    condition that our first request has met already shows as one that is not met: see ``ObjectStore.create``.
    """
    broken = _status(error) is None and "HTTP error: " in str(error)
    if not broken or not retry.has_time():
        return False
    retry.pause()
    return True


def _joined(chunks: Iterator[bytes], size: int) -> Iterator[bytes]:
    """The same bytes in pieces of ``size``, the last one shorter: parts but the last have a least size."""
    gathered = bytearray()
    for chunk in chunks:
        gathered += chunk
        while len(gathered) >= size:
            yield bytes(gathered[:size])
            del gathered[:size]
    if gathered:
        yield bytes(gathered)


def _status(error: Exception) -> int | None:
    found = re.search(r"status code: (\d{3})", str(error))
    return int(found[1]) if found else None


def _code(error: Exception) -> str:
    found = re.search(r"<Code>(\w+)</Code>|\(code: (\w+)\)", str(error))
    return (found[1] or found[2]) if found else ""


def _etag(reply: object) -> str:
    etag = reply["e_tag"] if isinstance(reply, dict) else None
    if not isinstance(etag, str):
        raise StoreError("the S3 server sends no e-tags: it cannot hold a run")
    return etag


_OTHER_PARTITION = re.compile(r"(cn|eusc)-|[a-z]+-iso[a-z]*-")
"""Regions whose addresses do not end in amazonaws.com: China, the European Sovereign Cloud, the isolated ones ("AWS
service endpoints", AWS General Reference). obstore makes addresses for the others only. ``terraform/variables.tf``
refuses the same ones."""


def _endpoint() -> str | None:
    """From the variables that all AWS SDKs read ("AWS SDKs and Tools Reference Guide: Service-specific endpoints").

    :raises InputError: plain http to another machine
    """
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        url = os.environ.get(name, "")
        if url and os.environ.get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "").lower() != "true":
            parts = urlsplit(url)
            if parts.hostname and (parts.scheme == "https" or (parts.scheme == "http" and _loopback(parts.hostname))):
                return url.rstrip("/")
            raise InputError(name, url, "give an https address, or an http one on loopback")
    return None


def _loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
