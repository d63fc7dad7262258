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
  defaults = { id = "ami-0123456789abcdef0", architecture = "x86_64", root_device_name = "/dev/sda1" }
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
