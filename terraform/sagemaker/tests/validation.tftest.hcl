# Each validation refuses what it says; plan only, on a mocked provider.

mock_provider "aws" {
  source = "./tests/mocks"
}

variables {
  s3_bucket_name = "a-bucket"
}

run "the_defaults_are_taken" {
  command = plan

  assert {
    condition     = output.store == "s3://a-bucket" && length(output.security_groups) == 0 && output.topic_arn == null
    error_message = "Nothing that is off unless asked for is on."
  }
}

run "s3_bucket_name" {
  command = plan

  variables {
    s3_bucket_name = "A_Bucket"
  }

  expect_failures = [var.s3_bucket_name]
}

run "prefix" {
  command = plan

  variables {
    prefix = "/a"
  }

  expect_failures = [var.prefix]
}

run "project_name" {
  command = plan

  variables {
    project_name = "My Project"
  }

  expect_failures = [var.project_name]
}

run "aws_region" {
  command = plan

  variables {
    aws_region = "Ohio"
  }

  expect_failures = [var.aws_region]
}

run "aws_region_elsewhere" {
  command = plan

  variables {
    aws_region = "cn-north-1"
  }

  expect_failures = [var.aws_region]
}

run "subnet_ids" {
  command = plan

  variables {
    subnet_ids = ["us-east-1a"]
  }

  expect_failures = [var.subnet_ids]
}

run "secret_parameters" {
  command = plan

  variables {
    secret_parameters = ["my key"]
  }

  expect_failures = [var.secret_parameters]
}

run "read_s3_urls" {
  command = plan

  variables {
    read_s3_urls = ["s3://a-bucket/models"]
  }

  expect_failures = [var.read_s3_urls]
}

run "kms_key_arn" {
  command = plan

  variables {
    kms_key_arn = "alias/mine"
  }

  expect_failures = [var.kms_key_arn]
}

run "notification_emails" {
  command = plan

  variables {
    notification_emails = ["me"]
  }

  expect_failures = [var.notification_emails]
}

run "log_days" {
  command = plan

  variables {
    log_days = 2
  }

  expect_failures = [var.log_days]
}
