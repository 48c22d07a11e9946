"""`bart-export bench`: an artifact goes in, a table or JSON of what was measured comes out.

Everything heavy is imported when the command runs.
"""

import json
import pathlib

import click

Path = click.Path(path_type=pathlib.Path)


@click.command()
@click.argument("artifact", type=Path)
@click.option(
    "--recipe",
    "recipe_names",
    multiple=True,
    metavar="RECIPE",
    help="Which files to measure; may be given more than once. Default: all.",
)
@click.option(
    "--source",
    "sources",
    type=click.IntRange(min=1),
    multiple=True,
    default=(64, 512),
    show_default=True,
    help="Source tokens; may be given more than once.",
)
@click.option(
    "--num-beams",
    type=click.IntRange(min=1),
    multiple=True,
    default=(1, 4),
    show_default=True,
    help="Beams; may be given more than once.",
)
@click.option(
    "--new-tokens",
    type=click.IntRange(min=1),
    default=64,
    show_default=True,
    help="Tokens to generate.",
)
@click.option(
    "--runs",
    type=click.IntRange(min=1),
    default=7,
    show_default=True,
    help="Runs that the medians are of.",
)
@click.option("--threads", type=click.IntRange(min=1), help="Threads to use. Default: all cores.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def bench(
    artifact: pathlib.Path,
    recipe_names: tuple[str, ...],
    sources: tuple[int, ...],
    num_beams: tuple[int, ...],
    new_tokens: int,
    runs: int,
    threads: int | None,
    as_json: bool,
) -> None:
    """Measure an artifact here: sizes, opening, memory, encoding, decoding, tokens per second.

    Configurations take turns, figures are medians; compare them within one run only.
    """
    from bart_export.quality import bench as benchmark

    report = benchmark.bench(
        artifact,
        recipes=recipe_names or None,
        sources=sources,
        new_tokens=new_tokens,
        num_beams=num_beams,
        num_threads=threads,
        runs=runs,
    )
    if as_json:
        click.echo(json.dumps(report, ensure_ascii=False, indent=1))
        return
    from rich.console import Console

    Console().print(benchmark.tables(report))
