"""Does it stay calm at every batch size: which runs."""

import dataclasses

from experiments.studies.runs import Run


@dataclasses.dataclass(frozen=True)
class Config:
    """Self-tuned FoMoH-KD on softmax regression, from small batches to the full one."""

    batch_sizes: tuple[int, ...] = (64, 256, 1024, 4000)
    ks: tuple[int, ...] = (1, 2, 5, 10, 20)
    steps: int = 1000
    seed: int = 2


def runs(config: Config) -> list[Run]:
    """One run a batch size and k."""
    return [
        Run("softmax", "fomoh_kd", k, None, batch_size, config.steps, config.seed)
        for batch_size in config.batch_sizes
        for k in config.ks
    ]
