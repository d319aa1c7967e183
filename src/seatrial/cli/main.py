"""``seatrial``: the verbs, each loaded only when it is used."""

from __future__ import annotations

import importlib
import io
import os
import sys
from typing import Any, cast

import click

from seatrial import __version__
from seatrial.errors import ExitCode, SeatrialError

# verb: (module:attribute, help). The help stands here so that `--help` imports no verb.
_VERBS = {
    "demo": ("demo:demo", "The whole story on this machine, in a minute or two."),
    "doctor": ("doctor:doctor", "What is here, what is missing, what to do about it."),
    "cluster": ("cluster:cluster", "Make, check and remove a Slurm cluster on Nebius."),
    "node": ("node:node", "Make bare machines ready for runs, verify them, put them back."),
    "check": ("check:check", "Put a cluster, or this machine, through an acceptance test."),
    "train": ("train:train", "Train a model, compare it with the original, show it in one page."),
    "run": ("run:run", "Launch any torchrun-compatible script, and record it."),
    "watch": ("watch:watch", "Are the GPUs used, and if not, why? Live, and as a gate."),
    "predict": ("predict:predict", "Run a run's models over held-out samples."),
    "compare": ("compare:compare", "Is the trained model better? Exit code 1 when a gate is not met."),
    "report": ("report:report", "Write a run's page."),
    "package": ("package:package", "Pack a run's model as a release, with the evidence for it."),
    "promote": ("promote:promote", "Make a release what others load, on evidence."),
    "rollback": ("rollback:rollback", "Make an earlier version current again."),
    "releases": ("releases:releases", "List, show and verify what was promoted."),
    "prune": ("prune:prune", "Make room: show what can go, ask, remove it."),
    "render": (
        "render:render",
        "Print what a platform would be given: a batch script, or Kubernetes objects.",
    ),
    "snapshot": ("snapshot:snapshot", "Write down what this machine is; tell what has changed since."),
    "monitor": ("monitor:monitor", "Prometheus: export runs and GPUs, or start a whole stack."),
    "runs": ("runs:runs", "List, show, follow, cancel and resume runs."),
}


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _VERBS:
            return None
        module, _, attribute = _VERBS[cmd_name][0].partition(":")
        return cast(click.Command, getattr(importlib.import_module(f"seatrial.cli.{module}"), attribute))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(verb, text) for verb, (_, text) in _VERBS.items()])

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            import difflib

            close = difflib.get_close_matches(args[0], list(_VERBS), n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise click.UsageError(f"{error.message.partition(' Did you')[0]}{hint}", ctx) from None


@click.group(
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done and passed, 1 measured and failed, 2 the request is wrong, 3 evidence is missing, "
    "4 a platform or tool failed, 75 preempted, 130 interrupted.",
)
@click.version_option(__version__, prog_name="seatrial")
def cli() -> None:
    """From a fresh GPU cluster to a shipped model, with proof at every step."""


def main() -> None:
    """The console command: runs a verb and turns every expected failure into a message and an exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A name in another encoding is printed escaped, as stderr does, and ends nothing.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = cli.main(standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except SeatrialError as error:
        click.echo(f"error: {error}", err=True)
        code = error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        code = ExitCode.INTERRUPTED
    except BrokenPipeError:
        # The reader of a pipe has gone (`| head`); Python would complain once more while closing stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        code = ExitCode.OK
    raise SystemExit(int(code or 0) if not isinstance(code, bool) else 0)


if __name__ == "__main__":
    main()
