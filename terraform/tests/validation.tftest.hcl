# Each validation refuses what its message says.

mock_provider "aws" {
  source = "./tests/mocks"
}

variables {
  run_file = "tests/run.yaml"
}

run "run_file_missing" {
  command         = plan
  expect_failures = [var.run_file]
  variables {
    run_file = "tests/none.yaml"
  }
}

run "run_file_bad_run_id" {
  command         = plan
  expect_failures = [var.run_file]
  variables {
    run_file = "tests/bad_run_id.yaml"
  }
}

run "run_file_with_seeds" {
  command         = plan
  expect_failures = [var.run_file]
  variables {
    run_file = "tests/seeds.yaml"
  }
}

run "run_files_with_seeds" {
  command         = plan
  expect_failures = [var.run_files]
  variables {
    run_file  = null
    run_files = ["tests/run.yaml", "tests/seeds.yaml"]
  }
}

run "no_run_file" {
  command         = plan
  expect_failures = [var.run_file]
  variables {
    run_file = null
  }
}

run "run_file_and_run_files" {
  command         = plan
  expect_failures = [var.run_file]
  variables {
    run_files = ["tests/run.yaml"]
  }
}

run "run_files_missing" {
  command         = plan
  expect_failures = [var.run_files]
  variables {
    run_file  = null
    run_files = ["tests/run.yaml", "tests/none.yaml"]
  }
}

run "run_files_bad_run_id" {
  command         = plan
  expect_failures = [var.run_files]
  variables {
    run_file  = null
    run_files = ["tests/run.yaml", "tests/bad_run_id.yaml"]
  }
}

run "run_files_with_one_run_id" {
  command         = plan
  expect_failures = [var.run_files]
  variables {
    run_file  = null
    run_files = ["tests/run.yaml", "tests/same_run_id.yaml"]
  }
}

run "run_files_and_experiment_file" {
  command         = plan
  expect_failures = [var.run_file]
  variables {
    run_file        = null
    run_files       = ["tests/run.yaml"]
    experiment_file = "tests/experiment.yaml"
  }
}

run "experiment_file_missing" {
  command         = plan
  expect_failures = [var.experiment_file]
  variables {
    run_file        = null
    experiment_file = "tests/none.yaml"
  }
}

run "experiment_file_bad_name" {
  command         = plan
  expect_failures = [var.experiment_file]
  variables {
    run_file        = null
    experiment_file = "tests/experiment_bad_name.yaml"
  }
}

run "experiment_file_not_expanded" {
  command         = plan
  expect_failures = [var.experiment_file]
  variables {
    run_file        = null
    experiment_file = "tests/experiment_not_expanded.yaml"
  }
}

run "experiment_file_with_too_many_runs" {
  command         = plan
  expect_failures = [var.experiment_file]
  variables {
    run_file        = null
    experiment_file = "tests/experiment_large.yaml"
  }
}

run "experiment_file_changed_since" {
  command         = plan
  expect_failures = [terraform_data.experiment]
  variables {
    run_file        = null
    experiment_file = "tests/experiment_changed.yaml"
  }
}

run "experiment_file_with_a_run_file_missing" {
  command         = plan
  expect_failures = [terraform_data.experiment]
  variables {
    run_file        = null
    experiment_file = "tests/experiment_incomplete.yaml"
  }
}

run "training_type" {
  command         = plan
  expect_failures = [var.training_type]
  variables {
    training_type = "my algorithm"
  }
}

run "total_timesteps_zero" {
  command         = plan
  expect_failures = [var.total_timesteps]
  variables {
    total_timesteps = 0
  }
}

run "total_timesteps_fraction" {
  command         = plan
  expect_failures = [var.total_timesteps]
  variables {
    total_timesteps = 1.5
  }
}

run "save_frequency_zero" {
  command         = plan
  expect_failures = [var.save_frequency]
  variables {
    save_frequency = 0
  }
}

run "save_frequency_above_total" {
  command         = plan
  expect_failures = [var.save_frequency]
  variables {
    save_frequency  = 11
    total_timesteps = 10
  }
}

run "project_name" {
  command         = plan
  expect_failures = [var.project_name]
  variables {
    project_name = "Mine"
  }
}

run "project_name_too_long" {
  command         = plan
  expect_failures = [var.project_name]
  variables {
    project_name = "abcdefghijklmnopqrstu"
  }
}

run "aws_region" {
  command         = plan
  expect_failures = [var.aws_region]
  variables {
    aws_region = "virginia"
  }
}

