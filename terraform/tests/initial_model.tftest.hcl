# What a worker may read to begin with: exactly what its run file names.

mock_provider "aws" {
  source = "./tests/mocks"
}

variables {
  run_files = ["tests/initial_model_run.yaml", "tests/initial_model_s3.yaml", "tests/run.yaml"]
  # The tests end in a destroy.
  delete_artifacts_on_destroy = true
  prefix                      = "group"
}

run "reads_what_it_begins_with" {
  assert {
    condition = [
      for statement in jsondecode(aws_iam_role_policy.worker["begins-1"].policy).Statement :
      [statement.Action, statement.Resource] if endswith(statement.Sid, "InitialModel")
      ] == [
      ["s3:ListBucket", "arn:aws:s3:::train-cloud-123456789012-us-east-1"],
      ["s3:GetObject", "arn:aws:s3:::train-cloud-123456789012-us-east-1/group/runs/earlier/*"],
    ]
    error_message = "A run to begin with is read, and no other."
  }
  assert {
    condition = [
      for statement in jsondecode(aws_iam_role_policy.worker["begins-2"].policy).Statement :
      try(statement.Condition.StringLike["s3:prefix"][0], statement.Resource) if endswith(statement.Sid, "InitialModel")
    ] == ["sac/best/*", "arn:aws:s3:::models/sac/best/*"]
    error_message = "A model.zip is read with what lies beside it."
  }
  assert {
    condition = alltrue([
      for statement in jsondecode(aws_iam_role_policy.worker["tftest-1"].policy).Statement : !endswith(statement.Sid, "InitialModel")
    ])
    error_message = "A run that begins anew may read nothing more."
  }
}
