"""What people do to runs: fork, roll back, delete, repair, relaunch, export, prove."""
