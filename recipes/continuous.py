"""Soft Actor-Critic for continuous actions, from the first frame to the final evaluation.

python recipes/continuous.py                                solves Pendulum-v1
python recipes/continuous.py preset=halfcheetah seed=1      another task
python recipes/continuous.py run.folder=runs/NAME           resumes a run
python recipes/continuous.py --help                         every key

The loop is in sac_torchrl/train.py.
"""

import sac_torchrl as sac

RECIPE = sac.TrainConfig(
    variant=sac.SAC(),
    env=sac.EnvConfig("Pendulum-v1"),
    total_frames=10_000,
)

if __name__ == "__main__":
    sac.launch(RECIPE)
