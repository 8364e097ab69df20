"""The app with all its commands, and ``main``, which runs it.

Results go to standard output. With ``--json``, the last line of it is one JSON object. Progress, warnings and
errors go to standard error. Exit codes: 0 done, 1 some of many recordings failed, 2 an input cannot be used,
130 interrupted.
"""

from __future__ import annotations

import logging
import sys

import cyclopts
from cyclopts import App, Parameter

from spikewise.cli.console import WarningsToConsole, fail, out
from spikewise.cli.export import export
from spikewise.cli.gui import gui
from spikewise.cli.help import EPILOGUE, SHORT_HELP, without_advanced_flag
from spikewise.cli.many import sort_many
from spikewise.cli.recordings import info, simulate
from spikewise.cli.results import curate, evaluate, report, validate
from spikewise.cli.sorting import pretrain, sort, train
from spikewise.cli.stream import stream
from spikewise.cli.waveforms import waveforms
from spikewise.core.errors import Interrupted, SpikewiseError
from spikewise.core.version import __version__

app = App(
    name="spikewise",
    help="Sort spikes with neural networks: learn the units from a few labelled spikes, then sort hours.",
    version=__version__,
    help_format="plaintext",
    suppress_keyboard_interrupt=False,  # main reports it
    default_parameter=Parameter(
        negative_iterable="", name_transform=lambda name: name.lower().replace("_", "-")
    ),
)

# In the order of the reference pages.
_JUDGING = (evaluate, validate, curate, report)
for command in (sort, train, pretrain, *_JUDGING, simulate, info, sort_many, stream, gui, waveforms):
    if command in (sort, train, sort_many):  # they take all settings of a sort
        app.command(command, help_formatter=SHORT_HELP, help_epilogue=EPILOGUE)
    else:
        app.command(command)
# By name, so that the package does not depend on them and loads them only when they are called.
app.command(
    "spikewise.papers.cli.papers:papers",
    name="papers",
    help="Run the experiments of the papers, with their rivals.",
)
app.command("spikewise.papers.cli.bench:bench", name="bench", help="Measure how fast the sorter is.")
app.command(export)


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    library, console = logging.getLogger("spikewise"), WarningsToConsole()
    library.addHandler(console)
    library.setLevel(logging.INFO)
    logging.captureWarnings(True)  # warnings of other libraries go to the log file, not to the screen
    logging.getLogger("py.warnings").addHandler(logging.NullHandler())
    arguments = without_advanced_flag(sys.argv[1:] if arguments is None else arguments)
    try:
        app(arguments, exit_on_error=False, print_error=False, console=out, result_action="return_value")
    except SpikewiseError as error:
        fail(str(error))
        return error.exit_code
    except cyclopts.CycloptsError as error:
        cause = error.__cause__
        command = " ".join(("spikewise", *(error.command_chain or ())))
        fail(str(cause) if isinstance(cause, SpikewiseError) else f"{error} See: {command} --help")
        return 2
    except KeyboardInterrupt:
        fail("Interrupted.")
        return Interrupted.exit_code
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    finally:
        library.removeHandler(console)
    return 0
