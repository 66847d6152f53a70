"""Who may ask: the server's own pages, by its own name, with the token, and not too much."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from conftest import required

guard = required("gradindex.serve.guard")

Serve = Callable[..., Any]
pytest_plugins = ["served_fixtures"]


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8000", 200),
        ("localhost:9000", 200),  # a tunnel has a port of its own
        ("LOCALHOST", 200),
        ("[::1]:8000", 200),
        ("localhost.", 200),
        ("evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("localhost.evil.example:8000", 403),
        ("evil.example@localhost", 200),
        ("192.168.0.7", 403),
        ("", 403),
        ("[::1", 403),
    ],
)
def test_a_name_that_is_not_the_servers_is_refused(serve: Serve, host: str, status: int) -> None:
    """DNS rebinding: another site's name that leads here."""
    assert serve().get("/api/info", headers={"host": host}).status_code == status


def test_a_server_for_all_addresses_is_asked_by_any_address(serve: Serve) -> None:
    client = serve(host="0.0.0.0", hosts=["lab.example"])
    for host, status in [
        ("192.168.0.7:8000", 200),
        ("[fe80::1]", 200),
        ("lab.example", 200),
        ("evil.example", 403),
    ]:
        assert client.get("/api/info", headers={"host": host}).status_code == status


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"origin": "http://127.0.0.1:8000"}, 200),
        ({"origin": "http://127.0.0.1:3000"}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://[::1"}, 403),
        ({"sec-fetch-site": "same-origin"}, 200),
        ({"sec-fetch-site": "none"}, 200),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, 200),
    ],
)
def test_the_page_of_another_site_is_refused(
    serve: Serve, headers: dict[str, str], status: int
) -> None:
    assert serve().get("/api/info", headers=headers).status_code == status


def test_every_answer_has_headers_that_keep_a_browser_in(serve: Serve) -> None:
    client = serve()
    for address in ("/api/info", "/nothing", "/api/openapi.json"):
        headers = client.get(address).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe-eval" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cross-origin-resource-policy"] == "same-origin"


# --- the token ------------------------------------------------------------------------------------

TOKEN = "grün & geheim"


@pytest.mark.parametrize(
    ("headers", "query", "status"),
    [
        ({}, {}, 401),
        ({"authorization": "Bearer wrong"}, {}, 401),
        ({"authorization": TOKEN.encode()}, {}, 401),
        ({"authorization": b"Bearer " + "grün".encode()}, {}, 401),
        ({"cookie": "gradindex-8000=wrong; a"}, {}, 401),
        ({"cookie": f"gradindex-8000={'0' * 64}"}, {}, 401),
        ({}, {"token": "wrong"}, 401),
        ({}, {"token": ""}, 401),
        ({}, {"token": TOKEN}, 200),
    ],
)
def test_a_token_is_asked_for(
    serve: Serve, headers: dict[str, Any], query: dict[str, str], status: int
) -> None:
    client = serve(token=TOKEN)
    answer = client.get("/api/info", headers=headers, params=query)
    assert answer.status_code == status
    if status == 401:
        assert answer.json()["detail"].startswith("token: give")
        assert answer.headers["www-authenticate"] == "Bearer"


def test_a_script_gives_the_token_in_a_header(serve: Serve) -> None:
    client = serve(token="a-b_c")
    headers = {"authorization": "bearer a-b_c"}
    assert client.get("/api/info", headers=headers).status_code == 200
    assert client.post("/api/verify").status_code == 401
    assert client.post("/api/verify", headers=headers).status_code == 200


def test_a_browser_gives_the_token_once(serve: Serve) -> None:
    """Then it has a cookie, in which the token itself is not, and the address is clean."""
    client = serve(token=TOKEN)
    asked = client.get("/")
    assert asked.status_code == 401
    assert "password" in asked.text
    led = client.get("/", params={"token": TOKEN, "k": "5"})
    assert (led.status_code, led.headers["location"]) == (303, "/?k=5")
    cookie = led.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "geheim" not in cookie
    assert client.get("/api/info").status_code == 200  # the client keeps cookies
    client.cookies.clear()
    assert client.get("/api/info").status_code == 401


def test_the_way_on_leads_to_no_other_host(serve: Serve) -> None:
    client = serve(token="t")
    led = client.get("http://127.0.0.1:8000//evil.example/", params={"token": "t"})
    assert led.headers["location"] == "/evil.example/"


# --- sizes ----------------------------------------------------------------------------------------


def parts() -> Iterator[bytes]:
    """A form with a picture of 40 MiB, piece by piece."""
    yield b'--b\r\nContent-Disposition: form-data; name="picture"; filename="a.png"\r\n\r\n'
    for _ in range(40):
        yield bytes(1 << 20)
    yield b"\r\n--b--\r\n"


def test_a_body_that_is_too_large_is_refused(serve: Serve) -> None:
    """Whether it says so before or not."""
    client = serve()
    headers = {"content-type": "multipart/form-data; boundary=b"}
    streamed = client.post("/api/query", content=parts(), headers=headers)
    whole = client.post("/api/query", content=b"".join(parts()), headers=headers)
    for answer in (streamed, whole):
        assert answer.status_code == 413
        assert "more than 33 MiB" in answer.json()["detail"]


def test_hosts_of_a_server() -> None:
    assert guard.is_everywhere("0.0.0.0")
    assert not guard.is_everywhere("127.0.0.1")
