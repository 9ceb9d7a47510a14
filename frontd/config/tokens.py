"""The bearer token of the admin listener (RFC 6750 2.1), in a file of its own."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from frontd.config.certificates import Unusable

SHORTEST = 16  # characters
_MOST = 4096  # bytes of the file
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")


def read_token(path: Path, blamed: str = "token_file") -> str:
    """The token in `path`, without blanks and line ends around it.

    Raises `Unusable` that blames the key `blamed` of the configuration.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            text = file.read(_MOST + 1).decode("ascii").strip()
    except OSError as error:
        raise Unusable(blamed, f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        text = ""
    hint = f"make one with   (umask 077; openssl rand -hex 32 > {path})"
    if mode & (stat.S_IROTH | stat.S_IWOTH):
        raise Unusable(blamed, f"everybody may read or write {path}, so its token is none", f"chmod 640 {path}")
    if len(text) > _MOST or not _TOKEN.fullmatch(text):
        raise Unusable(blamed, f"{path} holds no token: letters, digits and - . _ ~ + / (RFC 6750)", hint)
    if len(text) < SHORTEST:
        raise Unusable(blamed, f"{path} holds {len(text)} characters; a token has at least {SHORTEST}", hint)
    return text
