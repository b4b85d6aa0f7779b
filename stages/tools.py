"""The console script `t2i`: every command in one place."""

from stages import encode, evaluate, fetch, train
from stages.console import application, run

app = application("Fine-tune Stable Diffusion on your own captioned images. `dvc repro` runs the stages in their order.")
app.add_typer(fetch.app, name="fetch")
app.add_typer(encode.app, name="encode")
app.command("train")(train.main)
app.add_typer(evaluate.app, name="evaluate")


def main() -> None:
    """Runs the console script."""
    run(app)
