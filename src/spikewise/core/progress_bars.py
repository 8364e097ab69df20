"""Progress shown in a terminal or a notebook as bars, and in a file as one line for each stage."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol, Self

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from spikewise.core.expected_time import RemainingTime
from spikewise.core.progress import ProgressCallback, silent

err = Console(stderr=True)
"""Standard error: bars and warnings share it, so that they do not overwrite each other."""

_active = threading.Lock()
"""Held while progress is shown: progress of what is called within it, or by another thread, is not shown."""
UPDATES_HZ = 4.0
"""Updates in a second of a terminal or a notebook; chosen by hand."""
_BAR_WIDTH = 24
_NAME_WIDTH = 26  # the longest name of a stage of a sort, so that bars do not jump
_SHORTEST_S = 0.05
"""A stage that was shorter gets no line of its own. Chosen by hand."""


class _Output(Protocol):
    """Where the progress is shown."""

    def line(self, text: str) -> None:
        """Show a line that stays."""

    def __enter__(self) -> Self:
        """Begin."""

    def __exit__(self, *error: Any) -> None:
        """End."""


class Display:
    """Takes the progress of stages; shows those that end as lines, and the one that runs as a bar.

    It is a callback of progress: see :data:`spikewise.core.progress.ProgressCallback`.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # a thread draws while another one tells
        self._time = RemainingTime()
        self._note = ""
        self._output: _Output | None = None

    def show_on(self, output: _Output) -> None:
        """Set where lines are shown."""
        self._output = output

    def __call__(self, stage: str, done: float, total: float, note: str = "") -> None:
        """Take the progress of a stage."""
        with self._lock:
            last, begun_s = self._note, self._time.stage_elapsed()
            ended = self._time.tell(stage, done, total)
            self._note = note
        self._say_ended(ended, begun_s, last)

    def expect(self, seconds: Mapping[str, float]) -> None:
        """Take the expected seconds of stages."""
        with self._lock:
            self._time.expect(seconds)

    def end(self) -> None:
        """End the stage that runs."""
        with self._lock:
            last, took = self._note, self._time.stage_elapsed()
            ended = self._time.end()
        self._say_ended(ended, took, last)

    def _say_ended(self, stage: str | None, seconds: float, note: str) -> None:
        if stage is not None and seconds >= _SHORTEST_S and self._output is not None:
            self._output.line(f"{stage}: {seconds:.1f} s" + (f" ({note})" if note else ""))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw the stage that runs, and all stages together."""
        with self._lock:
            clock, note = self._time, self._note
            stage, fraction, took = clock.stage, clock.stage_fraction(), clock.stage_elapsed()
            is_counted = clock.is_counted
            whole, left, elapsed = clock.fraction(), clock.remaining(), clock.elapsed
        table = Table.grid(padding=(0, 1))
        table.add_column(min_width=_NAME_WIDTH)
        for _ in range(4):
            table.add_column()
        if stage is not None:
            about = Text(f"{note}", overflow="ellipsis", no_wrap=True, style="dim")
            percent = _percent(fraction) if is_counted else ""
            table.add_row(stage, _bar(fraction), percent, _clock(took), about)
        if left is not None:
            rest = Text(f"about {_clock(left)} left", no_wrap=True)
            table.add_row("all together", _bar(whole), _percent(whole), _clock(elapsed), rest)
        yield table


def _bar(fraction: float) -> ProgressBar:
    return ProgressBar(1.0, min(1.0, fraction), width=_BAR_WIDTH)


def _percent(fraction: float) -> Text:
    return Text(f"{min(100, int(100 * fraction)):3d} %", no_wrap=True)


def _clock(seconds: float) -> str:
    """Return seconds as minutes and seconds, with hours if there are any."""
    whole = round(seconds)
    minutes = f"{whole // 60 % 60}:{whole % 60:02d}"
    return minutes if whole < 3600 else f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


class _Terminal:
    """Bars in a terminal, below the lines of the stages that ended."""

    def __init__(self, console: Console, display: Display):
        self._console = console
        self._live = Live(
            display,
            console=console,
            refresh_per_second=UPDATES_HZ,
            transient=True,
            redirect_stdout=sys.stdout.isatty(),  # results in a file or a pipe stay there
        )

    def line(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False)

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._live.__exit__(*error)


class _File:
    """Lines of the stages that ended."""

    def __init__(self, console: Console):
        self._console = console

    def line(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        """Do nothing."""


class _Notebook:
    """One output of a notebook cell, which is drawn again as time passes."""

    def __init__(self, display: Display):
        from IPython.display import display as show

        self._display, self._lines = display, list[str]()
        self._handle = show(self._content(), raw=True, display_id=True)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="spikewise-progress", daemon=True)

    def line(self, text: str) -> None:
        self._lines.append(text)

    def _content(self, is_over: bool = False) -> dict[str, str]:
        console = Console(file=None, width=100, force_terminal=False, force_jupyter=False)
        with console.capture() as captured:
            for line in self._lines:
                console.print(line, markup=False, highlight=False)
            if not is_over:
                console.print(self._display)
        return {"text/plain": captured.get()}

    def _run(self) -> None:
        while not self._stop.wait(1 / UPDATES_HZ):
            self._handle.update(self._content(), raw=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stop.set()
        self._thread.join()
        self._handle.update(self._content(is_over=True), raw=True)


@contextmanager
def progress_bars(console: Console | None = None) -> Iterator[ProgressCallback]:
    """Show the progress on standard error: bars in a terminal, one line for each stage in a file.

    Each stage that ends leaves a line with its seconds. In a terminal or a notebook, the stage that runs has
    a bar, and so have all stages together, with the time left.
    """
    if not _active.acquire(blocking=False):
        yield silent
        return
    try:
        with _showing(console or err) as display:
            yield display
    finally:
        _active.release()


@contextmanager
def _showing(console: Console) -> Iterator[Display]:
    output: _Output
    display = Display()
    if in_notebook():
        output = _Notebook(display)
    elif console.is_terminal:
        output = _Terminal(console, display)
    else:
        output = _File(console)
    display.show_on(output)
    with _held(console), output:
        try:
            yield display
        finally:
            display.end()


@contextmanager
def _held(console: Console) -> Iterator[None]:
    """Let a console write to the stream that it has now, even while another sorter's output goes to a log."""
    earlier = console._file  # None: whatever sys.stderr is
    console.file = console.file
    try:
        yield
    finally:
        console._file = earlier


def in_notebook() -> bool:
    """Return whether this process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and getattr(shell, "kernel", None) is not None


@contextmanager
def shown(progress: ProgressCallback | bool | None) -> Iterator[ProgressCallback]:
    """Yield the callback for the `progress` of a function of the Python interface.

    Parameters
    ----------
    progress : callable, bool or None
        A callback of its own; False: none; None: bars in a terminal or a notebook, nothing elsewhere; True:
        like None, and lines elsewhere.
    """
    chosen: AbstractContextManager[ProgressCallback]
    if progress is False or (progress is None and not (err.is_terminal or in_notebook())):
        chosen = nullcontext(silent)
    elif progress is None or progress is True:
        chosen = progress_bars()
    else:
        chosen = nullcontext(progress)
    with chosen as callback:
        yield callback
