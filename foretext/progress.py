"""Progress for people: a bar on a terminal, a plain line now and then elsewhere (both on stderr)."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

PLAIN_EVERY = 10.0  # seconds between plain lines

console = Console(stderr=True, highlight=False, soft_wrap=True)


@contextlib.contextmanager
def progress(what: str, total: float | None) -> Iterator[Callable[..., None]]:
    """Yield `advance(amount=1, note="")`, which moves the bar (or prints a plain line every ten seconds).

    Args:
        what: what is being done, shown at the left ("embedding documents").
        total: how many units there are; None if unknown.
    """
    if console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
                   TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[note]}"))
        with Progress(*columns, console=console) as bar:
            task = bar.add_task(what, total=total, note="")

            def advance(amount: float = 1, note: str | None = None) -> None:
                bar.update(task, advance=amount, **({} if note is None else {"note": note}))

            yield advance
        return

    start = last = time.monotonic()
    done = 0.0

    def advance(amount: float = 1, note: str = "") -> None:
        nonlocal done, last
        done += amount
        now = time.monotonic()
        if now - last >= PLAIN_EVERY:
            last = now
            share = f"{done:,.0f}" if total is None else f"{done:,.0f}/{total:,.0f}"
            left = "" if not total or not done else f", {duration((now - start) * max(total - done, 0) / done)} left"
            print(f"{what}: {share} in {duration(now - start)}{left}{'  ' + note if note else ''}", file=sys.stderr, flush=True)

    yield advance


def duration(seconds: float) -> str:
    """`75` -> `1m15s`."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds}s"
    minutes, seconds = divmod(seconds, 60)
    return f"{minutes}m{seconds:02d}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}m"
