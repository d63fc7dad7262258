# What the module makes of a pipeline file.

mock_provider "aws" {
  source = "./tests/mocks"
}

variables {
  pipeline_file = "tests/pipeline.yaml"
  prefix        = "group"
  # The tests end in a destroy.
  delete_artifacts_on_destroy = true
}

run "one_group_for_all_sessions" {
  assert {
    condition     = [for group in aws_autoscaling_group.worker : group.name] == ["train-cloud-tftest"]
    error_message = "The pipeline has one group."
  }
  assert {
    condition = (
      aws_s3_object.run_file["tftest"].key == "group/pipelines/tftest/run.yaml" &&
      aws_s3_object.run_file["tftest"].source == "tests/pipeline-sessions/tftest.yaml" &&
      strcontains(local.user_data["tftest"], "TRAIN_CLOUD_FOLDER=pipelines\n")
    )
    error_message = "Its machines read the file that was made for them."
  }
  assert {
    condition = [
      for statement in jsondecode(aws_iam_role_policy.worker["tftest"].policy).Statement : statement
      if contains(["ListSessions", "TrainSessions"], statement.Sid)
      ] == [
      {
        Sid       = "ListSessions"
        Effect    = "Allow"
        Action    = "s3:ListBucket"
        Resource  = "arn:aws:s3:::train-cloud-123456789012-us-east-1"
        Condition = { StringLike = { "s3:prefix" = ["group/runs/tftest-*"] } }
      },
      {
        Sid    = "TrainSessions"
        Effect = "Allow"
        Action = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"]
        Resource = [
          for key in ["runs/tftest-*", "pipelines/tftest/pipeline_state.json", "pipelines/tftest/pipeline_report.json"] :
          "arn:aws:s3:::train-cloud-123456789012-us-east-1/group/${key}"
        ]
      },
    ]
    error_message = "They write the runs of the pipeline's sessions, and no other's."
  }
  assert {
    condition     = contains(keys(aws_s3_object.code), "${local.runs["tftest"].code_digest}/user/my_env.py")
    error_message = "The sessions' code travels."
  }
}
