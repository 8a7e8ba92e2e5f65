"""The command line: one short function a command.

A fault of the user's is one line on standard error, never a traceback. Heavy libraries are imported by the
commands that need them, so that `--help`, `status` and the checking of a file are quick.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, NoReturn, ParamSpec

import typer

from finetune_sweep import __version__, display, report, yamlio
from finetune_sweep.errors import SweepError, UserError
from finetune_sweep.journal import read
from finetune_sweep.layout import Layout, parse_storage
from finetune_sweep.lock import is_locked
from finetune_sweep.plan import check, make_plan
from finetune_sweep.record import replay
from finetune_sweep.render import render_plan, render_table
from finetune_sweep.spec import Sweep
from finetune_sweep.sweepfile import load_sweep

P = ParamSpec("P")

app = typer.Typer(
    name="finetune_sweep",
    help="Hyperparameter sweeps for fine-tuning: one YAML file in, the best checkpoint out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

SweepFile = Annotated[Path, typer.Argument(metavar="SWEEP", help="The YAML file of the sweep.")]
Sets = Annotated[
    list[str],
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Override a setting of the file; keys dotted, repeatable."
    ),
]
Storage = Annotated[
    str | None, typer.Option(metavar="URI", help="The folder that holds sweeps [default: runs].")
]
TrackingUri = Annotated[
    str | None,
    typer.Option(metavar="URI", help="Where MLflow keeps the record [default: sqlite:///mlflow.db]."),
]
Cache = Annotated[Path | None, typer.Option(metavar="DIR", help="The folder for what can be computed again.")]
Address = Annotated[
    str | None, typer.Option(metavar="ADDRESS", help="A running Ray cluster; default: this machine.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def main() -> NoReturn:
    """Runs the command line, and ends the process with the exit code that is documented for what happened."""
    app()
    sys.exit(0)


def _exits(command: Callable[P, int]) -> Callable[P, None]:
    """Turns a command's result, or an error of the package, into the exit code."""

    @wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            code = command(*args, **kwargs)
        except SweepError as error:
            print(error, file=sys.stderr)
            code = error.exit_code
        except KeyboardInterrupt:
            code = 130
        raise typer.Exit(code)

    return wrapped


@app.command()
@_exits
def init(
    data: Annotated[
        Path, typer.Argument(metavar="DATA", help="A csv, tsv, json, jsonl or parquet file, or a folder.")
    ],
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What to write [default: NAME.yaml].")
    ] = None,
) -> int:
    """Look at data and write a commented sweep for it."""
    from finetune_sweep.starter import write_sweep

    written = write_sweep(data, output)
    print(f"wrote {written}; next: python -m finetune_sweep run {written}")
    return 0


@app.command()
@_exits
def run(
    sweep: SweepFile,
    sets: Sets = [],  # noqa: B006 - typer copies it
    storage: Storage = None,
    tracking_uri: TrackingUri = None,
    cache: Cache = None,
    address: Address = None,
) -> int:
    """Train what is missing, and promote the best trial. Again: resume, or after an edit, extend."""
    from finetune_sweep import run as session

    return session.run(_load(sweep, sets, storage, tracking_uri, cache), address, _command())


@app.command()
@_exits
def plan(
    sweep: SweepFile,
    sets: Sets = [],  # noqa: B006 - typer copies it
    storage: Storage = None,
    tracking_uri: TrackingUri = None,
    cache: Cache = None,
    as_json: Json = False,
) -> int:
    """Show what `run` would do: trials, what they share, what is done, what is trained."""
    from finetune_sweep import outlook

    loaded = _load(sweep, sets, storage, tracking_uri, cache)
    record = replay(read(_layout(loaded)))
    view = outlook.look(make_plan(loaded, record), record)
    print(json.dumps(view.to_json(), indent=1)) if as_json else display.show(render_plan(view.lines()))
    return 0


@app.command()
@_exits
def status(
    sweep: SweepFile,
    sets: Sets = [],  # noqa: B006 - typer copies it
    storage: Storage = None,
    tracking_uri: TrackingUri = None,
    cache: Cache = None,
    as_json: Json = False,
) -> int:
    """Show the table of trials as of now, from the journal."""
    loaded = _load(sweep, sets, storage, tracking_uri, cache, deep=False)
    layout = _layout(loaded)
    view = report.status(replay(read(layout)), loaded.name, is_locked(layout))
    print(json.dumps(view.to_json(), indent=1)) if as_json else display.show(render_table(view))
    return 0


