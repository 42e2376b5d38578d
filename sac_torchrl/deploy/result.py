"""What `train` returns."""

import base64
import html
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sac_torchrl.deploy.policy import Policy
from sac_torchrl.envs.config import EnvConfig
from sac_torchrl.runs.evaluation import Evaluation
from sac_torchrl.runs.plots import metric
from sac_torchrl.runs.video import record_video


@dataclass(frozen=True)
class Result:
    """What a run ends with: its folder, its last evaluation and, in `env`, its environment."""

    folder: Path
    evaluation: Evaluation
    env: EnvConfig = field(repr=False, compare=False)

    @property
    def policy(self) -> Policy:
        """The newest policy of the run."""
        return Policy.load(self.folder)

    def curve(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The learning curve: the frames `(n,)` of all evaluations, and their mean returns `(n,)`."""
        return metric(self.folder, "eval/return_mean")

    def video(self, path: str | Path | None = None, *, seed: int = 0) -> Path:
        """Film an episode of the newest policy into an mp4 file, by default `videos/FRAMES.mp4` in the run folder."""
        policy = self.policy
        target = self.folder / "videos" / f"{policy.saved.frames}.mp4" if path is None else Path(path)
        return record_video(policy.actor, self.env, target, seed=seed)

    def _repr_html_(self) -> str:
        """The last evaluation and the learning curve, for a notebook."""
        evaluation, about = self.evaluation, html.escape(f"{self.env.id}, {self.folder.name}")
        picture = base64.b64encode((self.folder / "curve.png").read_bytes()).decode()
        return (
            f"<p>{about}: mean return {evaluation.mean:.5g} ± {evaluation.std:.3g} "
            f"over {len(evaluation.returns)} episodes</p>"
            f'<img alt="learning curve" src="data:image/png;base64,{picture}">'
        )
