"""Sites with several schemes, anonymous paths, and logons that belong to a connection."""

from __future__ import annotations

from pathlib import Path

import pytest
from frontd_plugins.authorize import Authorize

from frontd import Continue, Exchange, Identity, Refuse
from frontd.config.problems import ConfigProblems
from tests.scenarios.handshakes import LEG_1, LEG_2, Legs, Word
from tests.scenarios.plugged import PluginClass, fields, made, of, plugged, reload, says, status, text, told
from tests.wire import Line, app, configuration

BASIC = "Authorization: Basic sesame"
TOKEN = made("token", scheme="Token", authenticate=says(None), challenge=says("Token"))
FIRST = made("first", scheme="Negotiate", authenticate=says(None), challenge=says("Negotiate"))
RULES = "authorize: [{path: /open/, allow: [anonymous]}, {allow: [authenticated], deny: [bob]}]"


async def challenges(line: Line, path: str = "/") -> list[str]:
    """The schemes of a 401, in their order."""
    head, _ = await line.get(path)
    assert status(head) == 401
    return [value.split(" ", 1)[0] for value in fields(head, "www-authenticate")]


async def log_on(line: Line) -> int:
    """Both legs; the status of the second answer."""
    head, _ = await line.get("/", LEG_1)
    assert status(head) == 401
    assert fields(head, "www-authenticate")[0].startswith("NTLM TlRM")
    return status((await line.get("/", LEG_2))[0])


# ---------------------------------------------------------------------------------------------------- challenges


@pytest.mark.parametrize(
    ("site", "expected"),
    [
        ("", ["Negotiate", "NTLM", "Token", "Basic"]),
        ("challenges: [word, token, legs]", ["Basic", "Token", "NTLM", "Negotiate"]),
        ("challenges: [legs]", ["NTLM", "Negotiate", "Token", "Basic"]),
    ],
)
async def test_the_strongest_challenge_comes_first_unless_the_site_says_otherwise(
    tmp_path: Path, site: str, expected: list[str]
) -> None:
    target = "http://127.0.0.1:1"
    async with plugged(tmp_path, target, TOKEN, Word, FIRST, server=[Legs], site=site) as stage:
        assert await challenges(await stage.connect()) == expected


async def test_a_refusal_offers_them_all_and_a_leg_its_own_alone(tmp_path: Path) -> None:
    async with plugged(tmp_path, "http://127.0.0.1:1", Word, Legs) as stage:
        line = await stage.connect()
        head, _ = await line.get("/", "Authorization: Basic no")
        assert fields(head, "www-authenticate") == ["NTLM", 'Basic realm="lab"']
        head, _ = await line.get("/", LEG_1)
        assert [value[:9] for value in fields(head, "www-authenticate")] == ["NTLM TlRM"]


@pytest.mark.parametrize(
    ("site", "sentence"),
    [
        ("challenges: [legs, wrod]", "no plugin 'wrod' asks anybody to log on(.*\n)*.*did you mean \"word\""),
        ("challenges: [authorize]", "no plugin 'authorize' asks anybody to log on to this site(.*\n)*.*legs, word"),
        ("challenges: [legs, legs]", "legs is already there"),
    ],
)
def test_a_challenge_that_nobody_has_is_an_error(tmp_path: Path, site: str, sentence: str) -> None:
    plugins = Legs, Word, Authorize
    written = text("http://127.0.0.1:1", [Legs, Word, RULES], site=site)
    with pytest.raises(ConfigProblems, match=sentence):
        configuration(written, tmp_path, of(*plugins))


# ---------------------------------------------------------------------------------------------------- two of them


async def test_anonymous_here_and_either_scheme_there(tmp_path: Path) -> None:
    discover = of(Legs, Word, Authorize)
    async with app() as it, plugged(tmp_path, it.url, Legs, Word) as stage:
        written = text(it.url, [Legs, Word, RULES])
        assert (await stage.front.reload(lambda: configuration(written, tmp_path, discover))).ok
        line = await stage.connect()
        assert status((await line.get("/open/page"))[0]) == 200
        assert await challenges(line) == ["NTLM", "Basic"]
        assert status((await line.get("/", BASIC))[0]) == 403  # bob has logged on, and may not
        assert await log_on(line) == 200
        assert status((await line.get("/open/page"))[0]) == 200
        assert status((await line.get("/", "Authorization: Bearer of-the-app"))[0]) == 200
        assert status((await line.get("/", BASIC))[0]) == 403  # other credentials are another logon
        assert await challenges(line) == ["NTLM", "Basic"]
        other = await stage.connect()
        assert await challenges(other) == ["NTLM", "Basic"]
        users = [fields(head, "x-remote-user") for head in it.heads]
        assert users == [[], ["LAB\\ann"], ["LAB\\ann"], ["LAB\\ann"]]


