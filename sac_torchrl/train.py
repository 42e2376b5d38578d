"""The training loop, once: recipes, the command line, a sweep and a notebook call `train`."""

import logging
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from sac_torchrl.config.files import open_run
from sac_torchrl.config.recipes import configure
from sac_torchrl.config.schema import TrainConfig
from sac_torchrl.config.trial import try_out
from sac_torchrl.deploy.policies import Policies
from sac_torchrl.deploy.result import Result
from sac_torchrl.learner.capture import half_the_threads
from sac_torchrl.runs.callbacks import Callbacks, OnEvaluation, OnStep
from sac_torchrl.runs.evaluation import write_evaluation
from sac_torchrl.runs.init import rows_of_run
from sac_torchrl.runs.loggers import Logger, Progress
from sac_torchrl.runs.plots import curve, metric
from sac_torchrl.runs.schedule import Every, ReplayRatio, groups
from sac_torchrl.runs.sinks import Handed
from sac_torchrl.runs.video import record_video

log = logging.getLogger(__name__)


def train(
    recipe: TrainConfig | str | Path,
    *,
    preset: str | Sequence[str] = (),
    on_step: OnStep | None = None,
    on_evaluation: OnEvaluation | None = None,
    sinks: Sequence[Handed] = (),
    **keys: Any,
) -> Result:
    """Train one agent from the first frame to the final evaluation; everything it writes is in the run folder.

    `recipe` is a whole configuration, or `continuous`, `discrete` or the path of a recipe; `preset` and `keys` change
    its values as on the command line: `seed=1`, `env={"id": "Hopper-v5"}`, `variant="redq"`. With `env=make`, or
    `env={"make": make, "count": 4}`, a function makes the environments; see EnvConfig. `on_step(frames, metrics)` is
    called after every iteration and `on_evaluation(frames, evaluation)` after every evaluation; a callback that raises
    is logged and not called again, unless it raises `Stop`, which ends the run normally. `sinks` are functions of
    frames and metrics or loggers of `torchrl.record`; each is called in its own thread with every row of metrics.csv.

    Raises ConfigError before a file is made, and any other SacError where the run fails.
    """
    cfg = configure(recipe, preset=preset, **keys)
    specs = cfg.specs()
    try_out(cfg, specs)
    weights, of_run = cfg.initial_weights(specs), rows_of_run(cfg.offline.dataset, specs)
    offline = cfg.offline.load(specs, batch_size=cfg.batch_size, rows=of_run)
    with open_run(cfg) as run, half_the_threads():
        torch.manual_seed(run.seeds.initialization)
        agent = cfg.agent(specs, device=run.device)
        learner = cfg.learner.build(agent, updates=cfg.updates)
        replay = run.folder / "replay"
        buffer = cfg.buffer(specs, replay, seed=run.seeds.sampling, device=run.device, parts=run.parts)
        source = cfg.offline.build(buffer, offline, batch_size=cfg.batch_size, device=run.device)
        experience = run.closing(cfg.experience(agent.actor, buffer, specs, seed=run.seeds.environments))
        test_env = (
            None if cfg.env.single else run.closing(cfg.env.build(count=cfg.evaluate.episodes, device=run.device))
        )
        checkpoints = cfg.checkpoint.build(run.folder / "checkpoints", buffer, learner=learner, experience=experience)
        torch.manual_seed(run.seeds.exploration)
        start = checkpoints.restore() or 0
        cfg.init.load(agent, weights, buffer)
        policies = Policies(run.folder / "policies", cfg, specs)
        policies.save(agent.actor, start)

        replay_ratio = ReplayRatio(cfg.replay_ratio, after=cfg.updates_after, every=cfg.update_every, frames=start)
        log_now = Every(cfg.log_every, frames=start)
        evaluate_now = Every(cfg.evaluate.every, frames=start)
        save_now = Every(cfg.checkpoint.every, frames=start)
        evaluation = None
        logger = run.closing(Logger(run.folder, resumed_at=start, sinks=cfg.log.build(run.folder, sinks)))
        progress = run.closing(Progress(cfg.total_frames, initial=start))
        callbacks = Callbacks(on_step, on_evaluation, cfg.stop.build(metric(run.folder, "eval/return_mean")[1]))

        for new_frames in () if callbacks.stopped else experience:  # they are in the buffer already
            agent.observe(buffer)
            for updates in groups(replay_ratio.due(new_frames), cfg.learner.at_once):
                batches = [source.sample() for _ in range(updates)]
                learner.update(*batches)
                buffer.update_tensordict_priority(batches[-1])  # where it is prioritized: one at once

            frames, metrics = experience.frames, dict[str, float]()
            if log_now(frames) or experience.finished:
                metrics |= experience.metrics() | learner.metrics()
            callbacks.step(frames, metrics)
            if evaluate_now(frames) or experience.finished or callbacks.stopped:
                seed = run.seeds.evaluation + frames
                evaluation = cfg.evaluate.run(agent.actor, test_env or experience.lend(), seed=seed)
                metrics |= evaluation.metrics()
                policies.save(agent.actor, frames, evaluation)
                write_evaluation(
                    evaluation, run.folder / "evaluation.json", env=cfg.env.id, frames=frames, seed=cfg.seed
                )
                callbacks.evaluation(frames, evaluation)
            logger.log(frames, metrics)
            progress.update(frames, metrics)
            if save_now(frames) or run.stopping or experience.finished or callbacks.stopped:
                checkpoints.save(frames)
                policies.save(agent.actor, frames)
                run.stop_if_asked(frames)
            if callbacks.stopped:
                break

        progress.close()
        if evaluation is None:
            log.info("this run is finished at %d frames: total_frames and stop. say how long it trains", start)
            seed = run.seeds.evaluation + start
            evaluation = cfg.evaluate.run(agent.actor, test_env or experience.lend(), seed=seed)
        experience.close()  # a film may need the only environment there is
        curve([run.folder], run.folder / "curve.png", title=cfg.env.id)
        if cfg.evaluate.video:
            record_video(agent.actor, cfg.env, run.folder / "videos" / "final.mp4", seed=run.seeds.evaluation)
    return Result(run.folder, evaluation, cfg.env)


class _Callable(types.ModuleType):
    __call__ = staticmethod(train)


# Importing a module makes it an attribute of its package: `sac_torchrl.train` is then this module, not the function.
sys.modules[__name__].__class__ = _Callable
