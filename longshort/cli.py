"""The commands. Arguments are parsed before anything heavy is imported, so that `--help` answers at once.

longshort run    recipe.yaml [key.sub=value …]        do all stages of the recipe; continue where it stopped
longshort coldstart recipe.yaml [--redo STEP]         from long traces to two fine-tuned models; or one step of it:
          chunk | rollouts | importance | partition | rewrite | rows | sft
longshort mixture recipe.yaml                         SFT of one role on short and long traces, re-weighted as it learns
longshort train  recipe.yaml [--resume]               RL of the pair
longshort eval   recipe.yaml [--systems A,B]          accuracy and tokens of the pair and of its baselines
longshort serve  team [--port 8000]                   serve the pair as one OpenAI-compatible endpoint
longshort chat   team [--once QUESTION]               ask the pair, and watch both models answer in the terminal
longshort report runs/x [runs/y …] [--watch]          one page: curves, tables, every episode
longshort plan   recipe.yaml [--dry-run]              what would run where, and whether it fits
longshort plan   recipe.yaml --gpus 8                 whether this recipe fits 8 GPUs, and what helps if it does not
longshort doctor                                      what is installed, what would be used, what is missing
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from longshort import terminal
from longshort.coldstart.step_names import STEP_TITLES
from longshort.types import LongShortError
from longshort.version import __version__

if TYPE_CHECKING:
    from longshort.recipe.schema import LongShortConfig


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 1 for a LongShortError, which prints one message; 128 + a signal."""
    terminal.prepare_streams()
    parser = _parser()
    options, left = parser.parse_known_args(terminal.checked(arguments, parser.error))
    # argparse takes positional arguments before the options only: settings that come after them are left over.
    settings = [text for text in left if "=" in text and not text.startswith("-")]
    if settings != left or (settings and not hasattr(options, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(left)}")
    if settings:
        options.overrides = [*options.overrides, *settings]
    try:
        status = options.command(options)
        sys.stdout.flush()
        return status
    except LongShortError as error:
        with contextlib.suppress(OSError):  # the terminal is gone
            print(f"longshort: {error}", file=sys.stderr)
        return getattr(error, "code", 1)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `longshort plan x.yaml | head`
        return terminal.reader_left()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="longshort",
        description="Train, evaluate and serve a pair of cooperating reasoning models.",
        epilog="docs: README.md, docs/",
    )
    parser.add_argument("--version", action="version", version=f"longshort {__version__}")
    names = "run | coldstart | mixture | train | eval | serve | chat | report | plan | doctor | STEP"
    verbs = parser.add_subparsers(required=True, metavar=names)

    def verb(name: str, function: Command, text: str) -> argparse.ArgumentParser:
        sub = verbs.add_parser(name, help=text, description=text)
        sub.set_defaults(command=function)
        return sub

    def recipe_verb(name: str, function: Command, text: str) -> argparse.ArgumentParser:
        sub = verb(name, function, text)
        sub.add_argument("recipe", help="a YAML recipe, e.g. recipes/quickstart.yaml")
        _overrides(sub, "settings that replace the recipe's; key= is empty text, key=null no value")
        return sub

    _training(recipe_verb)
    _evaluating(verb, recipe_verb)
    _answering(verb)
    _planning(recipe_verb)
    verb("doctor", _doctor, "Show what is installed, which engine and device would be used, what is missing.")
    return parser


Command = Callable[[argparse.Namespace], int]
Verb = Callable[[str, Command, str], argparse.ArgumentParser]
"""Makes a command's parser from its name, its function and what it does."""


def _overrides(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help=text)


