"""Object stores: S3, Google Cloud Storage and Azure, by obstore. Where they are and who may read them is said by the
environment alone, by the variables that their own tools have; who is nobody there is anonymous.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.storage import ObjectStore

from unet_engine.paths import is_local
from unet_engine.redaction import hide
from unet_engine.storage.patience import STALLED, Broken, in_time, limit
from unet_engine.storage.remote import LONGEST_METADATA, is_metadata, spanned, too_long

SCHEMES = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "az": "az", "azure": "az", "abfs": "az", "abfss": "az"}
SLOWEST = 2**17
"""Bytes a second that an upload is waited for."""


@dataclass(frozen=True)
class Place:
    """What a URL names."""

    kind: str
    bucket: str
    path: str
    """Below the bucket, without slashes at its ends."""
    account: str | None = None
    """Of Azure."""


def place_of(url: str) -> Place | None:
    """What `url` names, where it is one of an object store and nothing else; None for any other."""
    scheme, mark, rest = url.partition("://")
    kind = SCHEMES.get(scheme.lower())
    if not mark or kind is None or "::" in url:
        return None
    rest = rest.partition("?")[0]
    bucket, _, path = rest.partition("/")
    account = None
    if kind == "az" and "@" in bucket:  # container@account.dfs.core.windows.net
        bucket, _, host = bucket.partition("@")
        account = host.partition(".")[0]
    elif "@" in bucket or not bucket:
        return None
    return Place(kind, bucket, re.sub("/+", "/", path).strip("/"), account)


def usable(url: str) -> bool:
    """Whether obstore opens `url` as the user has set it up: it is installed, and fsspec was given nothing for this
    kind of store that only its own file system understands."""
    place = place_of(url)
    return (
        place is not None
        and importlib.util.find_spec("obstore") is not None
        and "?" not in url
        and _from_fsspec(place.kind) is not None
    )


class Objects(ObjectStore):  # type: ignore[misc]
    """zarr's, but for answers that are too long, too short, or do not come."""

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        import obstore

        most = LONGEST_METADATA if is_metadata(key) and byte_range is None else None
        options: Any = _options(byte_range)
        if options == {"range": None}:
            return prototype.buffer.from_bytes(b"")
        try:
            answer = await in_time(obstore.get_async(self.store, key, options=options))
        except FileNotFoundError:
            return None
        except obstore.exceptions.NotSupportedError:
            if not isinstance(byte_range, SuffixByteRequest):
                raise
            lo, hi = spanned(byte_range, await self.getsize(key))  # Azure counts from the beginning alone
            return await self.get(key, prototype, RangeByteRequest(lo, hi))
        except obstore.exceptions.GenericError as error:
            if "status code: 416" in str(error) and byte_range is not None:
                return prototype.buffer.from_bytes(b"")
            raise
        lo, hi = answer.range
        if most is not None and hi - lo > most:
            raise too_long(key)
        if byte_range is not None and (lo, hi) != spanned(byte_range, answer.meta["size"]):
            raise Broken(f"other bytes came than were asked for, {lo:,} to {hi:,}")
        data = await _whole(answer, hi - lo)
        return prototype.buffer.from_bytes(data)

    async def get_partial_values(self, prototype: Any, key_ranges: Any) -> list[Any]:
        return [await self.get(key, prototype, span) for key, span in key_ranges]

    async def exists(self, key: str) -> bool:
        return bool(await in_time(super().exists(key)))

    async def getsize(self, key: str) -> int:
        return int(await in_time(super().getsize(key)))

    async def set(self, key: str, value: Any) -> None:
        await in_time(super().set(key, value), len(value) / SLOWEST)

    async def set_if_not_exists(self, key: str, value: Any) -> None:
        """Put there by one request that fails where anything is: of several that try, one succeeds."""
        import obstore

        try:
            await in_time(super().set_if_not_exists(key, value), len(value) / SLOWEST)
        except obstore.exceptions.NotSupportedError:  # a store without conditions
            if not await self.exists(key):
                await self.set(key, value)

    async def tagged(self, key: str) -> tuple[bytes, Mapping[str, Any]] | None:
        """What is at `key`, and what the store calls that by, for `replace`; None where nothing is."""
        import obstore

        try:
            answer = await in_time(obstore.get_async(self.store, key))
        except FileNotFoundError:
            return None
        lo, hi = answer.range
        return await _whole(answer, hi - lo), answer.meta

    async def replace(self, key: str, data: bytes, old: Mapping[str, Any]) -> None:
        """Put `data` in place of what the store calls `old`. Raises obstore's `PreconditionError` where something else
        is there by now, and `NotSupportedError` where the store has no such condition."""
        import obstore

        mode: Any = {name: old[name] for name in ("e_tag", "version") if old.get(name)}
        await in_time(obstore.put_async(self.store, key, data, mode=mode or "overwrite"), len(data) / SLOWEST)

    async def upload(self, key: str, path: Path) -> None:
        """Put a file there, in parts where it is long."""
        import obstore

        seconds = path.stat().st_size / SLOWEST
        await in_time(obstore.put_async(self.store, key, path, mode="overwrite"), seconds)

    async def copy(self, origin: str, key: str, size: int, *, overwrite: bool = True) -> None:
        """Have the store copy an object of `size` bytes. Raises what obstore does, `AlreadyExistsError` where something
        is there that is not to be replaced, and `NotSupportedError` where the store has no such condition."""
        import obstore

        await in_time(obstore.copy_async(self.store, origin, key, overwrite=overwrite), size / SLOWEST)

    async def delete(self, key: str) -> None:
        await in_time(super().delete(key))

    async def tag(self, key: str) -> dict[str, Any]:
        """What the store says of an object that is another where its content is."""
        import obstore

        return dict(await in_time(obstore.head_async(self.store, key)))


