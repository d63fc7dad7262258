# What a worker may read to learn from: exactly what its run file names.

mock_provider "aws" {
  source = "./tests/mocks"
}

variables {
  run_files = ["tests/demonstrations_object.yaml", "tests/demonstrations_folder.yaml", "tests/run.yaml"]
  # The tests end in a destroy.
  delete_artifacts_on_destroy = true
  prefix                      = "group"
}

run "reads_what_it_learns_from" {
  assert {
    condition = [
      for statement in jsondecode(aws_iam_role_policy.worker["cloned-1"].policy).Statement :
      try(statement.Condition.StringLike["s3:prefix"][0], statement.Resource) if endswith(statement.Sid, "Demonstrations")
    ] == ["cart/*", "arn:aws:s3:::data/cart/*"]
    error_message = "A file is read, and what lies beside it."
  }
  assert {
    condition = [
      for statement in jsondecode(aws_iam_role_policy.worker["cloned-2"].policy).Statement :
      try(statement.Condition.StringLike["s3:prefix"][0], statement.Resource) if endswith(statement.Sid, "Demonstrations")
    ] == ["minari/pole-v0/*", "arn:aws:s3:::data/minari/pole-v0/*"]
    error_message = "A folder is read with all that is in it."
  }
  assert {
    condition = alltrue([
      for statement in jsondecode(aws_iam_role_policy.worker["tftest-1"].policy).Statement : !endswith(statement.Sid, "Demonstrations")
    ])
    error_message = "A run without pretraining may read nothing more."
  }
}
