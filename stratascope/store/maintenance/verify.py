"""Check every byte of a store."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stratascope.datasets.image_files import image_path, read_image_file
from stratascope.errors import InvalidInputError, StoreError, UnreadError, out_of_memory
from stratascope.store.format.arrays import ArraySpec
from stratascope.store.format.block_checks import BlockFacts, checked_block
from stratascope.store.format.limits import parse_json
from stratascope.store.format.shards import decode_chunk, decode_file
from stratascope.store.format.tables import MOST_CHUNKS, as_numpy
from stratascope.store.io.create import known_digest
from stratascope.store.io.example_identity import hashed_images
from stratascope.store.io.overview import LENS, bytes_text
from stratascope.store.io.reader import ActivationStore
from stratascope.store.io.readout import read_readout, stored_files
from stratascope.store.io.shard_reader import ByteSource, byte_source

if TYPE_CHECKING:
    from zarr.abc.store import Store


@dataclass(frozen=True)
class Verification:
    """Result of checking a store."""

    name: str
    table: pd.DataFrame
    """array, files (checked), bytes, bad (files); row "store" is everything written at creation."""
    problems: pd.DataFrame
    """block (-1 for the whole store), array, file, problem."""
    written: int
    """Number of written shard blocks."""
    blocks: int

    @property
    def ok(self) -> bool:
        """Whether everything written is intact; see `complete` for unwritten blocks."""
        return self.problems.empty

    @property
    def complete(self) -> bool:
        """Whether every block is written."""
        return self.written == self.blocks

    @property
    def bad_blocks(self) -> list[int]:
        """Blocks with a problem, which `repair` unmarks."""
        return sorted({int(b) for b in self.problems["block"] if b >= 0})

    @property
    def beyond_repair(self) -> bool:
        """Whether something is damaged that extraction cannot write again."""
        return bool((self.problems["block"] < 0).any())

    def record(self) -> dict[str, Any]:
        """The summary as plain JSON."""
        return {
            "name": self.name,
            "ok": self.ok,
            "complete": self.complete,
            "blocks": self.blocks,
            "written_blocks": self.written,
            "bad_blocks": self.bad_blocks,
            "beyond_repair": self.beyond_repair,
            "arrays": self.table.to_dict("records"),
            "problems": self.problems.to_dict("records"),
        }

    def summary(self) -> str:
        """Lines of text: one for each array, one for each problem, the verdict."""
        table, problems = self.table, self.problems
        lines = [
            f"{array:<18} {files:>6} files {bytes_text(int(size)):>9}  {f'{bad} BAD' if bad else 'good'}"
            for array, files, size, bad in zip(table["array"], table["files"], table["bytes"], table["bad"], strict=True)
        ]
        for block, file, problem in zip(problems["block"], problems["file"], problems["problem"], strict=True):
            lines.append(f"block {block}: {file}: {problem}" if block >= 0 else f"{file}: {problem}")
        state = "complete" if self.complete else f"{self.written} of {self.blocks} blocks written"
        if self.ok and not self.complete:
            checked = "every number in the written blocks is what was written" if self.written else "there was no number to check"
            verdict = f"incomplete: {checked}; run the extract command again to write the missing blocks"
        elif self.ok:
            verdict = "every written number is what was written"
        elif self.bad_blocks:
            bad = ", ".join(map(str, self.bad_blocks))
            verdict = f"bad blocks: {bad}; `stratascope verify --repair` unmarks them, so that extraction fills them again"
        else:
            verdict = "damaged beyond repair: fetch it from where it came, or extract again"
        return "\n".join([*lines, f"{self.name}: {state}; {verdict}"])


def verify(
    target: str | Path | Store, *, images: str | Path | None = None, progress: Callable[[int, int], None] | None = None
) -> Verification:
    """Decode and check every written block, and check what was written at creation.

    Parameters
    ----------
    target
        Folder, zip, URL or Zarr store.
    images
        Folder of the images, to compare their SHA-256 with the store's.
    progress
        Called with (blocks done, blocks).

    Raises
    ------
    StoreError
        The store cannot be opened: its metadata are damaged, or it has another format or version.
    UnreachableError
        A server does not answer or refuses.
    """
    store = ActivationStore.open(target)
    check = _Check(store, byte_source(store.files_of))
    check.creation()
    check.lens()
    there = check.source.names("written/c")
    written = [b for b in range(store.layout.blocks) if (there is None or str(b) in there) and check.marker(b)]
    facts = check.facts() if written else None
    for done, block in enumerate(written):
        check.block(block, facts)
        if progress is not None:
            progress(done + 1, len(written))
    if images is not None:
        check.images(Path(images))
    problems = pd.DataFrame(check.problems, columns=["block", "array", "file", "problem"])
    bad = problems.groupby("array")["file"].nunique()
    rows = [(name, n, size, int(bad.get(name, 0))) for name, (n, size) in check.seen.items()]
    return Verification(
        store.name, pd.DataFrame(rows, columns=["array", "files", "bytes", "bad"]), problems, len(written), store.layout.blocks
    )


MOST_LISTED = 100
"""Most missing files listed per array."""


class _Check:
    """The state of one check."""

    def __init__(self, store: ActivationStore, source: ByteSource) -> None:
        self.store, self.source = store, source
        self.specs = store.layout.arrays()
        self.problems: list[tuple[int, str, str, str]] = []
        self.seen: dict[str, list[int]] = {"store": [0, 0], **{s.name: [0, 0] for s in self.specs if s.by_block}, "written": [0, 0]}

    def creation(self) -> None:
        """Metadata of every array and chunks written at creation."""
        root = parse_json(self.source.get("zarr.json") or b"{}", f"{self.store.name}: zarr.json")
        held = root.get(nested := "consolidated_metadata")  # of a group within: only the root's counts
        metadata = held.get("metadata") if isinstance(held, dict) else None
        if not isinstance(metadata, dict) or not metadata:
            self._problem(-1, "store", "zarr.json", "expected the consolidated metadata of all arrays, found none")
            return
        for path, expected in metadata.items():
            try:
                found = parse_json(self._bytes("store", f"{path}/zarr.json"), path)
                same = {k: v for k, v in found.items() if k != nested} == {k: v for k, v in expected.items() if k != nested}
            except UnreadError:  # what could not be read is not damaged
                raise
            except (StoreError, AttributeError):
                same = False
            if not same:
                self._problem(
                    -1, "store", f"{path}/zarr.json", "expected what the consolidated metadata say, found something else or nothing"
                )
        files: dict[str, bytes] = {}
        by_block = {s.name for s in self.specs if s.when != "creation"}
        for path, array in metadata.items():
            if array["node_type"] != "array" or path in by_block:
                continue
            try:
                keys = _chunk_keys(path, array)
            except (KeyError, TypeError, ValueError, ArithmeticError) as error:
                self._problem(-1, "store", "zarr.json", f"expected a shape and a grid of chunks for {path}, found none that fit: {error}")
                continue
            bad = 0
            for key in keys:
                try:
                    files[key] = self._bytes("store", key)
                except UnreadError:
                    raise
                except StoreError as error:
                    self._problem(-1, "store", key, str(error))
                    bad += 1
                    if bad == MOST_LISTED:
                        self._problem(-1, "store", path, f"expected {len(keys):,} files, found at least {bad} missing or empty")
                        break
            if bad:
                continue
            try:
                as_numpy(self.store.group[path])
            except UnreadError:
                raise
            except Exception as error:  # checksums and codecs fail in many ways
                if out_of_memory(error):
                    raise MemoryError(f"{self.store.name}: {path}") from error
                self._problem(-1, "store", path, f"expected values that decode, found: {error}")
        if not self.problems and known_digest(files) != self.store.known:
            self._problem(-1, "store", "zarr.json", "expected what was written at creation, found other values: something was rewritten")

    def lens(self) -> None:
        """Final norm and unembedding rows."""
        try:
            if read_readout(self.source, self.store.name) is not None:
                sizes = [len(data) for data in stored_files(self.source, self.store.name).values()]
                self.seen[LENS] = [len(sizes), sum(sizes)]
        except StoreError as error:
            if isinstance(error, UnreadError):
                raise
            self._problem(-1, LENS, LENS, str(error))

    def facts(self) -> BlockFacts | None:
        """What is known of all examples, None where it cannot be read."""
        store = self.store
        try:
            patches = store.patch_counts if "has_patches" in store else None
            return BlockFacts(range(store.layout.examples), store.n_tokens, store.read("position_present"), store.has_map, patches)
        except UnreadError:
            raise
        except Exception as error:  # reported by `creation`
            if out_of_memory(error):
                raise
            return None

    def marker(self, block: int) -> bool:
        """Whether a block is marked; a damaged marker is a problem, and its block not trusted."""
        spec = self.store.layout.array("written")
        key = f"written/c/{block}"
        if not self._exists(key):
            return False
        try:
            value = int(decode_chunk(spec, self._bytes("written", key), "the marker")[0])
        except UnreadError:
            raise
        except StoreError as error:
            self._problem(block, "written", key, str(error))
            return False
        if value not in (0, 1):
            self._problem(block, "written", key, f"expected 0 or 1, found {value}")
        return value == 1

    def block(self, block: int, facts: BlockFacts | None) -> None:
        """Every file of a marked block: checksums, shapes, and what the writer demands of values."""
        members = self.store.layout.block_examples(block)
        part = slice(members.start, members.stop)
        before = len(self.problems)
        values: dict[str, NDArray[Any]] = {}
        for spec in self.specs:
            if spec.by_block:
                if spec.mask and facts is None:  # no facts about it: `creation` reports that
                    continue
                held = None if facts is None or not spec.mask else facts.held(spec)[part]
                found = self._file(spec, block, len(members), held)
                if found is not None:
                    values[spec.name] = found
        if facts is None or len(self.problems) > before:
            return
        patches = None if facts.patches is None else facts.patches[part]
        own = BlockFacts(members, facts.n_tokens[part], facts.position_present[part], facts.has_map[part], patches)
        mean = values.pop("attention_mean", None)
        alone = mean is not None and "attention_rows" not in values
        try:
            layout = self.store.layout
            checked = checked_block(layout.subset(record=layout.record - {"attention_mean"}) if alone else layout, own, values)
        except InvalidInputError as error:
            name = str(error).partition(":")[0]
            array = name if name in values else "status"
            self._problem(block, array, self.store.layout.array(array).key(block), str(error))
            return
        for name, right in checked.items():
            stored = mean if name == "attention_mean" else values[name]
            if stored is not None and not np.array_equal(right, stored, equal_nan=right.dtype.kind == "f"):
                key = self.store.layout.array(name).key(block)
                self._problem(block, name, key, "expected fill where nothing is recorded, and means of rows, found other values")

    def images(self, folder: Path) -> None:
        """Files of images against the hashes that the store was made from."""
        examples = self.store.examples
        stated: Any = self.store.provenance.get("data")
        whole = stated.get("images") if isinstance(stated, dict) else None
        if "image_sha256" not in examples and not isinstance(whole, str):
            self._problem(-1, "images", str(folder), "expected hashes of images in the store, found none: they cannot be compared")
            return
        hashes, wanted = dict[str, str](), hashed_images(examples, stated)
        for name in sorted({name for name, _ in wanted}):
            try:
                hashes[name] = hashlib.sha256(read_image_file(image_path(folder, name))).hexdigest()
            except (OSError, ValueError) as error:
                self._problem(-1, "images", name, f"expected to read the image, found: {error}")
        for name, sha256 in sorted(wanted):
            if name in hashes and sha256 not in ("", hashes[name]):
                self._problem(-1, "images", name, "expected the image that was recorded, found another")
        if "image_sha256" not in examples and len(hashes) == examples["image"].nunique():
            total = hashlib.sha256("".join(f"{n}\0{h}\n" for n, h in hashes.items()).encode()).hexdigest()
            if total != whole:
                self._problem(-1, "images", str(folder), "expected the images that were recorded, found others (their joint hash differs)")

    def _file(self, spec: ArraySpec, block: int, examples: int, held: NDArray[np.bool_] | None) -> NDArray[Any] | None:
        key = spec.key(block)
        try:
            return decode_file(spec, self._bytes(spec.name, key), examples, held)
        except UnreadError:
            raise
        except StoreError as error:
            self._problem(block, spec.name, key, str(error))
            return None

    def _bytes(self, array: str, key: str) -> bytes:
        data = self.source.get(key)
        if data is None:
            raise StoreError("expected a file, found none")
        self.seen[array] = [self.seen[array][0] + 1, self.seen[array][1] + len(data)]
        if not data:
            raise StoreError("expected a file, found an empty one")
        return data

    def _exists(self, key: str) -> bool:
        try:
            return self.source.get(key) is not None
        except UnreadError:
            raise
        except StoreError:  # empty: there, and damaged
            return True

    def _problem(self, block: int, array: str, file: str, problem: str) -> None:
        self.problems.append((block, array, file, problem))
        self.source.forget(file if block >= 0 else None)


def _chunk_keys(path: str, array: dict[str, Any]) -> list[str]:
    """Files of a whole array that was written at creation."""
    chunk = array["chunk_grid"]["configuration"]["chunk_shape"]
    counts = [range(-(-n // c)) for n, c in zip(array["shape"], chunk, strict=True)]
    if math.prod(map(len, counts)) > MOST_CHUNKS:
        raise ValueError(f"more than {MOST_CHUNKS:,} chunks")
    return [f"{path}/c/{'/'.join(map(str, at))}" for at in itertools.product(*counts)]