async def _whole(answer: Any, size: int) -> bytes:
    """The body, of `size` bytes. Raises `Broken` for any other length, and `TimeoutError` where nothing comes."""
    pieces, found = [], 0
    body: AsyncIterator[Any] = aiter(answer.stream(min_chunk_size=2**20))
    while True:
        try:
            piece = await in_time(anext(body))
        except StopAsyncIteration:
            break
        pieces.append(piece)
        found += len(piece)
        if found > size:
            break
    if found != size:
        raise Broken(f"the answer has {found:,} bytes in place of {size:,}")
    return b"".join(map(bytes, pieces))


def _options(byte_range: Any) -> dict[str, Any] | None:
    if isinstance(byte_range, RangeByteRequest):
        return {"range": (byte_range.start, byte_range.end) if byte_range.end > byte_range.start else None}
    if isinstance(byte_range, OffsetByteRequest):
        return {"range": {"offset": byte_range.offset}}
    if isinstance(byte_range, SuffixByteRequest):
        return {"range": {"suffix": byte_range.suffix} if byte_range.suffix else None}
    return None


# --- where they are, and who asks ---


def opened(url: str, retries: int = 0) -> Objects:
    """The store whose root is what `url` names, as the environment describes it now. retries: how often obstore itself
    asks again, where it does more than one request by itself."""
    place = place_of(url)
    if place is None:
        raise ValueError(f"{url} names no bucket")
    from obstore import store as kinds

    config, provider = _KINDS[place.kind](place, _from_fsspec(place.kind) or {})
    if place.kind == "s3" and not _first("AWS_COPY_IF_NOT_EXISTS"):
        config.setdefault("copy_if_not_exists", "multipart")  # the one way in which S3 copies on a condition
    hide(*(str(config.get(name) or "") for name in _SECRETS))
    server = str(config.get("endpoint") or config.get("base_url") or "")
    keywords: dict[str, Any] = {
        "prefix": place.path or None,
        "config": config,
        # what is asked for again, and how often, is decided in `patience`, for every store alike
        "retry_config": {"max_retries": retries, "retry_timeout": timedelta(seconds=max(1, 20 * retries))},
        # in the clear where the user names a server so, and nowhere else
        "client_options": {
            "allow_http": server.startswith("http://") or _true("AWS_ALLOW_HTTP"),
            "timeout": "1h",
            "connect_timeout": "15s",
        },
    }
    if place.kind == "s3":
        return Objects(kinds.S3Store(place.bucket, credential_provider=provider, **keywords))
    return Objects((kinds.GCSStore if place.kind == "gs" else kinds.AzureStore)(place.bucket, **keywords))


