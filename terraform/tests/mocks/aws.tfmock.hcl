# What the mock provider answers where a made-up text will not do.

mock_data "aws_caller_identity" {
  defaults = { account_id = "123456789012" }
}

mock_data "aws_partition" {
  defaults = { partition = "aws" }
}

mock_data "aws_ssm_parameter" {
  defaults = { insecure_value = "ami-0123456789abcdef0" }
}

mock_data "aws_ami" {
  defaults = {
    id               = "ami-0123456789abcdef0"
    architecture     = "x86_64"
    root_device_name = "/dev/sda1"
    block_device_mappings = [
      { device_name = "/dev/sda1", no_device = "", virtual_name = "", ebs = { volume_size = "75" } },
      { device_name = "/dev/sdb", no_device = "", virtual_name = "ephemeral0", ebs = {} },
    ]
  }
}

mock_data "aws_subnets" {
  defaults = { ids = ["subnet-0123456789abcdef0", "subnet-0123456789abcdef1"] }
}

mock_resource "aws_launch_template" {
  defaults = { id = "lt-0123456789abcdef0", latest_version = 7 }
}

mock_data "aws_s3_bucket" {
  defaults = { region = "us-east-1" }
}

mock_data "aws_iam_role" {
  defaults = { arn = "arn:aws:iam::123456789012:role/aws-service-role/autoscaling.amazonaws.com/AWSServiceRoleForAutoScaling" }
}

mock_resource "aws_sns_topic" {
  defaults = { arn = "arn:aws:sns:us-east-1:123456789012:train-cloud-20260101000000000000000001" }
}

mock_resource "aws_cloudwatch_log_group" {
  defaults = { arn = "arn:aws:logs:us-east-1:123456789012:log-group:/train-cloud-tftest-1" }
}
