"""The command line's parts: the applications, and the options that several verbs share."""

from typing import Annotated, Optional

import typer
from typer.core import TyperGroup

from foretext.errors import UserError

ROAD = {  # the verbs as --help lists them: stretches of the road, and in each the order in which they are typed
    "Start": ("quickstart", "init"),
    "Text": ("prepare", "merge", "show"),
    "Train": ("plan", "pretrain", "finetune", "mine"),
    "Search": ("encode", "index", "search", "rerank", "serve", "evaluate"),
    "Use": ("classify", "respond", "generate", "export"),
}


class Road(TyperGroup):
    """Verbs in the order of `ROAD`; one that is not in it comes last, under More."""

    def __init__(self, **settings):
        super().__init__(**settings)
        stretch = {name: panel for panel, names in ROAD.items() for name in names}
        rest = [name for name in self.commands if name not in stretch]
        self.commands = {name: self.commands[name] for name in [*stretch, *rest] if name in self.commands}
        for name, command in self.commands.items():
            command.rich_help_panel = stretch.get(name, "More")


app = typer.Typer(cls=Road, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich",
                  help="Turns a pile of your own text into a text encoder you can search with, and proves that it helped.")
finetune_app = typer.Typer(no_args_is_help=True, help="Fine-tune an encoder on labels.")
app.add_typer(finetune_app, name="finetune")

Output = Annotated[str, typer.Option("--output", "-o", help="where the result goes")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="replace what is there")]
Sets = Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="any setting, for example training.optim.lr=1e-3")]
Dtype = Annotated[str, typer.Option(help="number format the model computes in: bf16, fp32, or auto: bf16 where the hardware multiplies it")]
Shard = Annotated[Optional[str], typer.Option(metavar="I/N", help="do the I-th of N parts (from 1), on as many machines")]


def parse_shard(text: str | None) -> tuple[int, int] | None:
    """`2/8` -> (2, 8)"""
    if text is None:
        return None
    part, slash, parts = text.partition("/")
    if not (slash and part.isdigit() and parts.isdigit() and 1 <= int(part) <= int(parts)):
        raise UserError(f"--shard {text}: write it as I/N with I from 1 to N, for example 2/8")
    return int(part), int(parts)


def show(lines: list[str]) -> None:
    """Print them."""
    for line in lines:
        print(line)
