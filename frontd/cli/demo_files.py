"""What `frontd demo` puts into its folder beside frontd.yaml: a users file, a file to serve, a plugin.

All of it is written anew at each start, so what somebody tried out in an earlier demo does not stay.
"""

from __future__ import annotations

from pathlib import Path

USER, PASSWORD = "demo", "demo"  # printed by the demo; they open nothing but its /private/

MOTTO = "One place owns the ports; whatever stands behind it may come and go.\n"

PLUGIN = '''\
"""A plugin: one file in `plugins_dir`, one class, one word in frontd.yaml.  'frontd plugin new NAME' begins another."""

import frontd


class Hello(frontd.Plugin):
    name = "hello"  # the word in frontd.yaml

    class Settings(frontd.Settings):
        word: str = "Hello"

    settings: Settings

    def filter_request(self, exchange: frontd.Exchange) -> frontd.Response | None:
        if exchange.request.path != "/hello":
            return None  # go on
        text = f"{self.settings.word}, {exchange.client.address}! This is plugins/hello.py.\\n"
        return frontd.Response(200, text=text)
'''


def users_file(folder: Path) -> Path:
    """The users of /private/."""
    return folder / "users"


def static_folder(folder: Path) -> Path:
    """The directory behind /static/."""
    return folder / "static"


def motto_file(folder: Path) -> Path:
    """The one file in it."""
    return static_folder(folder) / "motto.txt"


def plugins_folder(folder: Path) -> Path:
    """The directory whose files are plugins."""
    return folder / "plugins"


def plugin_file(folder: Path) -> Path:
    """The one plugin in it."""
    return plugins_folder(folder) / "hello.py"


def write_files(folder: Path) -> None:
    """Write all of it below `folder`; takes about 50 ms, for the password is hashed.  Raises `OSError`."""
    from frontd_plugins import _passwords as passwords

    users = users_file(folder)
    users.touch(mode=0o600)
    users.write_text(f"# user {USER}, password {PASSWORD}\n{USER}:{passwords.make(PASSWORD)}\n")
    for path, text in ((motto_file(folder), MOTTO), (plugin_file(folder), PLUGIN)):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