def _training(recipe_verb: Verb) -> None:
    recipe_verb("run", _run, "Do all stages that the recipe configures; continue where an earlier run stopped.")
    redo = "first set aside what this step and all later steps made"
    steps = ", ".join(STEP_TITLES)
    whole = recipe_verb("coldstart", _coldstart, f"Make two fine-tuned models from long traces: {steps}.")
    whole.add_argument("--redo", choices=[*STEP_TITLES], metavar="STEP", help=redo)
    whole.set_defaults(only=None)
    for step, text in STEP_TITLES.items():
        one = recipe_verb(step, _coldstart, f"Step of the cold start: {text}.")
        one.add_argument("--redo", action="store_const", const=step, help=redo)
        one.set_defaults(only=step)
    recipe_verb("mixture", _mixture, "Fine-tune one role on short and long traces, mixed by dev accuracy and tokens.")
    train = recipe_verb("train", _train, "Train both models by reinforcement learning.")
    resume = "continue from the newest checkpoint (from the beginning if there is none), or from this one"
    train.add_argument(
        "--resume", nargs="?", const=True, default=False, type=terminal.path, metavar="CHECKPOINT", help=resume
    )


def _evaluating(verb: Verb, recipe_verb: Verb) -> None:
    evaluate = recipe_verb("eval", _eval, "Compare eval.systems on eval.benchmarks: accuracy, tokens, cost.")
    evaluate.add_argument("--systems", metavar="A,B", help="replaces eval.systems: pair,single_long,single_long@3")
    evaluate.add_argument(
        "--checkpoint", type=terminal.path, metavar="FOLDER", help="the checkpoint to evaluate (default: the newest)"
    )
    evaluate.add_argument("--name", default="results", help="name of the result files (default: eval/results.json)")
    evaluate.add_argument("--redo", action="store_true", help="set older results of this name aside and start over")
    page = verb("report", _report, "Write one page that opens offline: curves, Pareto plot, tables, every episode.")
    drawn = "run folders, e.g. runs/quickstart; drawn together"
    page.add_argument("runs", nargs="+", type=terminal.path, metavar="RUN", help=drawn)
    page.add_argument(
        "--output", type=terminal.path, metavar="FILE", help="the page (default: report.html in the first run's folder)"
    )
    page.add_argument("--episodes", type=int, default=5000, metavar="N", help="at most N episodes (default: 5000)")
    page.add_argument("--size", type=float, default=40, metavar="MB", help="at most this much of them (default: 40)")
    watch = "rewrite the page while the run goes on (default: every 30 seconds)"
    page.add_argument("--watch", nargs="?", type=int, const=30, metavar="SECONDS", help=watch)


def _answering(verb: Verb) -> None:
    endpoint = verb("serve", _serve, "Serve the pair as one OpenAI-compatible endpoint, with a page to chat with it.")
    source = "a team folder, a checkpoint, a run's folder or a recipe"
    endpoint.add_argument("team", type=terminal.expanded_text, metavar="TEAM", help=source)
    _overrides(endpoint, "settings that replace the team's, e.g. serve.max_queue=64")
    endpoint.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    endpoint.add_argument("--port", type=int, default=8000, help="port; 0 takes a free one (default: 8000)")
    endpoint.add_argument("--name", default="", help="the model's name for clients (default: the team's name)")
    key = "file with the API key that clients must send (default: LONGSHORT_API_KEY, if set)"
    endpoint.add_argument("--api-key-file", type=terminal.expanded_text, metavar="FILE", help=key)
    talk = verb("chat", _chat, "Ask a team, and watch both models work on the answer.")
    where = "a team folder, a checkpoint, a run's folder, a recipe, or the URL of `longshort serve`"
    talk.add_argument("team", type=terminal.expanded_text, metavar="TEAM", help=where)
    _overrides(talk, "settings that replace the team's, e.g. long.engine.num_gpus=1")
    talk.add_argument("--once", metavar="QUESTION", help="ask this and exit; a question on stdin does the same")
    talk.add_argument("--answer-only", action="store_true", help="print the answer and nothing else")
    talk.add_argument("--mode", choices=["pair", "long", "short"], help="both models, or one alone (default: pair)")
    talk.add_argument("--temperature", type=float, metavar="T", help="0 is greedy (default: the team's)")
    talk.add_argument("--max-turns", type=int, metavar="N", help="at most N exchanges (default: the team's)")
    talk.add_argument("--max-tokens", type=int, metavar="N", help="tokens of both models per question")
    talk.add_argument("--seed", type=int, metavar="N", help="one seed for every question (default: a new one each)")
    talk.add_argument("--api-key-file", type=terminal.expanded_text, metavar="FILE", help="file with the URL's API key")


