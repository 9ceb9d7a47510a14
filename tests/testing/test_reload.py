"""Plugins replaced while connections are open: what is kept, what begins anew, what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import trio

import frontd
from frontd.testing import ConfigurationError, site


class Counter(frontd.Plugin):
    """Counts the requests of a connection from a number on."""

    name = "counter"

    class Settings(frontd.Settings):
        start: int = 0

    settings: Settings

    def prepare(self) -> None:
        if self.settings.start < 0:
            raise ValueError("it counts from 0")

    def filter_request(self, exchange: frontd.Exchange) -> frontd.Response:
        state = exchange.client.state(self)
        state["asked"] = state.get("asked", self.settings.start) + 1
        return frontd.Response(200, text=str(state["asked"]))


class Runner(frontd.Plugin):
    """Says when it begins and ends."""

    name = "runner"

    class Settings(frontd.Settings):
        word: str = "one"

    settings: Settings

    async def run(self, *, task_status: Any) -> None:
        self.remark(f"{self.settings.word} begins")
        task_status.started()
        try:
            await trio.sleep_forever()
        finally:
            self.remark(f"{self.settings.word} ends")


def test_what_is_remembered_of_a_connection_stays_while_the_settings_do() -> None:
    with site({Counter: {"start": 10}}) as s, s.connect() as c:
        assert c.get("/").text == "11"
        s.reload({Counter: {"start": 10}})
        assert c.get("/").text == "12"
        s.reload({Counter: {"start": 20}})
        assert c.get("/").text == "21"
        assert not c.closed


def test_a_plugin_may_be_added_and_taken_away() -> None:
    with site() as s, s.connect() as c:
        assert c.get("/").upstream is not None
        assert s.reload([Counter]) == ["site test changed"]
        assert c.get("/").upstream is None
        assert s.reload([Counter]) == []
        s.reload([])
        assert c.get("/").upstream is not None
        s.reload([], server_plugins=[Counter])
        assert c.get("/").text == "1"
        s.reload([])  # says nothing of the server's
        assert c.get("/").text == "2"


@pytest.mark.parametrize(
    ("plugins", "says"),
    [
        ({Counter: {"strat": 1}}, 'did you mean "start"'),
        ({Counter: {"start": -1}}, "it counts from 0"),
        (["nobody"], "there is no plugin 'nobody'"),
    ],
)
def test_a_refused_reload_says_why_and_the_old_plugins_go_on(plugins: Any, says: str) -> None:
    with site({Counter: {"start": 10}}) as s, s.connect() as c:
        assert c.get("/").text == "11"
        with pytest.raises(ConfigurationError, match=says):
            s.reload(plugins)
        assert c.get("/").text == "12"


def test_run_goes_on_while_the_settings_are_equal() -> None:
    with site([Runner]) as s:

        def said() -> list[str]:
            return [text.rpartition(": ")[2] for text in s.remarks]

        s.reload([Runner, Counter])
        assert said() == ["one begins"]
        s.reload({Runner: {"word": "two"}})
        assert said() == ["one begins", "two begins", "one ends"]
    assert said()[-1] == "two ends"
