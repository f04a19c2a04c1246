"""CSV tables and plain lists of a source, read so that an error can name file, row, column and value."""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ssl_core.errors import DataError, nearest

_DELIMITERS = ",;\t"
_BROKEN = (EOFError, zlib.error, UnicodeDecodeError)


@dataclass(frozen=True, kw_only=True)
class Table:
    """A CSV with a header. Rows are counted as an editor counts lines: the header is row 1."""

    path: Path
    header: tuple[str, ...]
    rows: tuple[list[str], ...]
    numbers: tuple[int, ...]  # the row number of each of `rows`; blank lines are left out

    def __len__(self) -> int:
        return len(self.rows)

    def has(self, name: str) -> bool:
        return _plain(name) in map(_plain, self.header)

    def column(self, name: str, *, setting: str | None = None) -> list[str]:
        """The values of the column, stripped of spaces around them; `setting` is the key that named it."""
        places = [i for i, known in enumerate(self.header) if _plain(known) == _plain(name)]
        by = f" ({setting})" if setting else ""
        if not places:
            raise DataError(f"{self.path} has no column {name!r}{by}{nearest(name, filter(None, self.header))}")
        if len(places) > 1:
            raise DataError(f"{self.path} has {len(places)} columns {name!r}{by}; rename all but one")
        at = places[0]
        for i, row in enumerate(self.rows):
            if len(row) <= at:
                raise self.error(i, f"has {len(row)} values, and so none in column {name!r}; fill it in")
        return [row[at].strip() for row in self.rows]

    def error(self, index: int, what: str) -> DataError:
        """The error of one of `rows`."""
        return DataError(f"{self.path}, row {self.numbers[index]}: {what}")


def read(path: Path) -> Table:
    """The CSV at `path` (UTF-8, also with a byte-order mark or gzipped), separated by comma, semicolon or tab.

    DataError where it is missing, no text, without rows, or where a row has more values than the header.
    """
    text = read_text(path)
    delimiter = max(_DELIMITERS, key=text.partition("\n")[0].count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    lines: list[tuple[int, list[str]]] = []
    try:
        for line in reader:
            if any(value.strip() for value in line):
                lines.append((reader.line_num, line))
    except csv.Error as error:
        raise DataError(f"{path}, row {reader.line_num}: {error}; save it again as a plain CSV") from error
    if len(lines) < 2:
        raise DataError(f"{path} has no rows below its header; one row an image is needed")
    header = tuple(name.strip() for name in lines[0][1])
    for number, line in lines[1:]:
        if any(value.strip() for value in line[len(header) :]):
            raise DataError(
                f"{path}, row {number}: has {len(line)} values, the header {len(header)}; quote values that hold "
                f"{delimiter!r}"
            )
    return Table(
        path=path,
        header=header,
        rows=tuple(line for _, line in lines[1:]),
        numbers=tuple(number for number, _ in lines[1:]),
    )


def words(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line number, words) of each line of a list that is separated by spaces; blank lines are left out."""
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if found := line.split():
            yield number, found


def read_text(path: Path) -> str:
    """The file's text without a byte-order mark; unpacked where its name ends in .gz."""
    try:
        content = path.read_bytes()
        return (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8-sig")
    except _BROKEN as error:
        what = "is no UTF-8 text" if isinstance(error, UnicodeDecodeError) else "is cut short or no gzip file"
        raise DataError(f"{path} {what} ({error}); copy it again, or save it as UTF-8") from error
    except gzip.BadGzipFile as error:
        raise DataError(f"{path} is no gzip file ({error}); copy it again") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); check that it is there, and its rights") from error


def one_of(folder: Path, names: Sequence[str], *, what: str) -> Path:
    """The first of `names` that is a file in `folder`; DataError lists them where none is."""
    found = next((folder / name for name in names if (folder / name).is_file()), None)
    if found is None:
        what = f"has no {what}" if folder.is_dir() else f"is no folder, so it has no {what}"
        raise DataError(f"{folder} {what}; looked for {', '.join(names)}")
    return found


def _plain(name: str) -> str:
    return name.strip().casefold()
