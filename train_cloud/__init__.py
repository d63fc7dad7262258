"""Train RL agents on interruptible machines: exact resume, one writer, and the money stops.

Two names for scripts of one's own, both free of torch until they are called::

    run = train_cloud.run_file()
    model.learn(run.total_timesteps, callback=train_cloud.checkpoints())
"""

from __future__ import annotations
