# Each validation refuses what it is there for.

mock_provider "aws" {
  source = "./tests/mocks"
}

variables {
  s3_bucket_name = "my-runs"
  key_name       = "mine"
  allowed_cidrs  = ["203.0.113.7/32"]
}

run "refuses_s3_bucket_name_0" {
  command = plan
  variables {
    s3_bucket_name = "with.dots"
  }
  expect_failures = [var.s3_bucket_name]
}

run "refuses_key_name_1" {
  command = plan
  variables {
    key_name = ""
  }
  expect_failures = [var.key_name]
}

run "refuses_allowed_cidrs_2" {
  command = plan
  variables {
    allowed_cidrs = []
  }
  expect_failures = [var.allowed_cidrs]
}

run "refuses_cluster_name_3" {
  command = plan
  variables {
    cluster_name = "Large"
  }
  expect_failures = [var.cluster_name]
}

run "refuses_prefix_4" {
  command = plan
  variables {
    prefix = "/begins"
  }
  expect_failures = [var.prefix]
}

run "refuses_aws_region_5" {
  command = plan
  variables {
    aws_region = "cn-north-1"
  }
  expect_failures = [var.aws_region]
}

run "refuses_subnet_ids_6" {
  command = plan
  variables {
    subnet_ids = ["mine"]
  }
  expect_failures = [var.subnet_ids]
}

run "refuses_ami_id_7" {
  command = plan
  variables {
    ami_id = "ubuntu"
  }
  expect_failures = [var.ami_id]
}

run "refuses_secret_parameters_8" {
  command = plan
  variables {
    secret_parameters = ["a b"]
  }
  expect_failures = [var.secret_parameters]
}

run "refuses_read_s3_urls_9" {
  command = plan
  variables {
    read_s3_urls = ["s3://bucket/no-slash"]
  }
  expect_failures = [var.read_s3_urls]
}

run "refuses_kms_key_arn_10" {
  command = plan
  variables {
    kms_key_arn = "alias/mine"
  }
  expect_failures = [var.kms_key_arn]
}

run "refuses_allowed_cidrs_11" {
  command = plan
  variables {
    allowed_cidrs = ["0.0.0.0/0"]
  }
  expect_failures = [var.allowed_cidrs]
}

run "refuses_aws_region_12" {
  command = plan
  variables {
    aws_region = "nowhere"
  }
  expect_failures = [var.aws_region]
}