run "aws_region_china" {
  command         = plan
  expect_failures = [var.aws_region]
  variables {
    aws_region = "cn-north-1"
  }
}

run "availability_zones" {
  command         = plan
  expect_failures = [var.availability_zones]
  variables {
    availability_zones = ["eu-west-1a"]
  }
}

run "subnet_ids" {
  command         = plan
  expect_failures = [var.subnet_ids]
  variables {
    subnet_ids = ["my-subnet"]
  }
}

run "subnet_ids_and_zones" {
  command         = plan
  expect_failures = [var.subnet_ids]
  variables {
    subnet_ids         = ["subnet-0123456789abcdef0"]
    availability_zones = ["us-east-1a"]
  }
}

run "instance_types_none" {
  command         = plan
  expect_failures = [var.instance_types]
  variables {
    instance_types = []
  }
}

run "instance_types_twice" {
  command         = plan
  expect_failures = [var.instance_types]
  variables {
    instance_types = ["g5.xlarge", "g5.xlarge"]
  }
}

run "instance_types_form" {
  command         = plan
  expect_failures = [var.instance_types]
  variables {
    instance_types = ["g5"]
  }
}

run "instance_types_graviton" {
  command         = plan
  expect_failures = [var.instance_types]
  variables {
    instance_types = ["g5.xlarge", "g5g.xlarge"]
  }
}

run "instance_types_amd_gpu" {
  command         = plan
  expect_failures = [var.instance_types]
  variables {
    instance_types = ["g5.xlarge", "g4ad.xlarge"]
  }
}

run "instance_types_paravirtual" {
  command         = plan
  expect_failures = [var.instance_types]
  variables {
    instance_types = ["g5.xlarge", "m1.small"]
  }
}

run "instance_types_volta" {
  command         = plan
  expect_failures = [var.instance_types]
  variables {
    instance_types = ["g5.xlarge", "p3.2xlarge"]
  }
}

# With a driver of one's own.
run "instance_types_volta_with_an_image" {
  command = plan
  variables {
    instance_types = ["p3.2xlarge", "p3dn.24xlarge", "g3.4xlarge", "g6f.large"]
    ami_id         = "ami-0123456789abcdef0"
  }
  assert {
    condition     = length(aws_autoscaling_group.worker) == 1
    error_message = "An image of one's own may drive what the default one does not."
  }
}

run "instance_types_amd_gpu_with_an_image" {
  command         = plan
  expect_failures = [var.instance_types]
  variables {
    instance_types = ["g4ad.xlarge"]
    ami_id         = "ami-0123456789abcdef0"
  }
}

# None of these is meant.
run "instance_types_that_are_driven" {
  command = plan
  variables {
    instance_types = [
      "g4dn.xlarge", "g5.xlarge", "g6.xlarge", "g6e.xlarge", "gr6.4xlarge", "g7e.2xlarge", "p4d.24xlarge", "p4de.24xlarge", "p5.48xlarge",
      "p5en.48xlarge", "p6-b200.48xlarge", "c7i.large", "c7a.large", "c6i.large", "c7i-flex.large", "m6i.large", "m5dn.large", "t3.micro",
      "t3a.small", "r7iz.large", "x2idn.16xlarge", "i4i.large", "im4i.large", "hpc7a.12xlarge", "u-3tb1.56xlarge", "z1d.large", "d3en.xlarge",
      "m8i-flex.large",
    ]
  }
  assert {
    condition     = length(aws_autoscaling_group.worker) == 1
    error_message = "A type that works is refused."
  }
}

run "ami_id" {
  command         = plan
  expect_failures = [var.ami_id]
  variables {
    ami_id = "ubuntu"
  }
}

run "root_volume_gb" {
  command         = plan
  expect_failures = [var.root_volume_gb]
  variables {
    root_volume_gb = 49
  }
}

run "max_runtime_hours_zero" {
  command         = plan
  expect_failures = [var.max_runtime_hours]
  variables {
    max_runtime_hours = 0
  }
}

run "max_runtime_hours_above" {
  command         = plan
  expect_failures = [var.max_runtime_hours]
  variables {
    max_runtime_hours = 721
  }
}

run "max_attempts" {
  command         = plan
  expect_failures = [var.max_attempts]
  variables {
    max_attempts = 0
  }
}

run "s3_bucket_name" {
  command         = plan
  expect_failures = [var.s3_bucket_name]
  variables {
    s3_bucket_name = "My.Bucket"
  }
}

run "s3_bucket_name_reserved" {
  command         = plan
  expect_failures = [var.s3_bucket_name]
  variables {
    s3_bucket_name = "runs--x-s3"
  }
}