@app.command()
@_exits
def promote(
    sweep: SweepFile,
    sets: Sets = [],  # noqa: B006 - typer copies it
    storage: Storage = None,
    tracking_uri: TrackingUri = None,
    cache: Cache = None,
    address: Address = None,
    trial: Annotated[
        str | None, typer.Option(metavar="KEY", help="Promote this trial instead of the best.")
    ] = None,
    again: Annotated[bool, typer.Option(help="Read the test split again; the model card says so.")] = False,
    dry_run: Annotated[bool, typer.Option(help="Verify, and change nothing.")] = False,
    rollback: Annotated[
        bool, typer.Option(help="Move the champion's alias back to the champion before.")
    ] = False,
) -> int:
    """Verify the winner, read the test split once, and put a complete model into best/."""
    from finetune_sweep import run as session
    from finetune_sweep.promote import Options

    loaded = _load(sweep, sets, storage, tracking_uri, cache)
    if rollback:
        return session.rollback(loaded)
    return session.promote_only(loaded, address, Options(trial, again, dry_run, _command()))


@app.command()
@_exits
def reproduce(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="The folder of a promoted model, such as runs/NAME/best.")
    ],
) -> int:
    """Train a promoted model again from the lock beside it, and say how near the result is."""
    from finetune_sweep import reproduce as again

    again.reproduce(folder, display.say)
    return 0


@app.command()
@_exits
def submit(
    sweep: SweepFile,
    address: Annotated[
        str, typer.Option(metavar="URL", help="The dashboard of a Ray cluster: http://HOST:8265.")
    ],
    sets: Sets = [],  # noqa: B006 - typer copies it
    storage: Storage = None,
    tracking_uri: TrackingUri = None,
    cache: Cache = None,
    shared: Annotated[
        list[Path],
        typer.Option(
            metavar="DIR", help="A folder that all nodes see too: nothing in it is sent; repeatable."
        ),
    ] = [],  # noqa: B006 - typer copies it
    stop: Annotated[
        bool, typer.Option("--stop", help="Stop the sweep's job; submit goes on from there.")
    ] = False,
) -> int:
    """Run on a cluster as a Ray job, and follow its log; again: attach to it. Ctrl-C detaches."""
    from finetune_sweep import submit as job

    loaded = _load(sweep, sets, storage, tracking_uri, cache, deep=not stop)
    if storage is None and not _names_storage(sweep, sets):
        raise UserError(
            "submit needs --storage DIR: a folder that all nodes of the cluster see under this path"
        )
    if stop:
        return job.stop(loaded, address, display.say)
    return job.submit(loaded, address, shared, display.say)


@app.command()
@_exits
def export(
    sweep: SweepFile,
    optuna: Annotated[Path, typer.Option(metavar="FILE", help="A new sqlite file for the study.")],
    sets: Sets = [],  # noqa: B006 - typer copies it
    storage: Storage = None,
    cache: Cache = None,
) -> int:
    """Write the trials as an Optuna study, for optuna-dashboard and Optuna's other tools."""
    from finetune_sweep.tune import suggest

    loaded = _load(sweep, sets, storage, None, cache)
    record = replay(read(_layout(loaded)))
    count = suggest.export(make_plan(loaded, record), record, optuna)
    print(f"wrote {count} trials to {optuna.absolute()}; next: optuna-dashboard sqlite:///{optuna}")
    return 0


@app.callback(invoke_without_command=True)
def options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Options that stand before a command."""
    if version:
        print(__version__)
        raise typer.Exit


def _load(
    file: Path,
    sets: list[str],
    storage: str | None,
    tracking_uri: str | None,
    cache: Path | None,
    *,
    deep: bool = True,
) -> Sweep:
    """Reads the file; what the command line says wins over it, relative to the working directory."""
    options = {
        "storage": None if storage is None else str(parse_storage(storage)),
        "cache": None if cache is None else str(cache.absolute()),
        "tracking.uri": tracking_uri,
    }
    return load_sweep(file, sets, check if deep else None, options)


def _names_storage(file: Path, sets: list[str]) -> bool:
    """Whether the storage is written down, and not where the command happens to be started."""
    document = yamlio.load(file).value
    in_file = isinstance(document, dict) and document.get("storage") is not None
    return in_file or any(text.partition("=")[0].strip() == "storage" for text in sets)


def _command() -> str:
    return shlex.join(["python", "-m", "finetune_sweep", *sys.argv[1:]])


def _layout(sweep: Sweep) -> Layout:
    return Layout(parse_storage(sweep.storage or "runs"), sweep.name)
