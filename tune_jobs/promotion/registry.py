"""One registered model in MLflow: its versions, and who is champion.

A version is whole before an alias points to it: its tag `intermoco.complete` is set last. `previous` is moved before
`champion`, and `champion` by one call that the store makes whole or not at all. So a process that is killed anywhere
leaves the old champion or the new one, and a `previous` that `mend` puts right: each version that becomes champion
says beforehand, in its tag `intermoco.replaces`, which one it takes the place of.

MLflow cannot compare and set. Processes of one root take turns by a lock on a file (`tune_jobs.locks.promoting`).
Those of several roots with one server raise a flag, a tag of the model with the root's name, and look for others' after
that: where two come together at least one sees the other's flag and steps back, so never do both move the aliases. A
flag that stays the same for `LEASE` seconds is a killed process's and is taken down. What this does not cover: a
process that is stopped for longer than that between looking and moving, and aliases that are moved by hand.
"""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ssl_core.errors import InputError, StageError
from tune_jobs.tracking_client import TrackingError

CHAMPION, PREVIOUS = "champion", "previous"
COMPLETE, OWNER, REPLACES = "intermoco.complete", "intermoco.owner", "intermoco.replaces"
SINCE, BY, WHY, UNTIL = (f"intermoco.champion_{word}" for word in ("since", "by", "why", "until"))
FLAG = "intermoco.moving."
#: MLflow's limit of a description, in characters.
DESCRIPTION = 5000
#: Seconds after which a flag that has not changed is a killed process's, and between two looks at it.
LEASE, LOOK = 30.0, 0.5


@dataclass(frozen=True)
class Version:
    """A version of the registered model."""

    number: str
    run: str
    source: str
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        return self.tags.get(COMPLETE) == "true"


