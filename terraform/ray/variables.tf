# What the nodes of a Ray cluster need to be there; the cluster itself is made by `ray up` (examples/ray/cluster.yaml).

variable "s3_bucket_name" {
  description = "Bucket that the runs are stored in, of aws_region; it exists. The one of the EC2 module will do."
  type        = string

  validation {
    # No dots: TLS certificates cover one label.
    condition     = can(regex("^[a-z0-9][a-z0-9-]{1,61}[a-z0-9]$", var.s3_bucket_name))
    error_message = "s3_bucket_name: use 3 to 63 lower-case letters, digits and inner hyphens."
  }
}

variable "key_name" {
  description = "EC2 key pair of aws_region, with which `ray up` reaches the head, and the head its workers."
  type        = string

  validation {
    condition     = can(regex("^[!-~]([ -~]{0,253}[!-~])?$", var.key_name)) && !can(regex("[*?]", var.key_name))
    error_message = "key_name: name an EC2 key pair that exists, with 1 to 255 printable characters and no * or ?."
  }
}

variable "allowed_cidrs" {
  description = "Who may connect to the nodes by SSH: the address that `ray up` is called from, as 203.0.113.7/32. Ray's own ports are open to the nodes alone."
  type        = list(string)

  validation {
    condition     = length(var.allowed_cidrs) > 0 && alltrue([for cidr in var.allowed_cidrs : can(cidrnetmask(cidr))])
    error_message = "allowed_cidrs: give at least one IPv4 range, for example [\"203.0.113.7/32\"]: without it `ray up` cannot reach the head."
  }

  validation {
    condition     = alltrue([for cidr in var.allowed_cidrs : !can(regex("/[0-7]$", cidr))])
    error_message = "allowed_cidrs: a range of /0 to /7 opens the nodes to the world; give the addresses that you connect from."
  }
}

variable "cluster_name" {
  description = "The cluster's name, by which the head knows its workers; two clusters have two names."
  type        = string
  default     = "train-cloud"
  nullable    = false

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{0,18}[a-z0-9]$", var.cluster_name))
    error_message = "cluster_name: use 2 to 20 lower-case letters, digits and inner hyphens, a letter first."
  }
}

variable "prefix" {
  description = "Folder in the bucket that everything lies under; empty: the bucket's root."
  type        = string
  default     = ""
  nullable    = false

  validation {
    condition     = can(regex("^([A-Za-z0-9][A-Za-z0-9_-]*(/[A-Za-z0-9][A-Za-z0-9_-]*)*)?$", var.prefix)) && length(var.prefix) <= 100
    error_message = "prefix: use at most 100 letters, digits, hyphens and underscores, with single slashes inside."
  }
}

variable "aws_region" {
  description = "Region of the nodes and the bucket. One of the partitions aws and aws-us-gov: the others have other endpoints than the ones that are used here."
  type        = string
  default     = "us-east-1"
  nullable    = false

  validation {
    condition     = can(regex("^[a-z]{2,4}(-[a-z]+)+-[0-9]$", var.aws_region))
    error_message = "aws_region: give a region's code, for example us-east-1."
  }

  validation {
    condition     = !can(regex("^(cn|eusc)-|^[a-z]+-iso[a-z]*-", var.aws_region))
    error_message = "aws_region: China, the European Sovereign Cloud and the isolated regions have endpoints of their own, which train-cloud does not know; give another region."
  }
}

variable "subnet_ids" {
  description = "Subnets of one VPC that the nodes stand in, with a way to the internet and to S3. Empty: those of the default VPC."
  type        = list(string)
  default     = []
  nullable    = false

  validation {
    condition     = alltrue([for id in var.subnet_ids : can(regex("^subnet-[0-9a-f]{8,17}$", id))])
    error_message = "subnet_ids: give ids like subnet-0123456789abcdef0."
  }
}

variable "ami_id" {
  description = "Image of the nodes, x86-64, Ubuntu 22.04 or later, with NVIDIA's driver where there are GPUs. Null: AWS's Deep Learning Base image, as it is when this is applied."
  type        = string
  default     = null

  validation {
    condition     = var.ami_id == null || can(regex("^ami-[0-9a-f]{8,17}$", var.ami_id))
    error_message = "ami_id: give an image's id, for example ami-0123456789abcdef0."
  }
}

variable "secret_parameters" {
  description = "Names of the SSM parameters that run files name under `secrets`, for example [\"/our-lab/wandb\"]."
  type        = list(string)
  default     = []
  nullable    = false

  validation {
    condition     = alltrue([for name in var.secret_parameters : can(regex("^/?[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*$", name))])
    error_message = "secret_parameters: write each as /my-project/key."
  }
}

variable "read_s3_urls" {
  description = "Folders that runs begin with, beside the bucket's: models and demonstrations, each as s3://bucket/folder/."
  type        = list(string)
  default     = []
  nullable    = false

  validation {
    condition     = alltrue([for url in var.read_s3_urls : can(regex("^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]/([^*?]+/)?$", url))])
    error_message = "read_s3_urls: write each as s3://bucket/folder/ with a slash at its end."
  }
}

variable "kms_key_arn" {
  description = "Your own KMS key (of aws_region) that the bucket is encrypted with, if it is. Null: AWS's keys."
  type        = string
  default     = null

  validation {
    condition     = var.kms_key_arn == null || can(regex("^arn:[a-z-]+:kms:${var.aws_region}:[0-9]{12}:key/[0-9a-z-]+$", var.kms_key_arn))
    error_message = "kms_key_arn: give a key of aws_region by its ARN, for example arn:aws:kms:us-east-1:123456789012:key/0123…; an alias will not do."
  }
}
