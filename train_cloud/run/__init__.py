"""Run state: the head, who may write it, and the sessions that worked on it."""
