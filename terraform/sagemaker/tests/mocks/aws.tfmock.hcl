# What the mock provider answers where a made-up text will not do.

mock_data "aws_caller_identity" {
  defaults = { account_id = "123456789012" }
}

mock_data "aws_partition" {
  defaults = { partition = "aws" }
}

mock_resource "aws_ecr_repository" {
  defaults = {
    arn            = "arn:aws:ecr:us-east-1:123456789012:repository/train-cloud"
    repository_url = "123456789012.dkr.ecr.us-east-1.amazonaws.com/train-cloud"
  }
}

mock_resource "aws_iam_role" {
  defaults = { arn = "arn:aws:iam::123456789012:role/train-cloud-sagemaker-us-east-1" }
}
