"""Who is let in where there is TLS: tokens, the sign-in page's cookie, and what ends it."""

from __future__ import annotations

import asyncio
import socket
import ssl

import pytest

from aggregator.http import door, guard, live
from aggregator.http.guard import COOKIE
from aggregator.http.sessions import TRIES


def bearer(token):
    return {"Authorization": f"Bearer {token}"}


def cookie_of(answer):
    """What the browser would send back."""
    return {"Cookie": answer.headers["Set-Cookie"].partition(";")[0]}


def test_without_a_token_there_is_nothing_but_probes_and_the_way_in(house):
    async def scenario(port):
        for path in ("/metrics", "/sd", "/nodes/a/metrics", "/api/state", "/api/events", "/", "/nothing"):
            answer = await port.get(path)
            assert answer.status == 401, path
            assert answer.headers["WWW-Authenticate"].startswith("Bearer")
            assert len(answer.text.strip()) > 10
        for path in ("/healthz", "/signin", "/style.css", "/app.js", "/icon.svg"):
            assert (await port.get(path)).status == 200
        assert (await port.get("/readyz")).status == 503

    house.run(scenario)
    refused = [line for line in house.audited() if line["event"] == "refused"]
    assert len(refused) == 7
    assert refused[0]["method"] == "GET /metrics"


def test_who_does_not_speak_tls_is_told_and_so_is_the_log(house, caplog):
    async def scenario(port):
        reader, writer = await asyncio.open_connection(*port.where)
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
        async with asyncio.timeout(180):
            said = await reader.read()
        writer.close()
        assert said.startswith(b"HTTP/1.1 400 ")
        assert b"https:// instead of http://" in said
        reader, writer = await asyncio.open_connection(*port.where)
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        async with asyncio.timeout(180):
            assert await reader.read() == b""
        writer.close()

        def distrust():
            with socket.create_connection(port.where, 20) as plain:
                ssl.create_default_context().wrap_socket(plain, server_hostname="localhost")

        with pytest.raises(ssl.SSLCertVerificationError):
            await asyncio.to_thread(distrust)
        assert (await port.get("/healthz")).status == 200

    house.run(scenario)
    plain, other, distrust = [line for line in house.audited() if line["event"] == "refused"]
    assert plain["peer"] == other["peer"] == "127.0.0.1"
    assert "it did not speak TLS" in other["reason"]
    assert plain["method"] == distrust["method"] == "HTTPS"
    assert "it spoke plain HTTP" in plain["reason"]
    assert "does not trust this aggregator's authority" in distrust["reason"]
    assert "it spoke plain HTTP" in caplog.text


def test_a_path_writes_no_line_of_its_own_into_log_and_audit(house, caplog):
    forged = "/x%0A2026-11-25%20INFO%20node%20evil%20registered%1B[31m" + "y" * 200

    async def scenario(port):
        assert (await port.get(f"{forged}?token=eat_secret")).status == 401
        # Other programs than browsers send what they like.
        reader, writer = await asyncio.open_connection(*port.where, ssl=port.tls)
        writer.write("GET /z\x9b2J\x85q HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        assert b" 400 Bad Request" in await reader.read()
        writer.close()

    house.run(scenario)
    lines = [record.getMessage() for record in caplog.records if "refused" in record.getMessage()]
    assert forged[:70] in lines[0].replace("%5B", "[")
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
    for text in (*lines, *(line.get("method", "") for line in house.audited())):
        assert text.isprintable()
        assert "eat_secret" not in text
        assert "y" * 80 not in text


def test_a_browser_is_sent_to_sign_in_and_not_counted_as_refused(house):
    async def scenario(port):
        answer = await port.get("/", headers={"Accept": "text/html,*/*"})
        assert (answer.status, answer.headers["Location"]) == (303, "/signin")
        form = await port.get("/signin")
        assert 'name="token"' in form.text
        assert "<script" not in form.text

    house.run(scenario)
    assert not [line for line in house.audited() if line["event"] == "refused"]


def test_prometheus_brings_a_viewers_token(house):
    async def scenario(port):
        assert (await port.get("/metrics", headers=bearer(house.viewer))).status == 200
        answer = await port.get("/sd", headers={**bearer(house.viewer), "Host": "aggregator:9464"})
        assert (answer.status, answer.json) == (200, [])
        me = (await port.get("/api/state", headers=bearer(house.operator))).json["you"]
        assert me["role"] == "operator"
        for bad in (house.join, house.viewer[:-1], "eat_x", "nonsense"):
            assert (await port.get("/metrics", headers=bearer(bad))).status == 401

    house.run(scenario)


def test_signing_in_gives_a_cookie_that_scripts_and_other_sites_do_not_get(house):
    async def scenario(port):
        answer = await port.post("/signin", data={"token": f"  {house.viewer}\n"})
        assert (answer.status, answer.headers["Location"]) == (303, "/")
        said = answer.headers["Set-Cookie"]
        assert said.startswith(f"{COOKIE}=")
        for attribute in ("Secure", "HttpOnly", "SameSite=Strict", "Path=/"):
            assert attribute in said
        assert "Domain" not in said
        assert house.viewer not in said
        cookie = cookie_of(answer)
        assert (await port.get("/", headers=cookie)).status == 200
        assert (await port.get("/api/state", headers=cookie)).json["you"]["role"] == "viewer"
        out = await port.post("/signout", headers=cookie)
        assert (out.status, out.headers["Location"]) == (303, "/signin")
        assert (await port.get("/api/state", headers=cookie)).status == 401

    house.run(scenario)


def test_a_bad_token_is_refused_with_the_reason_in_the_page(house):
    async def scenario(port):
        answer = await port.post("/signin", data={"token": "eat_<b>no</b>"})
        assert answer.status == 401
        assert 'role="alert"' in answer.text
        assert "<b>" not in answer.text
        assert "Set-Cookie" not in answer.headers
        join = await port.post("/signin", data={"token": house.join})
        assert join.status == 401
        assert (await port.post("/signin", data={})).status == 401
        assert (await port.post("/signin", data={"token": "ä"})).status == 400
        assert (await port.post("/signin", data={"token": "x" * 9000})).status == 503

    house.run(scenario)


def test_after_some_bad_tokens_even_a_good_one_has_to_wait(house):
    async def scenario(port):
        for _ in range(TRIES):
            assert (await port.post("/signin", data={"token": "eat_no"})).status == 401
        answer = await port.post("/signin", data={"token": house.viewer})
        assert answer.status == 429
        assert 0 < int(answer.headers["Retry-After"]) <= 60
        assert "try again in" in answer.text
        # Programs with a token of their own are not in the way of it.
        assert (await port.get("/metrics", headers=bearer(house.viewer))).status == 200

    house.run(scenario)


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "https://["},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_a_form_of_another_site_is_refused(house, headers):
    async def scenario(port):
        for path in ("/signin", "/signout"):
            answer = await port.post(path, data={"token": house.viewer}, headers=headers)
            assert answer.status == 403
            assert "Set-Cookie" not in answer.headers

    house.run(scenario)


