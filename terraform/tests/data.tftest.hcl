# What a worker may read as data: exactly what its run file names.

mock_provider "aws" {
  source = "./tests/mocks"
}

variables {
  run_files = ["tests/data_run.yaml", "tests/run.yaml"]
  # The tests end in a destroy.
  delete_artifacts_on_destroy = true
  prefix                      = "group"
}

run "reads_its_data" {
  assert {
    condition = [
      for statement in jsondecode(aws_iam_role_policy.worker["frames-1"].policy).Statement :
      try("${statement.Resource} ${statement.Condition.StringLike["s3:prefix"][0]}", statement.Resource) if can(regex("Data[12]$", statement.Sid))
      ] == [
      "arn:aws:s3:::bucket-of-frames game/frames/*", "arn:aws:s3:::whole-bucket *",
      "arn:aws:s3:::bucket-of-frames/game/frames/*", "arn:aws:s3:::whole-bucket/*",
    ]
    error_message = "Each folder is listed and read, with all that is in it."
  }
  assert {
    condition = alltrue([
      for statement in jsondecode(aws_iam_role_policy.worker["tftest-1"].policy).Statement : !can(regex("Data[0-9]*$", statement.Sid))
    ])
    error_message = "A run without data may read nothing more."
  }
}
