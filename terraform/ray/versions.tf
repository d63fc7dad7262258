terraform {
  # 1.9: a variable's validation may look at other variables.
  required_version = ">= 1.9"

  required_providers {
    aws = {
      source = "hashicorp/aws"
      # What is tested. In 6 the data source aws_s3_bucket gives the region that was asked for, not the bucket's own: a bucket
      # of another region would pass. The lock file names the one version and its checksums.
      version = "~> 5.100"
    }
  }
}

provider "aws" {
  region = var.aws_region

  default_tags {
    tags = { "train-cloud" = var.cluster_name }
  }
}
