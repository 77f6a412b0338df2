"""`Result`: one frozen dataclass per kind of result, with schema, file, summary and figure."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, dataclass_transform

import pandas as pd
from numpy.typing import NDArray

from stratascope.figures.drawing import new_figure
from stratascope.figures.style import paper_style
from stratascope.results.file import ResultFile, read_file, write_file
from stratascope.results.locations import file_name
from stratascope.results.schema import ArraySchema, ResultSchema, TableSchema
from stratascope.store import choice_of, choice_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from stratascope.store import ActivationStore

KINDS: dict[str, type[Result]] = {}
"""Kind -> class of the result classes imported so far; `registry.result_class` imports the others."""
_STORED = "stored"
CHOICE = {"only?": list[str]}
"""Schema of the attribute for the selection of examples: COLUMN=VALUE."""


@dataclass(frozen=True)
class _Stored:
    """Storage of a field in the results file."""

    schema: ArraySchema | TableSchema
    name: str
    optional: bool = False


def array_field(kind: str, dims: str, *, name: str = "", default: Any = MISSING) -> Any:
    """Declare a field that the file stores as an array.

    Parameters
    ----------
    kind
        text, int, float, share (0 to 1, NaN where unknown) or bool.
    dims
        Space-separated names of the dimensions. A dimension has one size in all fields of a result.
    name
        Name in the file; that of the field by default.
    default
        None: a file may lack it, and the field is then None.
    """
    return field(metadata={_STORED: _Stored(ArraySchema(kind, tuple(dims.split())), name, default is None)}, default=default)


def table_field(schema: TableSchema, *, name: str = "") -> Any:
    """Declare a field that the file stores as a table.

    Parameters
    ----------
    schema
        Columns of the table (`schema.columns`).
    name
        Name in the file; that of the field by default.
    """
    return field(metadata={_STORED: _Stored(schema, name)})


@dataclass_transform(eq_default=False, frozen_default=True, field_specifiers=(array_field, table_field, field))
class Result:
    """Base class of all results. A subclass is a frozen dataclass whose fields declare their storage.

    A subclass names its kind and the schema of its attributes in the class statement, and declares its fields with `array_field` and
    `table_field`::

        class AttentionShare(Result, kind="attention_share", schema={"store": str, "weighing": str}):
            values: NDArray[np.float32] = array_field("share", "example layer head part", name="share")
            attributes: Mapping[str, Any]

    The base class provides `save`, `load` with a check of the schema, `repr` and the notebook view. The subclass defines `summary`,
    `plot`, `to_frame` and `options`. The registry knows every subclass, so that report, command line and viewer need no other entry.
    """

    kind: ClassVar[str] = ""
    """Name of the kind in files."""
    command: ClassVar[str] = ""
    """Command that computes it, such as `share`."""
    file_prefix: ClassVar[str] = ""
    """Prefix of its file names; the command by default."""
    selects_examples: ClassVar[bool] = False
    """Whether it covers only some examples by design: requested ones, or those with knockouts."""
    _attributes_schema: ClassVar[Mapping[str, Any]] = {}
    _rules: ClassVar[tuple[Any, ...]] = ()

    attributes: Mapping[str, Any]

    def __init_subclass__(
        cls,
        *,
        kind: str = "",
        schema: Mapping[str, Any] | None = None,
        rules: tuple[Any, ...] = (),
        command: str = "",
        prefix: str = "",
    ) -> None:
        super().__init_subclass__()
        dataclass(frozen=True, eq=False, repr=False)(cls)
        if not kind:
            return
        assert kind not in KINDS, f"two classes of kind {kind!r}"
        cls.kind, cls.command, cls.file_prefix = kind, command, prefix or command
        cls._attributes_schema, cls._rules = schema or {}, rules
        KINDS[kind] = cls

    # -- file ----------------------------------------------------------------------------------------------------------------------

    @classmethod
    def schema(cls) -> ResultSchema:
        """The schema of the file: attributes, tables and arrays, as `load` checks them."""
        stored = [s for _, s in _stored(cls)]
        tables = {s.name: s.schema for s in stored if isinstance(s.schema, TableSchema)}
        arrays = {f"{s.name}?" if s.optional else s.name: s.schema for s in stored if isinstance(s.schema, ArraySchema)}
        return ResultSchema(cls._attributes_schema, tables, arrays, cls._rules)

    def contents(self) -> ResultFile:
        """Contents that `save` writes: the fields by their names in the file."""
        tables: dict[str, pd.DataFrame] = {}
        arrays: dict[str, tuple[tuple[str, ...], NDArray[Any]]] = {}
        for name, stored in _stored(type(self)):
            value = getattr(self, name)
            if isinstance(stored.schema, TableSchema):
                tables[stored.name] = value
            elif value is not None:
                arrays[stored.name] = (stored.schema.dims, value)
        return ResultFile(self.kind, tables, arrays, dict(self.attributes))

    @classmethod
    def from_contents(cls, file: ResultFile) -> Self:
        """The result whose `contents` are a results file's."""
        values: dict[str, Any] = {
            name: file.tables[stored.name] if isinstance(stored.schema, TableSchema) else file.arrays[stored.name][1]
            for name, stored in _stored(cls)
            if not stored.optional or stored.name in file.arrays
        }
        return cls(**{**values, "attributes": dict(file.attributes)})

    def save(self, path: str | Path) -> None:
        """Write the result to one file atomically; equal results give equal bytes.

        Raises
        ------
        StoreError
            The file cannot be written.
        """
        write_file(path, self.contents())

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read the result that `save` wrote.

        Raises
        ------
        StoreError
            The file is missing or damaged, is of another kind, or does not match the schema.
        """
        return cls.from_contents(read_file(path, cls.schema(), cls.kind))

    # -- display ------------------------------------------------------------------------------------------------------------------

    @property
    def options(self) -> Mapping[str, Any]:
        """Parameters of the Python function that computed the result, without the store; the report derives commands from them."""
        return {}

    def summary(self) -> str:
        """Lines of text that the command prints."""
        raise NotImplementedError

    def to_frame(self) -> pd.DataFrame:
        """Numbers of the figure as one table."""
        raise NotImplementedError

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the result.

        Parameters
        ----------
        ax
            Axes to draw on; a new figure's by default.
        """
        raise NotImplementedError

    def figure(self, store: ActivationStore | None = None) -> Figure | None:
        """Figure that the command saves, or None.

        Parameters
        ----------
        store
            Store of the result, for figures with its images.
        """
        if type(self).plot is Result.plot:
            return None
        with paper_style():
            figure, (ax,) = new_figure(1, width=4.6, height=2.9)
            self.plot(ax)
            if ax.get_legend() is None and ax.get_legend_handles_labels()[0]:
                ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
        return figure

    @property
    def only(self) -> tuple[str, ...]:
        """COLUMN=VALUE that selected its examples; () for all."""
        return choice_of(self.attributes)

    @property
    def example_count(self) -> int | None:
        """Number of examples of the result, or None if unknown."""
        return _sizes(self).get("example")

    @property
    def name_parts(self) -> tuple[str | None, ...]:
        """Parts of the file name that differ between runs of the command, such as the weighting and the selection of examples."""
        return self.only

    @property
    def file_name(self) -> str:
        """Name of its files without the ending."""
        return file_name(self.file_prefix, *self.name_parts)

    @property
    def _heading(self) -> str:
        """First line of `repr` and of the notebook view."""
        sizes = [f"{dim} {size}" for dim, size in _sizes(self).items()]
        return f"{type(self).__name__} ({', '.join(sizes)})" if sizes else type(self).__name__

    def __repr__(self) -> str:
        return "\n  ".join([self._heading, *self.summary().splitlines()])

    def _repr_html_(self) -> str:
        parts = [f"<b>{html.escape(self._heading)}</b>", f"<pre>{html.escape(self.summary())}</pre>"]
        if type(self).plot is not Result.plot:
            parts.append(_picture(self, self._heading))
        parts.append(self.to_frame().to_html(index=False, max_rows=12, float_format="{:.3g}".format, escape=True, border=0))
        return "<div>" + "".join(parts) + "</div>"