_SECRETS = ("secret_access_key", "session_token", "account_key", "sas_key", "client_secret")
_FSSPEC = {
    "s3": {
        "endpoint_url": "endpoint", "key": "access_key_id", "secret": "secret_access_key", "token": "session_token",
        "anon": "skip_signature",
    },
    "gs": {"endpoint_url": "base_url"},
    "az": {
        "account_name": "account_name", "account_key": "account_key", "sas_token": "sas_key", "tenant_id": "tenant_id",
        "client_id": "client_id", "client_secret": "client_secret", "anon": "skip_signature",
    },
}  # fmt: skip
"""What settings of fsspec's file systems are called by obstore."""


def _from_fsspec(kind: str) -> dict[str, Any] | None:
    """What fsspec was configured with for this kind of store (``FSSPEC_S3_KEY`` and the like), as obstore names it;
    None where there is anything that it has no name for."""
    if not any(name.startswith("FSSPEC_") for name in os.environ) and importlib.util.find_spec("fsspec") is None:
        return {}
    try:
        from fsspec.config import conf  # type: ignore[import-untyped]
    except ImportError:
        return {}
    found: dict[str, Any] = {}
    for scheme, known in SCHEMES.items():
        for name, value in conf.get(scheme, {}).items() if known == kind else ():
            if name == "client_kwargs" and isinstance(value, Mapping) and set(value) <= {"endpoint_url", "region_name"}:
                found.update({{"endpoint_url": "endpoint", "region_name": "region"}[k]: v for k, v in value.items()})
            elif name in _FSSPEC[kind]:
                found[_FSSPEC[kind][name]] = value
            else:
                return None
    return found


def _true(name: str) -> bool:
    return os.environ.get(name, "").strip().lower() in ("1", "true", "yes")


def _first(*names: str) -> str | None:
    """The first of these variables that says anything."""
    return next((text for name in names if (text := os.environ.get(name, "").strip())), None)


# S3


