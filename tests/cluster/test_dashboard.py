"""The pages of Dask: no token, no answer, on no route."""

import asyncio
import os
import re
import sys
import urllib.error
import urllib.parse
import urllib.request

import pytest

from support.dask_processes import dask, get, listening, said, settings
from unet_engine.cluster import connection as clusters
from unet_engine.errors import ClusterError, SettingsError

SECRET = "a token of the user's"


@pytest.fixture(scope="module")
def local():
    with clusters.connect(settings(workers=1, dashboard_token=SECRET), None, 60) as cluster:
        yield cluster


def websocket(url, **headers):
    """Status of the answer to a websocket's greeting; 101 where it is let in."""
    from tornado.httpclient import HTTPClientError, HTTPRequest
    from tornado.websocket import websocket_connect

    async def knock():
        try:
            (await websocket_connect(HTTPRequest(url.replace("http", "ws", 1), headers=headers))).close()
            return 101
        except HTTPClientError as error:
            return error.code

    return asyncio.run(knock())


def routes(cluster):
    """Paths of all pages, patterns filled in."""
    application = cluster.client.cluster.scheduler.http_application
    rules = [rule for part in (application, *application.applications) for rule in part.wildcard_router.rules]
    return {re.sub(r"\(.*?\)", "x", rule.matcher.regex.pattern.rstrip("$")) for rule in rules}


def test_every_page_asks_for_the_token(local):
    url = local.dashboard.removesuffix("/status")
    pages = [
        *routes(local),
        "/",
        "/nowhere",
        "//status",
        "/status?token=",
        "/status?token=wrong",
        f"/status?token={urllib.parse.quote(SECRET[:-1])}",
    ]
    assert "/status/?" in pages
    assert len(pages) > 50
    assert {page: get(url + page)[0] for page in pages} == dict.fromkeys(pages, 403)
    assert get(f"{url}/status", Authorization="Bearer wrong")[0] == 403
    assert get(f"{url}/status", Cookie="unet_engine_0=1; a=b")[0] == 403


def test_a_token_by_address_by_header_and_by_cookie(local):
    url, token = local.dashboard, urllib.parse.quote(SECRET)
    assert get(url, Authorization=f"Bearer {SECRET}")[0] == 200
    status, headers = get(f"{url}?token={token}")
    assert status == 200
    cookie = headers["Set-Cookie"]
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(cookie.split("; "))
    assert token not in cookie
    assert SECRET not in cookie
    assert get(url, Cookie=cookie.partition(";")[0])[0] == 200


def test_websockets_ask_for_the_token_too(local):
    url = local.dashboard.replace("/status", "/eventstream")
    cookie = get(f"{local.dashboard}?token={urllib.parse.quote(SECRET)}")[1]["Set-Cookie"].partition(";")[0]
    assert websocket(url) == 403
    assert websocket(url, Cookie="unet_engine_1=2") == 403
    assert websocket(url, Cookie=cookie) == 101
    assert websocket(f"{url}?token={urllib.parse.quote(SECRET)}") == 101


def test_a_chosen_token_is_not_in_the_link(local):
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/status", local.dashboard)


def test_a_token_is_made_where_none_is_chosen_and_none_closes_the_pages():
    with clusters.connect(settings(workers=1), None, 60) as cluster:
        assert get(cluster.dashboard)[0] == 200
        assert get(cluster.dashboard.partition("?")[0])[0] == 403
        before = len(listening([os.getpid()]))
        with clusters.connect(settings(workers=1, dashboard="none"), None, 60) as other:
            assert other.dashboard is None
            assert len(listening([os.getpid()])) == before + 2  # scheduler and nanny


@pytest.mark.parametrize("place", ["8787", "host:", ":8787", "127.0.0.1:99999", "here"])
def test_a_place_for_the_dashboard_that_is_none(place):
    with (
        pytest.raises(SettingsError, match=r"--dashboard .* is not host:port; write"),
        clusters.connect(settings(workers=1, dashboard=place), None, 60),
    ):
        pass


def test_a_place_for_the_dashboard_that_is_taken(local):
    place = local.dashboard.removeprefix("http://").removesuffix("/status")
    with (
        pytest.raises(ClusterError, match=f"--dashboard {place}: cannot listen there: Address already in use; give"),
        clusters.connect(settings(workers=1, dashboard=place), None, 60),
    ):
        pass


def test_without_bokeh_there_is_a_note_and_no_dashboard(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed.dashboard.scheduler", None)
    with clusters.connect(settings(workers=1), None, 60) as cluster:
        assert cluster.dashboard is None
        assert "bokeh is not installed" in cluster.notes[0]


@pytest.mark.slow
def test_the_gate_of_a_scheduler_of_ones_own():
    arguments = (
        "scheduler",
        "--host",
        "127.0.0.1",
        "--port",
        0,
        "--dashboard-address",
        "127.0.0.1:0",
        "--preload",
        "unet_engine.cluster.token_gate",
    )
    for variables, admitted in (({"UNET_ENGINE_DASHBOARD_TOKEN": SECRET}, 200), ({}, 403)):
        with dask(*arguments, **variables) as scheduler:
            log = scheduler.log
            url = said(log, r"dashboard at:\s+(\S+)")[1]
            said(log, "Run preload setup")
            assert get(url)[0] == 403
            assert get(url, Authorization=f"Bearer {SECRET}")[0] == admitted
            assert SECRET not in log.read_text()
