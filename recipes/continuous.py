"""Soft Actor-Critic for continuous actions, from the first frame to the final evaluation.

python recipes/continuous.py                                solves Pendulum-v1
python recipes/continuous.py preset=halfcheetah seed=1      another task
python recipes/continuous.py run.folder=runs/NAME           goes on with a run
python recipes/continuous.py --help                         every key
"""

import torch

import sac_torchrl as sac


def main(cfg: sac.Continuous) -> None:
    """Train one agent; all that it leaves behind is in the run folder."""
    specs = cfg.specs()
    with sac.open_run(cfg) as run:
        torch.manual_seed(run.seeds.initialization)
        agent = cfg.agent(specs, device=run.device)
        learner = cfg.learner.build(agent)
        buffer = cfg.replay.build(
            run.folder / "replay",
            specs,
            rows=cfg.total_frames,
            batch_size=cfg.batch_size,
            seed=run.seeds.sampling,
            device=run.device,
        )
        source = cfg.offline.build(buffer, specs, batch_size=cfg.batch_size, device=run.device)
        experience = cfg.collector.build(
            cfg.env,
            agent.actor,
            buffer,
            specs=specs,
            total_frames=cfg.total_frames,
            random_frames=cfg.random_frames,
            seed=run.seeds.environments,
        )
        test_env = run.closing(cfg.env.build(count=cfg.evaluate.episodes, device=run.device))
        checkpoints = cfg.checkpoint.build(run.folder / "checkpoints", buffer, learner=learner, experience=experience)
        torch.manual_seed(run.seeds.exploration)
        start = checkpoints.restore() or 0
        policies = sac.Policies(run.folder / "policies", cfg, specs)
        policies.save(agent.actor, start)

        replay_ratio = sac.ReplayRatio(cfg.replay_ratio, after=cfg.updates_after, every=cfg.update_every, frames=start)
        log_now = sac.Every(cfg.log_every, frames=start)
        evaluate_now = sac.Every(cfg.evaluate.every, frames=start)
        save_now = sac.Every(cfg.checkpoint.every, frames=start)
        logger = run.closing(sac.Logger(run.folder, resumed_at=start))
        progress = run.closing(sac.Progress(cfg.total_frames, initial=start))

        for new_frames in experience:  # they are in the buffer already
            agent.observe(buffer)
            for _ in range(replay_ratio.due(new_frames)):
                batch = source.sample()
                learner.update(batch)
                buffer.update_tensordict_priority(batch)  # where it is prioritized

            frames, metrics = experience.frames, dict[str, float]()
            if log_now(frames) or experience.finished:
                metrics |= experience.metrics() | learner.metrics()
            if evaluate_now(frames) or experience.finished:
                seed = run.seeds.evaluation + frames
                evaluation = sac.evaluate(agent.actor, test_env, episodes=cfg.evaluate.episodes, seed=seed)
                metrics |= evaluation.metrics()
                policies.save(agent.actor, frames, evaluation)
                sac.write_evaluation(
                    evaluation, run.folder / "evaluation.json", env=cfg.env.id, frames=frames, seed=cfg.seed
                )
            logger.log(frames, metrics)
            progress.update(frames, metrics)
            if save_now(frames) or run.stopping or experience.finished:
                checkpoints.save(frames)
                policies.save(agent.actor, frames)
                run.stop_if_asked(frames)

        progress.close()
        sac.curve([run.folder], run.folder / "curve.png", title=cfg.env.id)
        if cfg.evaluate.video:
            sac.record_video(agent.actor, cfg.env, run.folder / "videos" / "final.mp4", seed=run.seeds.evaluation)


if __name__ == "__main__":
    sac.launch(main, sac.Continuous)
