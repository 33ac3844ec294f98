"""One of several processes that train a candidate of ``compress`` together (``--nproc``).

The search itself runs in one process, which writes what is to be trained into the run's folder and
waits for the weights.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import IngotError, TrainingError, WorkerError
from ..runtime.atomic import replacing
from .signals import on_signals
from .train_workers import run_workers, tell_launcher

if TYPE_CHECKING:
    from ..optimizers.budget import Budget
    from ..optimizers.pruning import Recipe
    from ..optimizers.pruning.recovery import Recovered
    from ..training.options import TrainerOptions
    from .compress_setup import Settled

Trainer = Callable[[str, "Recipe", Path, Path, "TrainerOptions", Path], "Recovered"]


def worker_trainer(settled: Settled, budget: Budget) -> Trainer:
    """Return a function that trains a candidate in ``nproc`` processes.

    Args:
        settled: the settled options; the spec has to be a file.
        budget: of the search.
    """

    def train(
        name: str, recipe: Recipe, start: Path, target: Path, options: TrainerOptions, folder: Path
    ) -> Recovered:
        from ..optimizers.budget import StopSearch
        from ..optimizers.pruning.recovery import Recovered

        folder.mkdir(parents=True, exist_ok=True)
        answer = folder / "losses.json"
        job = {
            "spec": str(settled.spec.path),
            "overrides": list(settled.overrides),
            "device": str(options.device),
            "dry_run": settled.settings.dry_run,
            "recipe": recipe.to_dict(),
            "start": str(start),
            "target": str(target),
            "epochs": settled.epochs,
            "seed": options.seed,
            "rate": options.learning_rate_factor,
            "model_seed": settled.settings.seed,
            "seconds": max(0.0, budget.max_seconds - budget.elapsed),
            "folder": str(folder),
            "answer": str(answer),
        }
        place = folder / "job.json"
        with replacing(place) as part:
            part.write_text(json.dumps(job))
        try:
            run_workers([str(place)], settled.given.nproc, "commands.compress_worker")
        except WorkerError as error:
            if error.exit_code == 130:
                late = budget.is_late and not budget.stop_requested
                raise StopSearch("max_time" if late else "signal") from error
            raise
        told: Mapping[str, Any] = json.loads(answer.read_text())
        if told["error"] is not None:
            raise TrainingError(told["error"])
        return Recovered(settled.epochs, tuple(told["losses"]))

    return train


def run_job(job: Mapping[str, Any]) -> None:
    """Train what a job names, as one of several workers."""
    from ..frameworks.pytorch import load_weights
    from ..optimizers.budget import Budget
    from ..optimizers.pruning import Recipe
    from ..optimizers.pruning.modules import copy_module
    from ..optimizers.pruning.recovery import recover, recovery_options
    from ..specs import load_spec
    from ..training.distributed import Workers, joined, wait_for_all
    from ..training.hardware import choose_device, set_threads
    from ..training.problem import Problem
    from ..training.torch_state import write_network
    from .search_reference import FirstBatches

    spec = load_spec(job["spec"], job["overrides"])
    device = choose_device(job["device"])
    set_threads(None)
    problem = Problem(spec, device, job["model_seed"])
    if job["dry_run"]:
        problem.splits = {name: FirstBatches(value) for name, value in problem.splits.items()}
    workers = Workers.from_environment()
    teacher = problem.load_network()
    network = copy_module(teacher)
    Recipe.from_dict(job["recipe"]).apply(network)
    load_weights(network, Path(job["start"]), "a candidate")
    options = recovery_options(
        spec,
        job["epochs"],
        hasattr(problem.splits["train"], "__len__"),
        device=device,
        seed=job["seed"],
        learning_rate_factor=job["rate"],
    )
    budget = Budget(1, job["seconds"])
    losses: tuple[float, ...] = ()
    failure = None
    with joined(workers, device), on_signals(budget.request_stop):
        try:
            done = recover(
                problem, network, teacher, options, budget, Path(job["folder"]), workers=workers
            )
            losses = done.losses
        except TrainingError as error:
            failure = error.message
        if workers.is_first:
            write_network(Path(job["target"]), network.state_dict())
            with replacing(Path(job["answer"])) as part:
                part.write_text(json.dumps({"losses": losses, "error": failure}))
        wait_for_all(workers)


def main() -> int:
    """Run the job that the command line names."""
    from ..optimizers.budget import StopSearch

    try:
        run_job(json.loads(Path(sys.argv[1]).read_text()))
    except StopSearch:
        stopped = IngotError("the search was asked to end")
        stopped.exit_code = 130
        return tell_launcher(stopped) or 130
    except Exception as error:
        code = tell_launcher(error)
        if code is None:
            raise
        return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