def _s3(place: Place, given: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """Settings and, where it is not obstore itself, who has the credentials."""
    config = dict(given)
    endpoint = config.get("endpoint") or _first("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
    if endpoint:
        config["endpoint"] = endpoint
    provider = None
    if not config.get("skip_signature") and not config.get("access_key_id") and not _speaks_for_itself():
        provider, region = _profile()
        if provider is None:
            config["skip_signature"] = True
        elif region:
            config.setdefault("region", region)
    if config.get("region") is None and not _first("AWS_REGION", "AWS_DEFAULT_REGION"):
        config["region"] = "us-east-1" if endpoint else _region(place.bucket)
    return config, provider


def _speaks_for_itself() -> bool:
    """Whether the environment has credentials that obstore finds alone."""
    roles = ("AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
             "AWS_CONTAINER_CREDENTIALS_FULL_URI")  # fmt: skip
    keys = _first("AWS_ACCESS_KEY_ID") and _first("AWS_SECRET_ACCESS_KEY")
    return bool(keys or _first(*roles)) or _true("AWS_SKIP_SIGNATURE")


def _profile() -> tuple[Any, str | None]:
    """Who has the credentials of the user's profile, or of the machine's role, by botocore; None where there are none,
    and the region that goes with them."""
    try:
        import botocore.session  # type: ignore[import-untyped]
    except ImportError:
        return None, None
    session = botocore.session.Session()
    session.set_config_variable("metadata_service_timeout", 1)
    found = session.get_credentials()
    if found is None:
        return None, None

    def credentials() -> dict[str, Any]:
        now = found.get_frozen_credentials()  # which renews them where they end soon
        hide(now.secret_key, now.token)
        return {
            "access_key_id": now.access_key,
            "secret_access_key": now.secret_key,
            "token": now.token,
            "expires_at": getattr(found, "_expiry_time", None),
        }

    return credentials, session.get_config_variable("region")


S3 = "https://s3.amazonaws.com"


def _region(bucket: str) -> str:
    """Where a bucket lies, which S3 tells everybody."""
    try:
        answer: Any = urlopen(Request(f"{S3}/{bucket}", method="HEAD"), timeout=limit(STALLED))
        headers = answer.headers
    except HTTPError as error:
        headers = error.headers
    except OSError:
        return "us-east-1"
    return headers.get("x-amz-bucket-region") or "us-east-1"


# Google


def _gs(place: Place, given: dict[str, Any]) -> tuple[dict[str, Any], None]:
    config = dict(given)
    emulator = _first("STORAGE_EMULATOR_HOST")  # as Google's own libraries have it
    if emulator and not config.get("base_url"):
        config["base_url"] = emulator if not is_local(emulator) else f"http://{emulator}"
    if emulator:
        config.setdefault("bearer_token", "none")  # it asks nobody who he is, and obstore signs what it writes
    elif not _google_knows_us():
        config["skip_signature"] = True
    return config, None


def _google_knows_us() -> bool:
    names = ("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_SERVICE_ACCOUNT", "GOOGLE_SERVICE_ACCOUNT_PATH",
             "GOOGLE_SERVICE_ACCOUNT_KEY", "GOOGLE_BEARER_TOKEN", "GCE_METADATA_HOST")  # fmt: skip
    if _first(*names) or (Path.home() / ".config/gcloud/application_default_credentials.json").exists():
        return True
    try:
        return "Google" in Path("/sys/class/dmi/id/product_name").read_text()
    except OSError:
        return False


# Azure


_AZURE_SECRETS = (
    "AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_ACCESS_KEY", "AZURE_STORAGE_MASTER_KEY", "AZURE_STORAGE_SAS_KEY",
    "AZURE_STORAGE_TOKEN", "AZURE_CLIENT_SECRET", "AZURE_STORAGE_CLIENT_SECRET", "AZURE_FEDERATED_TOKEN_FILE",
    "AZURE_USE_AZURE_CLI", "AZURE_MSI_ENDPOINT", "IDENTITY_ENDPOINT", "AZURE_STORAGE_USE_EMULATOR",
    "AZURE_SKIP_SIGNATURE",
)  # fmt: skip


def _az(place: Place, given: dict[str, Any]) -> tuple[dict[str, Any], None]:
    config = {**_connection(_first("AZURE_STORAGE_CONNECTION_STRING") or ""), **given}
    said = {
        "account_name": place.account or _first("AZURE_STORAGE_ACCOUNT"),
        "account_key": _first("AZURE_STORAGE_KEY"),
        "sas_key": _first("AZURE_STORAGE_SAS_TOKEN"),
        "endpoint": _first("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
    }
    config.update({name: text for name, text in said.items() if text and (name not in config or place.account)})
    known = any(map(config.get, ("account_key", "sas_key", "client_secret"))) or _first(*_AZURE_SECRETS)
    if not known:
        config["skip_signature"] = True
    if _true("AZURE_STORAGE_USE_EMULATOR"):
        config.setdefault("endpoint", "http://127.0.0.1:10000")
    return config, None


def _connection(text: str) -> dict[str, str]:
    """What a connection string says, as Azure's own tools take it."""
    said = dict(part.split("=", 1) for part in text.split(";") if "=" in part)
    names = {"AccountName": "account_name", "AccountKey": "account_key", "SharedAccessSignature": "sas_key"}
    names["BlobEndpoint"] = "endpoint"
    return {ours: said[theirs] for theirs, ours in names.items() if said.get(theirs)}


_KINDS = {"s3": _s3, "gs": _gs, "az": _az}