def test_the_forms_of_this_site_are_not(house):
    async def scenario(port):
        for headers in ({"Origin": port.base}, {"Sec-Fetch-Site": "same-origin"}, {}):
            assert (await port.post("/signin", data={"token": house.viewer}, headers=headers)).status == 303

    house.run(scenario)


def test_a_token_that_is_revoked_ends_its_sessions_and_streams(house, monkeypatch):
    monkeypatch.setattr(guard, "RECHECK_SECONDS", 0.0)
    monkeypatch.setattr(live, "ALIVE_SECONDS", 0.01)

    async def scenario(port):
        cookie = cookie_of(await port.post("/signin", data={"token": house.viewer}))
        async with port.client.get(port.base + "/api/events", headers=cookie) as stream:
            assert stream.status == 200
            house.revoke(house.viewer)
            async with asyncio.timeout(180):
                await stream.read()  # it ends
        assert (await port.get("/api/state", headers=cookie)).status == 401
        html = {**cookie, "Accept": "text/html"}
        assert (await port.get("/", headers=html)).headers["Location"] == "/signin"

    house.run(scenario)


def test_plaintext_to_the_port_is_no_page(house):
    async def scenario(port):
        reader, writer = await asyncio.open_connection("localhost", int(port.base.rpartition(":")[2]))
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"200" not in await reader.read()
        writer.close()
        assert (await port.get("/healthz")).status == 200

    house.run(scenario)


def test_who_shows_no_token_is_closed_on_and_who_does_is_not(house, monkeypatch):
    monkeypatch.setattr(door, "FIRST_SECONDS", 4.0)

    async def connection(port):
        return await asyncio.open_connection(*port.where, ssl=port.tls, server_hostname="localhost")

    async def answered(reader, writer, authorization=""):
        writer.write(f"GET /sd HTTP/1.1\r\nHost: localhost\r\n{authorization}\r\n".encode())
        async with asyncio.timeout(180):
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            await reader.readexactly(length)
        return head

    async def scenario(port):
        reader, writer = await connection(port)
        assert b" 401 " in await answered(reader, writer)
        async with asyncio.timeout(180):  # not the 75 s of a connection that is kept
            assert await reader.read() == b""
        writer.close()
        reader, writer = await connection(port)
        shown = f"Authorization: Bearer {house.viewer}\r\n"
        assert b" 200 " in await answered(reader, writer, shown)
        await asyncio.sleep(5.0)
        assert b" 200 " in await answered(reader, writer, shown)
        writer.close()

    house.run(scenario)


def test_an_address_has_so_many_connections_that_show_no_token(house, monkeypatch):
    monkeypatch.setattr(door, "ADDRESS_STRANGERS", 2)

    async def scenario(port):
        async def connection():
            return await asyncio.open_connection(*port.where, ssl=port.tls, server_hostname="localhost")

        held = [await connection() for _ in range(2)]
        reader, turned = await connection()
        turned.write(
            b"POST /v2/repository/index HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000000\r\n\r\n"
        )
        async with asyncio.timeout(180):
            answer = await reader.read()  # to its end: this side sends no body, and that one waits for none
        assert answer.startswith(b"HTTP/1.1 429 ")
        assert b"\r\nRetry-After: 5\r\n" in answer
        assert b"your address has as many connections to this port as one may have" in answer
        turned.close()
        monkeypatch.setattr(door, "TURNED", 0)
        with pytest.raises((ConnectionError, ssl.SSLError)):
            await connection()
        reader, writer = held[0]
        writer.write(
            f"GET /sd HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {house.viewer}\r\n\r\n".encode()
        )
        async with asyncio.timeout(180):
            assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
        reader, other = await connection()  # the first has shown who it is
        for one in (other, *(writer for _, writer in held)):
            one.close()

    house.run(scenario)
