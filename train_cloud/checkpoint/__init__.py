"""Checkpoints: named parts and segments under names of their own, a manifest that names them, a head that names the
manifest.
"""

from train_cloud.checkpoint.commit import Committer
from train_cloud.checkpoint.copy import copy
from train_cloud.checkpoint.manifest import Kept, Manifest, find, read_manifest
from train_cloud.checkpoint.restore import restore

__all__ = ["Committer", "Kept", "Manifest", "copy", "find", "read_manifest", "restore"]
