"""All that knows torch and Stable-Baselines3: building, exact capture, the callback, export. Knows no store."""

from train_cloud.sb3.without_dynamo import defer_dynamo

defer_dynamo()