class Registry:
    """The registered model `name`. `owner` names the root whose versions these are; its lock is held."""

    def __init__(self, client: Any, name: str, owner: str) -> None:
        self.client, self.name, self.owner = client, name, owner

    def aliases(self) -> dict[str, str]:
        """Version number by alias; empty where there is no such model."""
        from mlflow.exceptions import MlflowException

        try:
            return {k: str(v) for k, v in self.client.get_registered_model(self.name).aliases.items()}
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return {}
            raise

    def versions(self) -> dict[str, Version]:
        """All versions, complete or not, by number."""
        found: dict[str, Version] = {}
        token = None
        while True:
            page = self.client.search_model_versions(f"name = '{self.name}'", max_results=200, page_token=token)
            for v in page:
                found[str(v.version)] = Version(str(v.version), v.run_id or "", v.source or "", dict(v.tags))
            token = page.token
            if not token:
                return found

    def champion(self) -> Version | None:
        return self.versions().get(self.aliases().get(CHAMPION, ""))

    def find(self, identity: Mapping[str, str]) -> Version | None:
        """The newest complete version with these tags."""
        fits = [v for v in self.versions().values() if v.complete and identity.items() <= v.tags.items()]
        return max(fits, key=lambda v: int(v.number), default=None)

    def create(self, *, run: str, source: str, tags: Mapping[str, str], description: str) -> Version:
        """A new version, not complete yet. The store numbers versions, and gives no number twice."""
        self._ensure()
        told = {**tags, OWNER: self.owner}
        made = self.client.create_model_version(
            self.name, source, run, tags=told, description=description[:DESCRIPTION], await_creation_for=0
        )
        return Version(str(made.version), run, source, told)

    def complete(self, version: Version) -> None:
        """The version is whole: all that it needs is where it says."""
        self._tag(version.number, COMPLETE, "true")

    def mend(self) -> list[str]:
        """Put right what a killed process of this root left half-done; a sentence for each thing."""
        said: list[str] = []
        versions, aliases = self.versions(), self.aliases()
        for version in versions.values():
            if not version.complete and version.tags.get(OWNER) == self.owner:
                self.client.delete_model_version(self.name, version.number)
                said.append(f"version {version.number} of {self.name} was half made and is deleted")
        champion = versions.get(aliases.get(CHAMPION, ""))
        if champion is None or REPLACES not in champion.tags:
            return said
        with self._alone():
            said += self._mend_aliases(champion, versions)
        return said

    def promote(self, version: Version, *, expected: str | None, by: str, why: str) -> None:
        """Make a complete version the champion, and the former one, `expected`, the previous.

        Raises StageError, nothing moved, where the champion is no longer the one that the version was compared with.
        """
        assert version.number != expected
        with self._alone():
            now = self.aliases().get(CHAMPION)
            if now != expected:
                raise StageError(
                    f"the champion of {self.name} was {_named(expected)} and is {_named(now)} now: another promotion "
                    f"came between, and version {version.number} was not compared with it; promote again"
                )
            self._move(version.number, expected, by, why)

    def rollback(self, *, by: str, why: str) -> tuple[str, str]:
        """Swap champion and previous: (champion now, champion before). Done twice, all is as it was.

        Raises InputError where there is nothing to go back to.
        """
        self._require_previous()
        with self._alone():
            now, back = self._require_previous()
            self._move(back, now, by, why)
        return back, now

    def _require_previous(self) -> tuple[str, str]:
        """(champion, previous); InputError where one of them is missing."""
        aliases = self.aliases()
        now, back = aliases.get(CHAMPION), aliases.get(PREVIOUS)
        if now is None or back is None or now == back:
            what = f"no champion before version {now}" if now else "no champion"
            raise InputError(f"the registered model {self.name} has {what} to go back to; MLflow lists its versions")
        return now, back

    def _move(self, to: str, former: str | None, by: str, why: str) -> None:
        """The order is what makes a kill harmless: who is replaced, `previous`, `champion`, then what people read."""
        self._tag(to, REPLACES, former or "")
        if former is not None:
            self.client.set_registered_model_alias(self.name, PREVIOUS, former)
        self.client.set_registered_model_alias(self.name, CHAMPION, to)
        if (found := self.aliases().get(CHAMPION)) != to:
            raise TrackingError(f"the champion of {self.name} was set to {_named(to)} and is {_named(found)}")
        self._note(to, former, _now(), by, why)

    def _note(self, to: str, former: str | None, at: str, by: str, why: str) -> None:
        """Who, when and why, on both versions; the champion has no `until`."""
        if former:
            self._tag(former, UNTIL, at)
        for name, value in ((SINCE, at), (BY, by), (WHY, why)):
            self._tag(to, name, value)
        self.client.delete_model_version_tag(self.name, to, UNTIL)  # nothing where there is none

    def _mend_aliases(self, champion: Version, versions: Mapping[str, Version]) -> Iterator[str]:
        """`previous` is what the champion replaced, and the champion's tags say since when it is."""
        aliases = self.aliases()
        if aliases.get(CHAMPION) != champion.number:
            return  # another root moved it while we waited: it is not ours to mend
        former = champion.tags[REPLACES]
        if aliases.get(PREVIOUS, "") != former and (former in versions or not former):
            if former:
                self.client.set_registered_model_alias(self.name, PREVIOUS, former)
            else:
                self.client.delete_registered_model_alias(self.name, PREVIOUS)
            yield f"a promotion to {self.name} was cut short; previous is {_named(former or None)} again"
        if SINCE not in champion.tags or UNTIL in champion.tags:
            self._note(
                champion.number, former or None, _now(), "unknown", "a promotion that was cut short; noted later"
            )
            yield f"version {champion.number} of {self.name} became champion in a promotion that was cut short"

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the aliases against other roots. Steps back and tries again while another's flag is up."""
        own = FLAG + self.owner
        while True:
            self.client.set_registered_model_tag(self.name, own, uuid.uuid4().hex)
            try:
                if not self._flags():
                    yield
                    return
            finally:
                self.client.delete_registered_model_tag(self.name, own)
            self._wait()

    def _wait(self) -> None:
        """Until no other's flag is up, one of a killed process taken down; then a moment by chance."""
        seen, since = self._flags(), time.monotonic()
        while seen:
            time.sleep(LOOK)
            found = self._flags()
            if found != seen:
                seen, since = found, time.monotonic()
            elif time.monotonic() - since > LEASE:
                for name in seen:
                    self.client.delete_registered_model_tag(self.name, name)  # nothing where its owner was quicker
        time.sleep(random.uniform(0, LOOK))

    def _flags(self) -> dict[str, str]:
        """Flags of others that are up."""
        tags = self.client.get_registered_model(self.name).tags
        return {k: v for k, v in tags.items() if k.startswith(FLAG) and k != FLAG + self.owner}

    def _ensure(self) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self.client.create_registered_model(self.name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def _tag(self, number: str, name: str, value: str) -> None:
        self.client.set_model_version_tag(self.name, number, name, value)


def _named(number: str | None) -> str:
    return "no version" if number is None else f"version {number}"


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
