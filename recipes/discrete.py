"""Soft Actor-Critic for discrete actions, from the first frame to the final evaluation.

python recipes/discrete.py                                solves CartPole-v1
python recipes/discrete.py preset=acrobot seed=1          another task
python recipes/discrete.py run.folder=runs/NAME           resumes a run
python recipes/discrete.py --help                         every key

The loop is in sac_torchrl/train.py.
"""

import sac_torchrl as sac

RECIPE = sac.TrainConfig(
    variant=sac.DiscreteSAC(),
    env=sac.EnvConfig("CartPole-v1"),
    total_frames=24_000,
)

if __name__ == "__main__":
    sac.launch(RECIPE)
