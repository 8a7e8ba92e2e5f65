"""The append-only record of what happened in a sweep: the only truth about it.

One event is one line of JSON with a time and a checksum. A driver's session opens a new segment,
`journal/000001.jsonl`, `000002.jsonl` and so on; replaying all segments in order gives every state that
anybody asks about. A last line without its end, torn by a kill, is skipped, and cut off by the next session; damage
anywhere else is refused.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from finetune_sweep import __version__
from finetune_sweep.durable import DurableFile, cut_off
from finetune_sweep.errors import StorageError
from finetune_sweep.events import Entry, Event, SessionStarted, decode, encode
from finetune_sweep.layout import Layout
from finetune_sweep.lock import Owner, read_owner
from finetune_sweep.record import replay


def read(layout: Layout) -> list[Entry]:
    """All entries of a sweep, in order; empty if there is none.

    What an older owner wrote into its segment after it had lost the lock is ignored: each session records the
    lengths of the segments before its own.

    Raises:
        StorageError: If a line is damaged, or a segment is gone or shorter than a later session found it; names the
            file, the line and what to do.
    """
    lengths: dict[str, int] = {}
    sessions: list[list[Entry]] = []
    for segment in reversed(layout.segments()):
        entries = _read_segment(segment, lengths.get(segment.name))
        if entries and isinstance(entries[0].event, SessionStarted):
            lengths = {**lengths, **entries[0].event.older_segments}
        sessions.append(entries)
    if missing := sorted(lengths.keys() - {segment.name for segment in layout.segments()}):
        raise StorageError(
            f"{layout.journal / missing[0]} is gone: the journal is not whole. Restore it from a copy."
        )
    return [entry for entries in reversed(sessions) for entry in entries]


def _read_segment(segment: Path, length: int | None) -> list[Entry]:
    content = segment.read_bytes()[:length]
    if length is not None and len(content) < length:
        raise StorageError(
            f"{segment} has {len(content)} bytes, a later session found {length}: the journal is not whole. Restore"
            " this file from a copy."
        )
    lines = content.splitlines(keepends=True)
    if length is None and lines and not lines[-1].endswith(b"\n"):
        lines.pop()  # torn by a kill, or still being written
    entries = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entries.append(decode(line))
        except (ValueError, KeyError, TypeError) as error:
            # A segment's first line says what the others are part of; MLflow knows the journal by the very first.
            blank = (
                ", or overwrite the line with as many spaces to lose only what it recorded; a trial without its end is"
                " trained again"
            )
            advice = f"Restore this file from a copy{blank if number > 1 else ''}."
            raise StorageError(f"{segment}:{number}: the journal is damaged ({error}). {advice}") from None
    return entries


def _repair(segment: Path) -> Iterator[str]:
    """Cuts a torn last line off a segment, and says so."""
    content = segment.read_bytes()
    length = content.rfind(b"\n") + 1
    if length < len(content):
        cut_off(segment, length)
        yield f"{segment}: the last line, {len(content) - length} bytes, was torn by a kill and is cut off"


class Journal:
    """The journal of a sweep that this process drives: replayed, and open for more.

    Attributes:
        layout: Whose journal it is.
        entries: Everything so far, in order; only ever grows.
        record: The state that follows from it.
        repaired: One line for each torn end of a segment that was cut off.
    """

    def __init__(self, layout: Layout, owner: Owner) -> None:
        """Replays what there is, cuts off what kills have torn, and opens a new segment.

        Raises:
            StorageError: If the journal is damaged.
        """
        self.layout = layout
        self.repaired = tuple(line for segment in layout.segments()[-1:] for line in _repair(segment))
        older = {segment.name: segment.stat().st_size for segment in layout.segments()}
        self.entries = read(layout)
        self.record = replay(self.entries)
        self._owner = owner
        self._file = DurableFile(layout.next_segment())
        self.append(SessionStarted(owner.token, owner.host, owner.pid, __version__, older))

    def append(self, *events: Event) -> None:
        """Writes events durably, then makes them visible in `entries` and `record`.

        Raises:
            StorageError: If they could not be written, or another driver has taken the sweep over.
        """
        if not events:
            return
        owner = read_owner(self.layout)
        if owner is not None and owner != self._owner:
            raise StorageError(
                f"{self.layout.root} was taken over by process {owner.pid} on {owner.host}; this one writes no more"
            )
        entries = [Entry(time.time(), event) for event in events]
        self._file.append(b"".join(encode(entry) for entry in entries))
        for entry in entries:
            self.entries.append(entry)
            self.record.apply(entry)

    def close(self) -> None:
        """Closes the segment."""
        self._file.close()