def new_axes(ax: Axes | None, *, width: float = 4.6, height: float = 2.9) -> Axes:
    """The axes themselves, or those of a new pyplot figure, which notebooks and scripts show."""
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(width, height), layout="constrained")[1]


def titled(title: str, only: Sequence[str]) -> str:
    """Title of a figure with the selection of examples in parentheses."""
    return f"{title} ({choice_text(only)})" if only else title


def _picture(result: Result, alt: str) -> str:
    figure, (ax,) = new_figure(1, width=4.6, height=2.5)
    buffer = io.BytesIO()
    with paper_style():
        result.plot(ax)
        if ax.get_legend() is None and ax.get_legend_handles_labels()[0]:
            ax.legend(loc="best")
        figure.savefig(buffer, format="png", dpi=110)
    code = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{html.escape(alt, quote=True)}" src="data:image/png;base64,{code}">'


def _stored(cls: type[Result]) -> Iterator[tuple[str, _Stored]]:
    for one in fields(cls):  # type: ignore[arg-type]
        if (stored := one.metadata.get(_STORED)) is not None:
            yield one.name, replace(stored, name=stored.name or one.name)


def _sizes(result: Result) -> dict[str, int]:
    found: dict[str, int] = {}
    for name, stored in _stored(type(result)):
        value = getattr(result, name)
        if isinstance(stored.schema, TableSchema):
            if stored.schema.dim:
                found.setdefault(stored.schema.dim, len(value))
        elif value is not None:
            found |= dict(zip(stored.schema.dims, value.shape, strict=True))
    return {dim: size for dim, size in found.items() if dim.isidentifier()}
