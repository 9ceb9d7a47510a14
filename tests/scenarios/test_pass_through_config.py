"""``pass_through`` in the configuration: one scheme is frontd's or the apps', and tokens need room."""

from __future__ import annotations

from pathlib import Path

import pytest

from frontd.config.problems import ConfigProblems
from frontd.processes.explain import explain
from tests.scenarios.logons import logons
from tests.wire import configuration, front

PLUGIN = '''
import frontd

class Own(frontd.Plugin):
    """Asks who it is itself."""

    name = "own"
    scheme = "NTLM"

    def authenticate(self, exchange: frontd.Exchange) -> frontd.Identity | None:
        return None
'''


def text(schemes: str, url: str = "http://127.0.0.1:9", everywhere: str = "", site: str = "") -> str:
    return f"""
listen: {{http: {{port: 0}}}}
plugins_dir: .
{everywhere}
sites:
  main:
    urls: ["http://*/"]
    routes: {{/: app, /other: plain}}
    {site}
  beside:
    urls: ["http://beside.test/"]
    routes: {{/: plain}}
pools:
  app: {{targets: ["{url}"], pass_through: [{schemes}]}}
  plain: {{targets: ["{url}"]}}
"""


@pytest.mark.parametrize("place", ["site", "everywhere"])
def test_a_scheme_of_a_plugin_is_not_the_apps_too(tmp_path: Path, place: str) -> None:
    (tmp_path / "own.py").write_text(PLUGIN)
    with pytest.raises(ConfigProblems) as refused:
        configuration(text("negotiate, ntlm", **{place: "plugins: [own]"}), tmp_path)
    printed = str(refused.value)
    assert "sites.main.routes./: the plugin own asks who it is by ntlm, and the pool 'app' leaves that" in printed
    assert "take `ntlm` out of `pools.app.pass_through`, or the plugin own off this site" in printed


def test_another_scheme_of_the_same_site_may_be_the_apps(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(PLUGIN)
    assert configuration(text("negotiate", site="plugins: [own]"), tmp_path).config is not None


def test_heads_may_be_larger_where_tokens_pass(tmp_path: Path) -> None:
    config = configuration(text("negotiate"), tmp_path).config
    assert config is not None
    limits = config.sites["main"].limits
    assert (limits.max_head, limits.max_field) == (65536, 65536)
    assert config.sites["beside"].limits.max_head == 16384
    config = configuration(text("negotiate", site="limits: {max_head: 20000}"), tmp_path).config
    assert config is not None
    limits = config.sites["main"].limits
    assert (limits.max_head, limits.max_field) == (20000, 65536)


def test_explain_says_whose_logon_it_is(tmp_path: Path) -> None:
    config = configuration(text("negotiate, ntlm"), tmp_path).config
    steps = {step["step"]: step for step in explain(config, "http://a.test:1/")["steps"]}
    assert steps["logon"]["chosen"] == "negotiate or ntlm"
    assert "logon" not in {step["step"] for step in explain(config, "http://a.test:1/other")["steps"]}


async def test_a_large_token_passes_untouched(tmp_path: Path) -> None:
    async with logons() as book, front(text("negotiate", book.url), tmp_path) as stage:
        line = await stage.connect()
        token = "YII" + "x" * 60_000
        _, body = await line.get("/", f"Authorization: Negotiate {token}")
        assert body == f"{token} 0".encode()
