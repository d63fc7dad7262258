# A worker reads exactly the parameters that its run file names; a group's runs share its files; nothing current expires.

mock_provider "aws" {
  source = "./tests/mocks"
}

variables {
  run_files = ["tests/secrets_run.yaml", "tests/run.yaml"]
  # The tests end in a destroy.
  delete_artifacts_on_destroy = true
}

run "secrets" {
  assert {
    condition = one([
      for statement in jsondecode(aws_iam_role_policy.worker["with-secrets"].policy).Statement :
      statement.Resource if statement.Sid == "ReadSecrets" && statement.Action == "ssm:GetParameter"
      ]) == [
      "arn:aws:ssm:us-east-1:123456789012:parameter/our-lab/wandb",
      "arn:aws:ssm:us-east-1:123456789012:parameter/plain-name",
    ]
    error_message = "with-secrets: its two parameters and no others."
  }

  assert {
    condition = one([
      for statement in jsondecode(aws_iam_role_policy.worker["with-secrets"].policy).Statement :
      statement.Resource if statement.Sid == "WriteExperiment"
      ]) == [
      "arn:aws:s3:::train-cloud-123456789012-us-east-1/experiments/a-group/config.json",
      "arn:aws:s3:::train-cloud-123456789012-us-east-1/experiments/a-group/all_results.json",
    ]
    error_message = "A run of a group writes the group's two files."
  }

  assert {
    condition = alltrue([
      for statement in jsondecode(aws_iam_role_policy.worker["tftest-1"].policy).Statement : !contains(["ReadSecrets", "WriteExperiment", "ListExperiment"], statement.Sid)
    ])
    error_message = "A run without secrets reads none."
  }

  assert {
    condition = alltrue(flatten([
      for configuration in aws_s3_bucket_lifecycle_configuration.runs : [
        for rule in configuration.rule : [
          for expiration in rule.expiration : coalesce(expiration.days, 0) == 0 && expiration.date == null
        ]
      ]
    ]))
    error_message = "A rule of the bucket must never expire a current object: a final model stays."
  }
}
