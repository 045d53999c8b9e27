"""The command line of `serving`: starts the gateway in the foreground and stops it cleanly."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from serving.doctor import Finding
    from serving.settings import Settings

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Serve exported bundles over HTTP.")

EXAMPLES = """
Examples:

    python -m serving run                              every exported bundle, on a Triton of its own

    python -m serving run --engine onnx --port 9000    no Triton, ONNX Runtime in this process

    python -m serving run --triton-url triton:8001     a Triton that runs elsewhere

Every option can also be set as SLIPWAY_<NAME>; `python -m serving settings` lists them all.
"""


@app.callback()
def main() -> None:
    """Serve exported bundles over HTTP."""


@app.command(epilog=EXAMPLES)
def run(
    engine: Annotated[str | None, typer.Option(help="triton (default) or onnx.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on; default 127.0.0.1.")] = None,
    port: Annotated[int | None, typer.Option(help="TCP port; default 8000, 0 takes a free one.")] = None,
    bundles: Annotated[Path | None, typer.Option(help="Folder of bundles; default artifacts.")] = None,
    model_repository: Annotated[Path | None, typer.Option(help="Triton's folder of models.")] = None,
    triton_url: Annotated[str | None, typer.Option(help="host:port (gRPC) of a Triton elsewhere.")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of one computation; 0: all cores.")] = None,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
) -> None:
    """Serve every exported bundle until Ctrl-C or SIGTERM."""
    from bundle.errors import SlipwayError

    settings = _settings(
        log_level,
        engine=engine,
        host=host,
        port=port,
        bundles=bundles,
        model_repository=model_repository,
        triton_url=triton_url,
        threads=threads,
    )
    from serving.gateway import Gateway
    from serving.server import serve

    try:
        with _listening(settings.host, settings.port) as listener:
            # Whoever collects JSON gets nothing else.
            say = typer.echo if settings.log_format == "text" else logging.getLogger("slipway").info
            in_peace = asyncio.run(serve(Gateway(settings), listener, log_level, say))
    except SlipwayError as error:
        _give_up(str(error))
    if not in_peace:
        raise typer.Exit(1)


@app.command(epilog="Example: python -m serving check --bundles artifacts/news")
def check(
    engine: Annotated[str | None, typer.Option(help="triton (default) or onnx.")] = None,
    bundles: Annotated[Path | None, typer.Option(help="A bundle or a folder of bundles; default artifacts.")] = None,
    model_repository: Annotated[Path | None, typer.Option(help="Triton's folder of models.")] = None,
    triton_url: Annotated[str | None, typer.Option(help="host:port (gRPC) of a Triton elsewhere.")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of one computation; 0: all cores.")] = None,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "warning",
) -> None:
    """Start the engine, pass every model's golden rows through it, and stop; exit status 1 if it computes otherwise."""
    from bundle.errors import SlipwayError

    settings = _settings(
        log_level,
        engine=engine,
        bundles=bundles,
        model_repository=model_repository,
        triton_url=triton_url,
        threads=threads,
    )
    from serving.gateway import Gateway

    async def start_and_stop(gateway: Gateway) -> None:
        await gateway.start(lambda sentence: typer.echo(f"  {sentence}"))
        typer.echo(f"  {gateway.engine.describe()}")
        await gateway.stop()

    try:
        gateway = Gateway(settings)
        asyncio.run(start_and_stop(gateway))
    except SlipwayError as error:
        _give_up(str(error))
    for name, parity in gateway.measured.items():
        typer.echo(
            f"{name}: {parity.rows} golden rows in {parity.windows} windows; logits differ by at most "
            f"{parity.max_abs:.2g} (mean {parity.mean_abs:.1g}, allowed {parity.tolerance:.2g}); "
            f"{parity.label_agreement:.1%} of the rows are answered as recorded"
        )


@app.command(epilog="Example: python -m serving doctor --url http://127.0.0.1:8000")
def doctor(
    url: Annotated[str | None, typer.Option(help="A gateway that runs; without it, what `run` would start.")] = None,
    engine: Annotated[str | None, typer.Option(help="triton (default) or onnx.")] = None,
    bundles: Annotated[Path | None, typer.Option(help="Folder of bundles; default artifacts.")] = None,
    model_repository: Annotated[Path | None, typer.Option(help="Triton's folder of models.")] = None,
    triton_url: Annotated[str | None, typer.Option(help="host:port (gRPC) of a Triton elsewhere.")] = None,
) -> None:
    """Look a deployment over and say what to mend; exit status 1 if something does not work."""
    if url:
        from serving.doctor_running import look_over_running

        healthy = _report(look_over_running(url))
    else:
        settings = _settings(
            "error", engine=engine, bundles=bundles, model_repository=model_repository, triton_url=triton_url
        )
        from serving.doctor import look_over, prove

        healthy = _report(look_over(settings))
        healthy &= _report(iter(asyncio.run(prove(settings)))) if healthy else False
    typer.echo("nothing is wrong" if healthy else "something is wrong: see what is BAD above")
    if not healthy:
        raise typer.Exit(1)