run "existing_bucket_without_name" {
  command         = plan
  expect_failures = [var.existing_bucket]
  variables {
    existing_bucket = true
  }
}

run "prefix" {
  command         = plan
  expect_failures = [var.prefix]
  variables {
    prefix = "/runs/"
  }
}

run "delete_of_an_existing_bucket" {
  command         = plan
  expect_failures = [var.delete_artifacts_on_destroy]
  variables {
    delete_artifacts_on_destroy = true
    existing_bucket             = true
    s3_bucket_name              = "some-bucket"
  }
}

run "key_pair_name" {
  command         = plan
  expect_failures = [var.key_pair_name]
  variables {
    key_pair_name = "my key"
  }
}

run "allowed_cidrs" {
  command         = plan
  expect_failures = [var.allowed_cidrs]
  variables {
    allowed_cidrs = ["203.0.113.7"]
  }
}

run "allowed_cidrs_within_a_network" {
  command         = plan
  expect_failures = [var.allowed_cidrs]
  variables {
    allowed_cidrs = ["203.0.113.7/24"]
  }
}

run "allowed_cidrs_open" {
  command         = plan
  expect_failures = [var.allowed_cidrs]
  variables {
    allowed_cidrs = ["0.0.0.0/0"]
  }
}

run "allowed_cidrs_half_open" {
  command         = plan
  expect_failures = [var.allowed_cidrs]
  variables {
    allowed_cidrs = ["128.0.0.0/1"]
  }
}

run "kms_key_arn_alias" {
  command         = plan
  expect_failures = [var.kms_key_arn]
  variables {
    kms_key_arn = "arn:aws:kms:us-east-1:123456789012:alias/mine"
  }
}

run "notification_emails" {
  command         = plan
  expect_failures = [var.notification_emails]
  variables {
    notification_emails = ["me@example.org", "me"]
  }
}

run "cloudwatch_log_days" {
  command         = plan
  expect_failures = [var.cloudwatch_log_days]
  variables {
    cloudwatch_log_days = 2
  }
}

# What only AWS can say.

run "image_for_graviton" {
  command         = plan
  expect_failures = [data.aws_ami.image]
  override_data {
    target = data.aws_ami.image
    values = { id = "ami-0123456789abcdef0", architecture = "arm64", root_device_name = "/dev/sda1" }
  }
}

run "root_volume_smaller_than_the_image" {
  command         = plan
  expect_failures = [aws_launch_template.worker]
  variables {
    root_volume_gb = 74
  }
}

run "root_volume_as_large_as_the_image" {
  command = plan
  variables {
    root_volume_gb = 75
  }
  assert {
    condition     = aws_launch_template.worker["tftest-1"].block_device_mappings[0].ebs[0].volume_size == 75
    error_message = "The image's own size is enough."
  }
}

run "no_default_subnet" {
  command         = plan
  expect_failures = [data.aws_subnets.default]
  override_data {
    target = data.aws_subnets.default
    values = { ids = [] }
  }
}

run "subnets_of_two_networks" {
  command         = plan
  expect_failures = [aws_security_group.worker]
  variables {
    subnet_ids = ["subnet-0123456789abcdef0", "subnet-0123456789abcdef1"]
  }
  override_data {
    target = data.aws_subnet.given["subnet-0123456789abcdef1"]
    values = { vpc_id = "vpc-other" }
  }
}

run "bucket_of_another_region" {
  command         = plan
  expect_failures = [data.aws_s3_bucket.existing]
  variables {
    existing_bucket = true
    s3_bucket_name  = "some-bucket"
  }
  override_data {
    target = data.aws_s3_bucket.existing
    values = { region = "eu-west-1" }
  }
}

run "pipeline_file_and_run_file" {
  command         = plan
  expect_failures = [var.run_file]
  variables {
    pipeline_file = "tests/pipeline.yaml"
  }
}

run "pipeline_file_missing" {
  command         = plan
  expect_failures = [var.pipeline_file]
  variables {
    run_file      = null
    pipeline_file = "tests/none.yaml"
  }
}

run "pipeline_file_not_expanded" {
  command         = plan
  expect_failures = [var.pipeline_file]
  variables {
    run_file      = null
    pipeline_file = "tests/pipeline_not_expanded.yaml"
  }
}

run "pipeline_file_changed_since" {
  command         = plan
  expect_failures = [terraform_data.pipeline]
  variables {
    run_file      = null
    pipeline_file = "tests/pipeline_changed.yaml"
  }
}
