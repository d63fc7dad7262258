# What the module makes of an experiment file.

mock_provider "aws" {
  source = "./tests/mocks"
}

variables {
  experiment_file = "tests/experiment.yaml"
  prefix          = "group"
  # The tests end in a destroy.
  delete_artifacts_on_destroy = true
}

run "a_group_for_each_run_and_one_limit" {
  assert {
    condition     = [for group in aws_autoscaling_group.worker : group.name] == ["train-cloud-tftest-small-s1", "train-cloud-tftest-small-s2"]
    error_message = "Each run of the experiment has a group."
  }
  assert {
    condition = (
      aws_s3_object.experiment[0].key == "group/experiments/tftest/experiment.json" &&
      jsondecode(aws_s3_object.experiment[0].content) == {
        experiment = "tftest"
        limits     = { hours = null, dollars = 5 }
        runs       = { for seed in [1, 2] : "tftest-small-s${seed}" => { levels = { net = "small" }, seed = seed } }
      }
    )
    error_message = "The workers read what they share from one record."
  }
  assert {
    condition     = alltrue([for run in aws_s3_object.run : jsondecode(run.content).experiment == "tftest"])
    error_message = "A run's launch says which record is its own."
  }
  assert {
    condition = [
      for statement in jsondecode(aws_iam_role_policy.worker["tftest-small-s1"].policy).Statement : statement
      if contains(["ReadExperiment", "ListRunsOfExperiment"], statement.Sid)
      ] == [
      {
        Sid    = "ReadExperiment"
        Effect = "Allow"
        Action = "s3:GetObject"
        Resource = [
          for key in ["experiments/tftest/experiment.json", "runs/tftest-*/head.json", "runs/tftest-*/sessions/*"] :
          "arn:aws:s3:::train-cloud-123456789012-us-east-1/group/${key}"
        ]
      },
      {
        Sid       = "ListRunsOfExperiment"
        Effect    = "Allow"
        Action    = "s3:ListBucket"
        Resource  = "arn:aws:s3:::train-cloud-123456789012-us-east-1"
        Condition = { StringLike = { "s3:prefix" = ["group/runs/tftest-*/"] } }
      },
    ]
    error_message = "Of the other runs a worker reads heads and sessions, and writes nothing."
  }
}

run "without_a_limit_nothing_of_the_others_is_read" {
  variables {
    experiment_file = "tests/experiment_unlimited.yaml"
  }
  assert {
    condition = flatten([
      for statement in jsondecode(aws_iam_role_policy.worker["unlimited-s1"].policy).Statement : statement.Resource
      if contains(["ReadExperiment", "ListRunsOfExperiment"], statement.Sid)
    ]) == ["arn:aws:s3:::train-cloud-123456789012-us-east-1/group/experiments/unlimited/experiment.json"]
    error_message = "Only the record, in which a limit may come to stand."
  }
}
