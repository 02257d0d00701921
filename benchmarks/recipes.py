"""How low the held-out perplexity goes in equally many steps: the published recipe of training, and others.

python -m benchmarks.recipes --text TEXT... --heldout TEXT --vocab VOCAB

Every run is one of `elmo-jax train` in a workdir of its own, one after the other. Killed, the same command goes on.
"""

import json
import subprocess
import sys
from pathlib import Path

import tyro
from tqdm import tqdm

from benchmarks import tables
from benchmarks.systems import ROOT, command, machine, result_path, save
from elmo_jax.config import load_config
from elmo_jax.errors import InputError, exit_on_bad_input
from elmo_jax.workdir import Workdir

# Learning rates rise for a tenth of the steps where there is a schedule, and then fall to zero with the last.
COSINE = "--train.schedule cosine --train.warmup_steps {tenth} --train.decay_steps {steps}"
ADAM = "--train.optimizer adam --train.learning_rate"
# Options of `elmo-jax train` by the name of the recipe.
RECIPES = {
    "published": "",
    "adagrad-0.1": "--train.learning_rate 0.1",
    "adagrad-0.4": "--train.learning_rate 0.4",
    "adagrad-cosine": COSINE,
    "sgd-momentum-cosine": f"--train.optimizer sgd --train.momentum 0.9 --train.learning_rate 0.05 {COSINE}",
    "adafactor-cosine": f"--train.optimizer adafactor --train.learning_rate 0.02 {COSINE}",
    "adam-noam": f"{ADAM} 0.5 --train.schedule noam --train.warmup_steps {{tenth}}",
    "adam-0.001": f"{ADAM} 0.001",
    "adam-0.001-cosine": f"{ADAM} 0.001 {COSINE}",
    "adam-0.002-cosine": f"{ADAM} 0.002 {COSINE}",
    "adam-0.004-cosine": f"{ADAM} 0.004 {COSINE}",
    "published-reset": "--train.state_reset 0.05",
    "adam-0.002-cosine-reset": f"{ADAM} 0.002 {COSINE} --train.state_reset 0.05",
    "adam-0.002-cosine-clip-1": f"{ADAM} 0.002 {COSINE} --train.clip_norm 1",
    "adam-0.002-cosine-beta2-0.98": f"{ADAM} 0.002 {COSINE} --train.beta2 0.98",
    "adam-0.002-cosine-no-dropout": f"{ADAM} 0.002 {COSINE} --train.dropout 0",
    "adamw-0.002-cosine": f"--train.optimizer adamw --train.learning_rate 0.002 --train.weight_decay 0.1 {COSINE}",
}


def options_of(recipe: str, steps: int) -> list[str]:
    """What the recipe adds to the command line of a run of so many steps."""
    return RECIPES[recipe].format(steps=steps, tenth=max(1, steps // 10)).split()


def run(recipe: str, seed: int, common: list[str], folder: Path, steps: int) -> dict:
    """Trains, or goes on; returns what was measured."""
    workdir = folder / f"{recipe}-{seed}"
    options = [*options_of(recipe, steps), "--train.seed", str(seed)]
    trained = [sys.executable, "-m", "elmo_jax", "train", *common, "--workdir", str(workdir), *options]
    subprocess.run(trained, cwd=ROOT, check=True)
    lines = Workdir(workdir).lines()
    perplexities = {line["step"]: line["heldout_perplexity"] for line in lines if "heldout_perplexity" in line}
    return {
        "recipe": recipe,
        "options": " ".join(options[:-2]),
        "seed": seed,
        "heldout_perplexity": perplexities,
    }


def benchmark(
    text: tuple[str, ...],
    heldout: str,
    vocab: str | None = None,
    config: str = "small",
    rows: int = 128,
    steps: int = 2000,
    recipes: tuple[str, ...] = tuple(RECIPES),
    seeds: tuple[int, ...] = (0,),
    precision: str = "float32",
    folder: Path = ROOT / "runs" / "recipes",
    output: Path | None = None,
) -> None:
    """Trains by each recipe on the same text, for equally many steps, and compares the held-out perplexities.

    Args:
        text: Text to train on, as --data.train.
        heldout: Text to measure, as --data.heldout.
        vocab: Vocabulary, as --data.vocab.
        config: Size of the model, a file in configs/ or a path; the published recipe is its settings.
        rows: Rows of sentences on each device.
        steps: Steps of each run.
        recipes: Which recipes.
        seeds: Each recipe is run with each.
        precision: As --train.precision.
        folder: Where the workdirs lie.
        output: JSON file to write; by default results/recipes-CONFIG-DEVICE.json beside this module.
    """
    if unknown := [name for name in recipes if name not in RECIPES]:
        raise InputError(f"there is no recipe {unknown[0]!r}; give some of {', '.join(RECIPES)}")
    chosen = load_config(config)
    common = [config, "--data.train", *text, "--data.heldout", heldout, "--train.steps", str(steps)]
    common += ["--data.vocab", vocab] if vocab else []
    common += ["--train.batch_size", str(rows), "--train.precision", precision, "--train.eval_every", str(steps // 4)]
    common += ["--train.checkpoint_every", str(steps // 4)]
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [(recipe, seed) for recipe in recipes for seed in seeds]
    runs = [run(recipe, seed, common, folder, steps) for recipe, seed in tqdm(wanted, "recipes")]
    result = {
        "benchmark": "recipes",
        "command": command("recipes"),
        "machine": machine(),
        "config": config,
        "rows": rows,
        "window": chosen.train.window,
        "steps": steps,
        "precision": precision,
        "runs": json.loads(json.dumps(runs)),
    }
    save(output or result_path("recipes", config), result)
    print(tables.recipes(result))


@exit_on_bad_input
def main(argv: list[str]) -> None:
    tyro.cli(benchmark, args=argv, use_underscores=True)


if __name__ == "__main__":
    main(sys.argv[1:])
