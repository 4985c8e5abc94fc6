"""What the commands that sample models share: their options, the checks before anything is sampled, and the tables."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from fgrpo_plugin.eval.evaluating import Progress, Sampler
from fgrpo_plugin.eval.kept import Chats, Responses
from fgrpo_plugin.eval.sampling import Engine, Sampling, responses
from fgrpo_plugin.eval.scores import markdown
from fgrpo_plugin.eval.server import server_responses
from fgrpo_plugin.folders import expanded, write_whole
from fgrpo_plugin.terminal import Terminal

Models = Annotated[
    list[str], typer.Argument(metavar="[NAME=]MODEL...", help="Hugging Face folders, or names at the server.")
]
Harmful = Annotated[
    list[Path] | None, typer.Option(help="File or folder of prompts that ought to be refused; repeatable.")
]
Safe = Annotated[list[Path] | None, typer.Option(help="File or folder of prompts that ought not; repeatable.")]
OfBothKinds = Annotated[
    list[Path] | None, typer.Option(help="File or folder of prompts whose rows say which they are; repeatable.")
]
Output = Annotated[Path, typer.Option("--output", "-o", help="Folder of responses and scores; what it holds is kept.")]
Base = Annotated[str | None, typer.Option(help="Name of the base model; differences, and Relative Overall, are to it.")]
Limit = Annotated[int | None, typer.Option(help="Prompts of each set; the same ones in every call.")]
TopP = Annotated[float, typer.Option(help="Share of the probability that is sampled from.")]
MaxTokens = Annotated[int, typer.Option(help="Of a response.")]
Seed = Annotated[int, typer.Option(help="Of vLLM.")]
Server = Annotated[
    str | None, typer.Option(help="http://host:port/v1 of a server with OpenAI's protocol, in place of vLLM here.")
]
Dtype = Annotated[str | None, typer.Option(help="Of the weights; float32 on a CPU, else as saved.")]
TensorParallel = Annotated[int, typer.Option(help="GPUs that share a model.")]
ChatTemplate = Annotated[Path | None, typer.Option(help="File of a chat template, in place of the model's.")]


def check(
    models: Mapping[str, str],
    output: Path,
    *,
    k: Sequence[int],
    samples: int,
    limit: int | None,
    base: str | None,
    server: str | None,
    engine: Engine,
) -> None:
    """Refuse what cannot be evaluated, in the words of the command line.

    Raises:
        ValueError: the option, what is wrong with it and the remedy.
    """
    if bad := [one for one in k if not 1 <= one <= samples]:
        raise ValueError(f"--k {bad[0]} must lie between 1 and --samples {samples}.")
    check_output(output, limit)
    if base is not None and base not in models:
        raise ValueError(f"--base {base} is none of the models {', '.join(models)}.")
    if server is None:
        check_engine(engine)
        for model in models.values():
            check_folder(model, "MODEL", "--server", has_template=engine.chat_template is not None)
    elif engine != Engine():
        raise ValueError("--dtype, --tensor-parallel and --chat-template are the server's own; leave them out.")


def check_output(output: Path, limit: int | None) -> None:
    """Refuse an output that is a file, and a limit of no prompts.

    Raises:
        ValueError: the option.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"--limit {limit} must be 1 or more.")
    if output.exists() and not output.is_dir():
        raise ValueError(f"--output {output} is a file; name a folder.")


def check_engine(engine: Engine) -> None:
    """Refuse settings of vLLM that mean nothing.

    Raises:
        ValueError: the option.
    """
    if engine.tensor_parallel < 1:
        raise ValueError(f"--tensor-parallel {engine.tensor_parallel} must be 1 or more.")
    if engine.chat_template is not None and not engine.chat_template.is_file():
        raise ValueError(f"--chat-template {engine.chat_template}: there is no such file.")
    try:
        if engine.chat_template is not None:
            engine.chat_template.read_text()
    except UnicodeDecodeError:
        raise ValueError(f"--chat-template {engine.chat_template}: it is no text in UTF-8; save it as such.") from None


def check_folder(model: str, setting: str, server_setting: str | None, *, has_template: bool = False) -> None:
    """Refuse a model that cannot be loaded here; `server_setting` names one elsewhere, where a command can use it.

    Raises:
        ValueError: it is no folder, no model, or has no chat template and none is given.
    """
    from fgrpo_plugin.host.settings.inputs import check_model, load_tokenizer  # with omegaconf: not at every start

    path = expanded(model)
    if not path.is_dir():
        elsewhere = f", or {server_setting}" if server_setting else ""
        raise ValueError(f"{setting} {model}: there is no such folder; give a local Hugging Face folder{elsewhere}.")
    check_model(str(path.absolute()), setting)
    load_tokenizer(path, setting, has_template=has_template)


def sampler(server: str | None, how: Sampling, engine: Engine) -> Sampler:
    """Return what samples a model: vLLM here, or a server."""

    def sample(model: str, chats: Chats, file: Path, follow: Progress) -> Responses:
        if server is not None:
            return server_responses(server, model, chats, file, how, on_progress=follow)
        folder = expanded(model).absolute()
        return responses(folder, chats, file, how, engine=engine, on_progress=follow)

    return sample


def show_table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]], console: Terminal, left: int = 2) -> str:
    """Print a table whose first columns, `left` of them, are words; return it in Markdown."""
    shown = Table(title=title or None)
    for number, column in enumerate(head):
        shown.add_column(column, justify="left" if number < left else "right", overflow="fold")
    for row in rows:
        shown.add_row(*row)
    console.print(shown)
    return markdown(head, rows)


def write_tables(text: Sequence[str], folder: Path, console: Terminal) -> None:
    """Keep tables in Markdown as a folder's last ones."""
    console.print("intervals: 95 %, bootstrap over prompts; differences are paired")
    write_whole(folder / "table.md", ("\n\n".join(text) + "\n").encode())
    console.print(f"table: {folder / 'table.md'}", soft_wrap=True)
