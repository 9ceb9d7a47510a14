"""What control keeps of reservations and queues, and how a change of it reaches the fronts.

How it works
------------
The configuration's own reservations come from the file each time; what `frontd urlacl` and `frontd attach` add is
`kept` in ``urlacl.json`` of the state directory.  A change is four steps under the lock that reloads take, too:

1. the rules of `frontd.model.reservations` allow it, or say why not;
2. it is on the disk;
3. the overlay of it goes to every front by the two phases of a reload;
4. where the fronts refuse it, what was kept before is on the disk again.

Invariants
----------
* Nothing is served that is not on the disk, so that a control that is started anew, or all of frontd, forgets nothing.
* What cannot be read when frontd starts ends the start; what cannot be read by a control that takes another one's place
  leaves the fronts as they are, and every change is refused until it can be read again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import trio

from frontd.config.model import Config
from frontd.model.reservations import Account, Namespace, Queue, Reservation, compared
from frontd.model.urlprefix import UrlPrefix
from frontd.processes.claims import overlay, whole
from frontd.processes.family import Family
from frontd.processes.runtime import BuildProblem
from frontd.processes.statefiles import StateFile, StateProblem

FILE = "urlacl.json"
Change = Callable[[Namespace], Namespace]


class Registry:
    """The namespace that control keeps in `state_dir`."""

    def __init__(self, state_dir: Path) -> None:
        self.file = StateFile(state_dir / FILE, "reservations")
        self.kept = Namespace()
        self.problem = ""  # why nothing can be changed

    def load(self) -> None:
        """Read what was kept.  Raises `StateProblem`."""
        self.kept = self._read()

    def reload(self) -> None:
        """Read it for a control that takes another one's place; what is wrong with it is noted."""
        try:
            self.kept = self._read()
            self.problem = ""
        except StateProblem as error:
            self.problem = str(error)

    def _read(self) -> Namespace:
        try:
            return from_document(self.file.read())
        except (KeyError, TypeError, ValueError, IndexError):
            raise StateProblem(
                f"{self.file.path} is damaged: it holds what this frontd does not understand; put a copy back, or "
                f"remove the file to begin without any {self.file.kind}"
            ) from None

    def laid_over(self, config: Config) -> Config:
        """The effective configuration.  Raises `BuildProblem`."""
        if self.problem:
            self.reload()
            if self.problem:
                raise BuildProblem(self.problem)
        try:
            return overlay(config, self.kept)
        except ValueError as error:
            raise BuildProblem(f"urlacl: {error}") from None

    def whole(self, family: Family) -> Namespace:
        """Everything that is reserved and registered."""
        return whole(family.base, self.kept)

    async def change(self, family: Family, change: Change) -> bool:
        """Do `change` to the whole; whether it made a difference.

        Raises what it raises, `StateProblem`, and what `Family.put` does when the fronts do not take it.
        """
        async with family.reloading:
            if self.problem:
                self.laid_over(family.base)  # which looks whether it can be read now
            before, standing = self.kept, whole(family.base, self.kept)
            after = change(standing)
            if after == standing:
                return False
            await self._write(self._without_fixed(after, before))
            try:
                await family.put(self.laid_over(family.base))
            except Exception:  # whatever it was, what is not served is not kept
                await self._write(before)
                raise
            return True

    @staticmethod
    def _without_fixed(after: Namespace, before: Namespace) -> Namespace:
        """What of `after` is kept: not what stands in the file, but what the file hides at the moment."""
        fixed = {compared(one.url) for one in after.reservations if one.is_fixed}
        hidden = tuple(one for one in before.reservations if compared(one.url) in fixed)
        own = tuple(one for one in after.reservations if not one.is_fixed)
        return Namespace((*own, *hidden), after.queues)

    async def _write(self, kept: Namespace) -> None:
        await trio.to_thread.run_sync(self.file.write, as_document(kept))
        self.kept = replace(kept, schemes=())


def as_document(kept: Namespace) -> dict[str, Any]:
    """What stands in the file."""
    return {
        "reservations": [
            {"url": str(one.url), "account": list(one.account), "delegate": one.delegate} for one in kept.reservations
        ],
        "queues": [
            {
                "name": queue.name, "owner": list(queue.owner),
                "urls": [
                    {"url": str(url), "grant": list(grant) if grant is not None else None}
                    for url, grant in zip(queue.urls, queue.grants, strict=True)
                ],
            }
            for queue in kept.queues
        ],
    }  # fmt: skip


def from_document(document: Any) -> Namespace:
    """What the file says; None: there is none.  Raises `KeyError`, `TypeError`, `ValueError` or `IndexError`."""
    if document is None:
        return Namespace()
    reservations = tuple(
        Reservation(UrlPrefix.parse(one["url"]), _account(one["account"]), bool(one["delegate"]))
        for one in document["reservations"]
    )
    queues = tuple(
        Queue(
            str(one["name"]), _account(one["owner"]), tuple(UrlPrefix.parse(url["url"]) for url in one["urls"]),
            tuple(_account(url["grant"]) if url["grant"] is not None else None for url in one["urls"]),
        )
        for one in document["queues"]
    )  # fmt: skip
    return Namespace(reservations, queues)


def _account(words: Any) -> Account:
    kind, number, name = words
    if kind not in ("user", "group", "pool"):
        raise ValueError(kind)
    return Account(kind, int(number), str(name))