async def test_whoever_stands_first_is_asked_first(tmp_path: Path) -> None:
    """Whosever credentials they are: it may be there to refuse."""
    no = made("no", authenticate=says(Refuse(403, "Forbidden")))
    async with plugged(tmp_path, "http://127.0.0.1:1", no, Word) as stage:
        assert status((await (await stage.connect()).get("/", BASIC))[0]) == 403


@pytest.mark.parametrize("plugins", [[Legs], [Legs, Word], [Word, Legs]])
async def test_fields_that_contradict_each_other_end_a_logon(tmp_path: Path, plugins: list[PluginClass]) -> None:
    async with app() as it, plugged(tmp_path, it.url, *plugins) as stage:
        line = await stage.connect()
        assert await log_on(line) == 200
        assert status((await line.get("/", LEG_1, BASIC))[0]) == 401
        assert status((await line.get())[0]) == 401
        assert len(it.heads) == 1


async def test_message_3_on_another_connection_is_nobodys(tmp_path: Path) -> None:
    async with app() as it, plugged(tmp_path, it.url, Legs) as stage:
        one, two = await stage.connect(), await stage.connect()
        await one.get("/", LEG_1)
        assert status((await two.get("/", LEG_2))[0]) == 401
        assert await challenges(two) == ["NTLM"]
        assert status((await one.get("/", LEG_2))[0]) == 200
        assert len(it.heads) == 1
        assert stage.reasons == {"LogonFailed": 1, "LogonRequired": 1}


# ---------------------------------------------------------------------------------------------------- proxies


async def test_a_logon_of_a_connection_is_nobodys_behind_a_proxy(tmp_path: Path) -> None:
    """One plugin forgets to look, another one remembers on its own: neither lets the next user in."""
    bound = Identity("LAB\\ann", scheme="NTLM", connection_bound=True)
    seen: list[Identity | Continue | None] = []

    def forgets(self: object, exchange: Exchange) -> Identity | None:
        seen.append(bound if exchange.request.credentials[0] == "ntlm" or seen else None)
        found = seen[-1]
        assert not isinstance(found, Continue)
        return found

    plugin = made("forgets", scheme="NTLM", authenticate=forgets, challenge=says("NTLM"))
    async with app() as it, plugged(tmp_path, it.url, plugin, Word, extra="trusted_proxies: [127.0.0.1]") as stage:
        line = await stage.connect()
        ann, bob = "X-Forwarded-For: 192.0.2.1", "X-Forwarded-For: 192.0.2.2"
        for credentials in ([ann, LEG_1], [ann], [bob]):
            head, _ = await line.get("/", *credentials)
            assert status(head) == 401
            assert fields(head, "www-authenticate") == ["NTLM", 'Basic realm="lab"']
        assert seen == [bound] * 3
        assert it.heads == []
        assert stage.reasons == {"LogonFailed": 3}
        assert "NTLM+logon+belongs+to+a+connection+that+a+trusted+proxy+shares" in await told(stage)


async def test_a_logon_of_a_request_passes_behind_a_proxy(tmp_path: Path) -> None:
    async with app() as it, plugged(tmp_path, it.url, Legs, Word, extra="trusted_proxies: [127.0.0.1]") as stage:
        line = await stage.connect()
        assert status((await line.get("/", BASIC))[0]) == 200
        assert await challenges(line) == ["NTLM", "Basic"]
        # no leg is remembered of a connection that many share
        assert await log_on(line) == 401


# ---------------------------------------------------------------------------------------------------- reload


async def test_a_handshake_goes_on_over_a_reload_when_settings_are_equal(tmp_path: Path) -> None:
    async with app() as it, plugged(tmp_path, it.url, Legs) as stage:
        same = text(it.url, [Legs], pool="concurrency: 5")
        half, whole = await stage.connect(), await stage.connect()
        assert await log_on(whole) == 200
        await half.get("/", LEG_1)
        assert (await reload(stage, same, Legs)).ok
        assert status((await half.get("/", LEG_2))[0]) == 200
        assert status((await whole.get())[0]) == 200


async def test_other_settings_end_it(tmp_path: Path) -> None:
    async with app() as it, plugged(tmp_path, it.url, Legs) as stage:
        other = text(it.url, ['legs: {who: "LAB\\\\eve"}'])
        half, whole = await stage.connect(), await stage.connect()
        assert await log_on(whole) == 200
        await half.get("/", LEG_1)
        assert (await reload(stage, other, Legs)).ok
        assert status((await half.get("/", LEG_2))[0]) == 401
        assert await challenges(whole) == ["NTLM"]
        assert await log_on(half) == 200
        assert fields(it.heads[-1], "x-remote-user") == ["LAB\\eve"]
