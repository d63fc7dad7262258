# What training jobs of SageMaker need to be there; the jobs themselves are created by `train-cloud launch`.

variable "s3_bucket_name" {
  description = "Bucket that the runs are stored in, of aws_region; it exists. The one of the EC2 module will do."
  type        = string

  validation {
    # No dots: TLS certificates cover one label.
    condition     = can(regex("^[a-z0-9][a-z0-9-]{1,61}[a-z0-9]$", var.s3_bucket_name))
    error_message = "s3_bucket_name: use 3 to 63 lower-case letters, digits and inner hyphens."
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

variable "project_name" {
  description = "First part of the name of every resource."
  type        = string
  default     = "train-cloud"
  nullable    = false

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{0,18}[a-z0-9]$", var.project_name))
    error_message = "project_name: use 2 to 20 lower-case letters, digits and inner hyphens, a letter first."
  }
}

variable "aws_region" {
  description = "Region of the jobs, their image and the bucket. One of the partitions aws and aws-us-gov: the others have other endpoints than the ones that are used here."
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
  description = "Subnets of one VPC that the jobs stand in, with a way to S3 and ECR: a gateway endpoint, interface endpoints or a NAT. Empty: SageMaker's own network."
  type        = list(string)
  default     = []
  nullable    = false

  validation {
    condition     = alltrue([for id in var.subnet_ids : can(regex("^subnet-[0-9a-f]{8,17}$", id))]) && length(var.subnet_ids) <= 16
    error_message = "subnet_ids: give at most 16 ids, each like subnet-0123456789abcdef0."
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
  description = "Your own KMS key (symmetric, of aws_region and this account) for the image, the log group and the jobs' volumes; also what the bucket is encrypted with, if it is. Null: AWS's keys."
  type        = string
  default     = null

  validation {
    condition     = var.kms_key_arn == null || can(regex("^arn:[a-z-]+:kms:${var.aws_region}:[0-9]{12}:key/[0-9a-z-]+$", var.kms_key_arn))
    error_message = "kms_key_arn: give a key of aws_region by its ARN, for example arn:aws:kms:us-east-1:123456789012:key/0123…; an alias will not do."
  }
}

variable "notification_emails" {
  description = "Who is told by e-mail when a job has completed, failed or stopped; each address has to confirm once. Empty: the topic alone, to subscribe to in other ways. Null: no topic."
  type        = list(string)
  default     = null

  validation {
    condition     = alltrue([for address in coalesce(var.notification_emails, []) : can(regex("^[^@[:space:]]+@[^@[:space:]]+\\.[^@[:space:]]+$", address))])
    error_message = "notification_emails: write each as name@example.org."
  }
}

variable "log_days" {
  description = "Make the log group of all training jobs of this account and region, and keep what it has for so many days. Null: SageMaker makes it with the first job and keeps it for ever; one that is there already has to be imported."
  type        = number
  default     = null

  validation {
    condition     = var.log_days == null || contains([1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731], coalesce(var.log_days, 1))
    error_message = "log_days: CloudWatch knows 1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545 and 731."
  }
}

variable "delete_images_on_destroy" {
  description = "`terraform destroy` removes the repository with the images in it. It counts only once it was applied."
  type        = bool
  default     = false
  nullable    = false
}