@app.command()
def settings(
    markdown: Annotated[bool, typer.Option("--markdown", help="As the table that README holds.")] = False,
) -> None:
    """List every setting: its environment variable, default and meaning."""
    from serving.settings import Settings

    if markdown:
        typer.echo("| variable | default | meaning |\n| --- | --- | --- |")
    for name, field in Settings.model_fields.items():
        if markdown:
            default = f"`{field.default}`" if str(field.default) else "empty"
            typer.echo(f"| `SLIPWAY_{name.upper()}` | {default} | {(field.description or '').replace('<', '&lt;')} |")
            continue
        typer.echo(f"SLIPWAY_{name.upper():<18} {field.default!s:<18} {field.description}")


@app.command(epilog="Example: python -m serving new-key backoffice >> keys.toml")
def new_key(
    name: Annotated[str, typer.Argument(help="Whose key it is; what the log says of its requests.")],
    admin: Annotated[bool, typer.Option("--admin", help="For the admin routes too.")] = False,
) -> None:
    """Make an API key: the key itself on standard error, once, and its lines for the file of keys."""
    from serving import keys

    key = keys.new_key()
    typer.echo(f"the key, which is kept nowhere: {key}", err=True)
    typer.echo(f'[[keys]]\nname = "{name}"\nsha256 = "{keys.hash_of(key)}"\nrole = "{"admin" if admin else "user"}"')


@app.command(epilog="Example: python -m serving try-rules news rules/news.toml")
def try_rules(
    model: Annotated[str, typer.Argument(help="Name of an exported model.")],
    file: Annotated[Path, typer.Argument(help="Its rule file (TOML).")],
    bundles: Annotated[Path, typer.Option(help="Folder of bundles.")] = Path("artifacts"),
    rows: Annotated[int, typer.Option(min=1, help="Dev rows to answer, at most.")] = 400,
) -> None:
    """Answer the model's dev rows without and with a rule file: what each rule mends and breaks."""
    from bundle.errors import SlipwayError
    from serving.trial import try_rules as run_trial

    try:
        with typer.progressbar(length=rows, label="dev rows") as bar:
            trial = run_trial(bundles, model, file, rows, lambda done, total: bar.update(done - bar.pos))
    except SlipwayError as error:
        _give_up(str(error))
    typer.echo(f"{trial.rows} dev rows, without rules → with them")
    for name, value in trial.without.items():
        typer.echo(f"  {name}: {value:.4f} → {trial.with_rules[name]:.4f}")
    for effect in trial.effects:
        hurts = "  HURTS" if effect.broken > effect.mended else ""
        typer.echo(
            f"  rule {effect.rule}: fired on {effect.fired} rows, mended {effect.mended}, broke {effect.broken}{hurts}"
        )


def _settings(log_level: str, **given: Any) -> Settings:
    """The settings, with the options that were given; ends the program where one is wrong."""
    from pydantic import ValidationError

    from serving.logs import configure
    from serving.settings import Settings

    try:
        settings = Settings(**{key: value for key, value in given.items() if value is not None})
        configure(log_level, settings.log_format)
        return settings
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        _give_up(f"setting {'.'.join(map(str, first['loc']))}: {first['msg']} (it is {first['input']!r})")
    except ValueError as error:
        _give_up(str(error))


@contextlib.contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    """A bound socket, taken before anything else is started."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol must be named: the event loop turns Nagle's algorithm off only on sockets that say they are TCP, and
    # with it on a small answer waits 40 ms for the client's delayed acknowledgement.
    with socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            _give_up(f"cannot listen on {host}:{port}: {error.strerror}; choose another with --port (make: PORT=…)")
        listener.set_inheritable(False)
        yield listener


def _report(findings: Iterator[Finding]) -> bool:
    from serving.doctor import report

    return report(findings, typer.echo)


def _give_up(sentence: str) -> NoReturn:
    typer.echo(f"error: {sentence}", err=True)
    raise typer.Exit(1)


if __name__ == "__main__":
    app()
