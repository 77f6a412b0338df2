"""Where batches were halved because memory ran out: kept in the store, so that a resumed run makes the same batches and the same bytes."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from stratascope.errors import StoreError
from stratascope.store.format.json_schema import record_mismatch
from stratascope.store.io.store_files import inside, store_files

FOLDER = "written/halvings"
"""Where they lie: inside an array's folder, where no Zarr reader looks for groups."""

Work = Literal["capture", "knockouts", "interventions", "answers"]


@dataclass(frozen=True)
class Halving:
    """From a place on, forward passes of one process have fewer tokens."""

    work: Work
    block: int
    place: int
    """Examples of the block, in the order of the run, that came before."""
    tokens: int
    """Tokens in a forward pass, at most."""

    def reaches(self, work: Work, block: int, place: int) -> bool:
        """Whether work on an example comes after it."""
        return work == self.work and (block, place) >= (self.block, self.place)


@dataclass
class Halvings:
    """The halvings of all processes that filled a store.

    A process that takes every N-th block obeys the halvings of processes whose blocks it takes over: those apply to the blocks of the
    process that halved, and to no other.

    Parameters
    ----------
    rank, of
        This process takes the blocks b with b % of == rank.
    """

    rank: int = 0
    of: int = 1
    by_shard: dict[tuple[int, int], list[Halving]] = field(default_factory=dict)
    """(rank, of) -> halvings of that process, in the order in which they happened."""
    path: str | Path | None = None
    """Folder or address of the store; None: not created yet."""

    def limit(self, work: Work, block: int, place: int, tokens: int) -> int:
        """Tokens in a forward pass, at most, for an example of a block: `tokens`, or less where memory ran out before."""
        kept = (
            each.tokens
            for (rank, of), halvings in self.by_shard.items()
            if block % of == rank
            for each in halvings
            if each.reaches(work, block, place)
        )
        return min([tokens, *kept])

    def add(self, halving: Halving) -> None:
        """Note a halving of this process; written before its next forward pass, if the store exists."""
        self.by_shard.setdefault((self.rank, self.of), []).append(halving)
        self._write()

    def keep_in(self, store: str | Path) -> None:
        """Write them into a store that now exists, before its first block, and read those of other processes."""
        if self.path is None:
            self.path = store
            self.by_shard = read_halvings(store) | self.by_shard
            self._write()

    def _write(self) -> None:
        own = self.by_shard.get((self.rank, self.of))
        if self.path is not None and own:
            text = json.dumps([asdict(each) for each in own], separators=(",", ":"))
            store_files(self.path).put_all({f"{FOLDER}/{self.rank}-of-{self.of}.json": lambda: [text.encode()]})


def read_halvings(store: str | Path) -> dict[tuple[int, int], list[Halving]]:
    """(rank, of) -> halvings that a store keeps.

    Parameters
    ----------
    store
        Folder or address of the store.

    Raises
    ------
    StoreError
        If a file is damaged.
    """
    found, files = {}, store_files(store)
    for name, data in files.files_in(FOLDER).items():
        if not name.endswith(".json"):
            continue
        try:
            rank, _, of = name.removesuffix(".json").partition("-of-")
            rows = json.loads(data.decode("utf-8"))
            schema = {"work": Literal["capture", "knockouts", "interventions", "answers"], "block": int, "place": int, "tokens": int}
            if not isinstance(rows, list) or any(record_mismatch(row, schema, "halving") for row in rows):
                raise TypeError("other fields")
            found[int(rank), int(of)] = [Halving(**row) for row in rows]
        except (ValueError, TypeError) as error:
            raise StoreError(
                f"{inside(store, FOLDER)}/{name}: expected where an earlier run halved its batches, found a file that says something else "
                f"({error}); remove it: the numbers of the remaining blocks may then differ in their last digits from those of an "
                "uninterrupted run"
            ) from error
    return found