def _planning(recipe_verb: Verb) -> None:
    plan = recipe_verb("plan", _plan, "What would run where, how much memory it takes, and whether it fits.")
    plan.add_argument("--dry-run", action="store_true", help="also check everything that can be checked before a run")
    plan.add_argument("--gpus", type=int, metavar="N", help="plan for N GPUs (of all nodes) that need not be here")
    plan.add_argument("--gpu-memory", type=float, default=80.0, metavar="GIB", help="of each of them (default: 80)")


def _load(options: argparse.Namespace) -> LongShortConfig:
    from longshort.recipe.schema import load

    return load(options.recipe, options.overrides)


def _run(options: argparse.Namespace) -> int:
    config = _load(options)
    from longshort.run import run

    run(config)
    return 0


def _coldstart(options: argparse.Namespace) -> int:
    config = _load(options)
    from longshort import interruption
    from longshort.coldstart.command import cold_start
    from longshort.report.thoughts_page import write_page
    from longshort.runs import lock
    from longshort.runs.layout import RunFolder

    folder = RunFolder.of(config)
    with lock.hold(folder.root):
        interruption.run(cold_start(config, only=options.only, redo=options.redo))
        print(f"  page       {write_page(folder.thoughts)}")
    return 0


def _mixture(options: argparse.Namespace) -> int:
    config = _load(options)
    from longshort import interruption
    from longshort.mixture.run import run_mixture
    from longshort.runs import lock

    with lock.hold(Path(config.output_dir)):
        interruption.run(run_mixture(config))
    return 0


def _train(options: argparse.Namespace) -> int:
    if "=" in str(options.resume) and not options.resume.exists():  # a setting that follows a bare --resume
        options.overrides, options.resume = [*options.overrides, str(options.resume)], True
    config = _load(options)
    from longshort.run import after_cold_start
    from longshort.trainer import LongShortTrainer

    LongShortTrainer(args=after_cold_start(config)).train(resume=options.resume)
    return 0


def _eval(options: argparse.Namespace) -> int:
    if options.systems:
        options.overrides = [*options.overrides, f"eval.systems=[{options.systems}]"]
    config = _load(options)
    from longshort.evaluation.command import evaluate_recipe

    content = evaluate_recipe(config, name=options.name, checkpoint_folder=options.checkpoint, redo=options.redo)
    return 1 if content["faults"] else 0


def _serve(options: argparse.Namespace) -> int:
    from longshort.serving.command import serve

    serve(
        options.team,
        host=options.host,
        port=options.port,
        name=options.name,
        key_file=options.api_key_file,
        overrides=options.overrides,
    )
    return 0


def _chat(options: argparse.Namespace) -> int:
    from longshort.serving.chat import chat

    return chat(
        options.team,
        overrides=options.overrides,
        once=options.once,
        answer_only=options.answer_only,
        key_file=options.api_key_file,
        mode=options.mode,
        temperature=options.temperature,
        max_turns=options.max_turns,
        max_tokens=options.max_tokens,
        seed=options.seed,
    )


def _report(options: argparse.Namespace) -> int:
    from longshort.report.command import report

    report(
        options.runs,
        output=options.output,
        episodes=options.episodes,
        size_mb=options.size,
        watch=options.watch,
    )
    return 0


def _plan(options: argparse.Namespace) -> int:
    config = _load(options)
    from longshort.planning.plan import report
    from longshort.run import check_run, planned_stages
    from longshort.runs import lock

    text, fits = report(config, planned_stages(config), options.gpus, options.gpu_memory)
    print(text)
    if options.dry_run:
        lock.check(Path(config.output_dir))
        check_run(config)
        print("dry run: models, tokenizers, data and output folder are in order")
    return 0 if fits else 1


def _doctor(options: argparse.Namespace) -> int:
    from longshort.planning.doctor import doctor, render

    rows = doctor()
    print(render(rows))
    return 1 if any(row.state == "missing" for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
