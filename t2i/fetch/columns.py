"""Columns: the types that a column of images or of captions may have in any table, and the values in it."""

from typing import Any


def check_columns(
    place: str, schema: Any, image_column: str | None, caption_column: str, parameter: str = "caption_column"
) -> None:
    """Checks that a table has the columns of the images and of the captions, and that they can hold them.

    Args:
        place: the table, for messages.
        schema: its Arrow schema.
        image_column: `fetch.source.image_column`; None if the table names image files.
        caption_column: the column of the captions.
        parameter: the parameter of `fetch.source` that names that column.

    Raises:
        ValueError: names the column, its type and the parameter.
    """
    images = "bytes, a struct of `bytes` and `path`, or a path"
    checks = [(parameter, caption_column, _holds_captions, "text, or lists of texts")]
    if image_column is not None:
        checks.insert(0, ("image_column", image_column, _holds_images, images))
    for named_by, name, holds, wanted in checks:
        given = f"{name!r} (`fetch.source.{named_by}`)"
        if name not in schema.names:
            raise ValueError(f"{place}: no column {given}; it has {', '.join(schema.names) or 'none'}")
        if not holds(kind := schema.field(name).type):
            raise ValueError(f"{place}: column {given} is of type {kind}; wanted {wanted}")


def values(column: Any) -> list[Any]:
    """Returns the values of an Arrow array. A byte of a text that is not UTF-8 becomes a lone surrogate, as in `open_text`."""
    try:
        found: list[Any] = column.to_pylist()
    except UnicodeDecodeError:
        return [_value(cell) for cell in column]
    return found


def _value(cell: Any) -> Any:
    if not cell.is_valid:
        return None
    if _is(cell.type, "struct"):
        return {name: _value(inner) for name, inner in cell.items()}
    if _is(cell.type, "list", "large_list", "fixed_size_list"):
        return [_value(inner) for inner in cell.values]
    cell = cell.value if hasattr(cell, "dictionary") else cell
    return cell.as_buffer().to_pybytes().decode(errors="surrogateescape") if _is(cell.type, *_TEXT) else cell.as_py()


def _holds_images(kind: Any) -> bool:
    if _is(kind, "struct"):
        checks = {"bytes": ("null", *_BYTES), "path": ("null", *_TEXT)}
        fields = [field for field in kind if field.name in checks]
        return bool(fields) and all(_is(field.type, *checks[field.name]) for field in fields)
    return _is(kind, *_BYTES, *_TEXT)


def _holds_captions(kind: Any) -> bool:
    if _is(kind, "list", "large_list", "fixed_size_list"):
        return _is(kind.value_type, "null", *_TEXT)
    return _is(kind, *_TEXT)


def _is(kind: Any, *names: str) -> bool:
    """Returns whether an Arrow type, or what a dictionary of it holds, has one of some names."""
    from pyarrow import types

    kind = kind.value_type if types.is_dictionary(kind) else kind
    return any(getattr(types, f"is_{name}")(kind) for name in names)


_TEXT = ("string", "large_string", "string_view")
_BYTES = ("binary", "large_binary", "binary_view")
