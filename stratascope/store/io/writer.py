"""Write shard blocks: lock, check, flush to disk, mark as written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from stratascope.errors import InvalidInputError, StoreError
from stratascope.store.format.block_checks import BlockFacts, checked_block
from stratascope.store.format.layout import StoreLayout
from stratascope.store.format.provenance import check_agreement, check_attributes
from stratascope.store.format.shards import encode_chunk, encode_file
from stratascope.store.format.tables import as_numpy
from stratascope.store.io.access import GuardedStore, open_root
from stratascope.store.io.bucket import Parts
from stratascope.store.io.remote_errors import UnreachableError
from stratascope.store.io.store_files import StoreFiles, place_of, store_files


class BlockWriter:
    """Writer of shard blocks into an existing store.

    Any number of processes may write concurrently: rank i of n takes the pending blocks b with b % n == i. A second writer of the same
    block is refused.

    Parameters
    ----------
    path
        Folder of the store, or its address in a bucket (s3, gs, az).

    Raises
    ------
    StoreError
        There is no store of this format and version, or it cannot be written.
    UnreachableError
        A server refuses or does not answer.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = place_of(path)
        root = open_root(GuardedStore(store_files(self.path).zarr()), str(path))
        attributes: dict[str, Any] = dict(root.attrs)
        self.layout: StoreLayout = check_attributes(attributes, str(path))
        """Shapes of the store."""
        self.provenance: dict[str, Any] = attributes["provenance"]
        """How the store was made."""
        self._specs = {s.name: s for s in self.layout.arrays()}
        self._n_tokens = as_numpy(root["n_tokens"])
        self._present = as_numpy(root["position_present"])
        self._has_map = as_numpy(root["has_map"])
        self._patches = as_numpy(root["has_patches"]) * as_numpy(root["grid"]).prod(1) if "has_patches" in self._specs else None
        self._files: StoreFiles = store_files(self.path, presence=True)

    def check_provenance(self, expected: Mapping[str, Any]) -> None:
        """Compare an expected provenance with the store's, without `provenance.VOLATILE`.

        Parameters
        ----------
        expected
            Provenance of what would be written.

        Raises
        ------
        ProvenanceMismatchError
            Naming every field that differs, with both values.
        """
        check_agreement(self.provenance, expected)

    def check_layout(self, expected: StoreLayout) -> None:
        """Compare an expected layout with the store's.

        Parameters
        ----------
        expected
            Layout of what would be written.

        Raises
        ------
        ProvenanceMismatchError
            Naming every field that differs, with both values.
        """
        check_agreement(self.layout.to_json(), expected.to_json(), "layout")

    def is_written(self, block: int) -> bool:
        """Whether a block is marked on disk."""
        self.layout.block_examples(block)
        return self._files.marked(block)

    def pending(self, rank: int = 0, of: int = 1) -> list[int]:
        """Blocks that are not marked yet and belong to this rank: those with block % of == rank.

        Raises
        ------
        InvalidInputError
            If `rank` is not below `of`.
        """
        if of < 1 or not 0 <= rank < of:
            raise InvalidInputError(f"expected a rank within 0..{of - 1} of at least one, found rank {rank} of {of}")
        marked = self._files.markers()
        return [b for b in range(rank, self.layout.blocks, of) if str(b) not in marked]

    def block_examples(self, block: int) -> range:
        """Numbers of the examples of a block."""
        return self.layout.block_examples(block)

    def write(self, block: int, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Write every array of a block, then its marker.

        Parameters
        ----------
        arrays
            All arrays that the layout writes by block, n examples each: residual (layer + 1, position, n, hidden),
            attention_rows (layer, n, head, token) with NaN beyond n_tokens, attention_maps (n, layer, token, token) uint8 as of
            `encode_maps`, answer_logits (n, choice), status (n,) codes, thumbnail (n, height, width, 3) uint8, ...; patch_residual
            (layer, held, patch, hidden) with the examples of has_patches alone, NaN beyond the cells of each image.
            Absent positions and examples whose status is not `recorded` become NaN, whatever is passed.

        Raises
        ------
        InvalidInputError
            An array is invalid; the message names layer, example and position.
        StoreError
            The block is written already or being written by another process, or the disk is full. The block then stays unmarked, and
            a second run writes it.
        UnreachableError
            A server refuses or does not answer; the block stays unmarked, too.
        """
        members = self.layout.block_examples(block)
        part = slice(members.start, members.stop)
        facts = BlockFacts(
            members,
            self._n_tokens[part],
            self._present[part],
            self._has_map[part],
            None if self._patches is None else self._patches[part],
        )
        values = checked_block(self.layout, facts, arrays)
        try:
            with self._files.claim(block) as check:
                if self._files.marked(block):
                    raise StoreError(
                        f"{self._files.name}: expected block {block} to be unwritten, found it marked: another process wrote it meanwhile; "
                        "run the same command again, or unmark it with `stratascope verify --repair` if it is damaged",
                        in_python="go on with pending()",
                    )
                self._files.put_all({self._specs[name].key(block): self._parts(name, array, facts) for name, array in values.items()})
                check()
                self._files.mark(block, encode_chunk(self._specs["written"], np.ones(1, np.uint8)))
        except UnreachableError as error:
            raise UnreachableError(f"{error.message}; block {block} stays unmarked, and is written by the next run") from error
        except OSError as error:
            raise StoreError(
                f"{self._files.name}: expected to write block {block}, found: {error}; it stays unmarked, blocks that are marked are safe: "
                "make room or fix permissions and run again"
            ) from error

    def _parts(self, name: str, array: NDArray[Any], facts: BlockFacts) -> Parts:
        spec = self._specs[name]
        held = facts.held(spec) if spec.mask else None
        return lambda: encode_file(spec, array, held)

    def close(self) -> None:
        """Release the writer's lock; later writes are not protected from removal as leftovers."""
        self._files.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_files"):
            self._files.close()

    def __repr__(self) -> str:
        return f"BlockWriter({str(self.path)!r}: {len(self.pending())} of {self.layout.blocks} blocks pending)"
