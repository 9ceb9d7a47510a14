"""What the control socket says of plugins: who is asked, what they remember, and the pools they have routed to."""

from __future__ import annotations

from pathlib import Path

from frontd.pipeline.store import ENTRY_COST
from tests.scenarios.test_control import desk
from tests.wire import app, one_pool

PLUGINS = """
import frontd

class Away(frontd.Plugin):
    name = "away"

    class Settings(frontd.Settings):
        to: str

    def route(self, exchange):
        return self.settings.to

class Notes(frontd.Plugin):
    name = "notes"

    def log(self, exchange):
        self.store.put(("notes", exchange.request.path), "seen", 1000)

    def filter_request(self, exchange):
        return None
"""


async def test_status_shows_plugins_and_what_they_hold(tmp_path: Path) -> None:
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "all.py").write_text(PLUGINS)
    top = "plugins_dir: plugins\nplugins: [notes]\ncache: {memory: 1MiB}"
    async with app() as it:
        text = one_pool("http://127.0.0.1:1", site=f"plugins: [{{away: {{to: '{it.url}'}}}}]", extra=top)
        async with desk(text, tmp_path) as control:
            assert (await control.ask("GET /status"))[1]["store"] == {"used": 0, "limit": 1048576, "entries": 0}
            line = await control.stage.connect()
            assert (await line.get("/one"))[0].startswith(b"HTTP/1.1 200 ")
            assert (await line.get("/two"))[0].startswith(b"HTTP/1.1 200 ")
            await line.close()
            _, said = await control.ask("GET /status")
            (site,) = said["sites"]
            assert site["plugins"] == [
                {"name": "notes", "server": True, "hooks": ["filter_request", "log"]},
                {"name": "away", "server": False, "hooks": ["route"]},
            ]
            assert said["store"] == {"used": 2 * (1000 + ENTRY_COST), "limit": 1048576, "entries": 2}
            assert [(pool["name"], pool["on_demand"]) for pool in said["pools"]] == [("app", False), (it.url, True)]
            (target,) = said["pools"][1]["targets"]
            assert (target["target"], target["state"], target["active"]) == (it.url, "up", 0)
            control.text = text.replace("plugins: [notes]", "plugins: []")
            assert (await control.ask("POST /reload"))[0] == 200
            _, said = await control.ask("GET /status")
            assert [one["name"] for one in said["sites"][0]["plugins"]] == ["away"]
