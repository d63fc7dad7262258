"""The rehearsal's other driver: each instance is a real Linux with systemd, cloud-init and a network of its own.

Nothing in here plays the worker: the user-data that Terraform rendered runs as EC2 would run it, and everything that
follows is what it starts.
"""

from train_cloud.rehearsal.machine.image import Image, missing, prepare
from train_cloud.rehearsal.machine.instance import MachineInstance

__all__ = ["Image", "MachineInstance", "missing", "prepare"]
