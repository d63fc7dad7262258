"""The process of ``train_cloud.envs.fresh``."""

from __future__ import annotations

from train_cloud.envs.fresh import serve

if __name__ == "__main__":
    serve()
