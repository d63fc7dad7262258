# What is trained stands in the run file; here stands where, for how long and for whom.

variable "run_file" {
  description = "Path of the run file (YAML), relative to the folder that Terraform runs in. Its run_id names the worker's resources. For several runs: run_files, experiment_file, or pipeline_file."
  type        = string
  default     = null

  validation {
    condition     = var.run_file != null || length(var.run_files) > 0 || var.experiment_file != null || var.pipeline_file != null
    error_message = "run_file: name a run file, for example ../examples/pendulum_sac.yaml, or several in run_files, or an experiment_file, or a pipeline_file."
  }

  validation {
    condition     = length(compact([var.run_file, length(var.run_files) == 0 ? null : "several", var.experiment_file, var.pipeline_file])) < 2
    error_message = "run_file: give one of run_file, run_files, experiment_file and pipeline_file."
  }

  validation {
    condition     = var.run_file == null || can(file(pathexpand(var.run_file)))
    error_message = "run_file: no readable file at this path; it is relative to the folder that Terraform runs in, for example ../examples/pendulum_sac.yaml."
  }

  validation {
    condition     = !can(file(pathexpand(var.run_file))) || can(regex("^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$", yamldecode(file(pathexpand(var.run_file))).run_id))
    error_message = "run_file: it must be a YAML map whose run_id has 1 to 63 lower-case letters, digits and inner hyphens; `train-cloud validate RUN_FILE` says what is wrong with it."
  }

  validation {
    condition     = try(yamldecode(file(pathexpand(var.run_file))).seeds, null) == null
    error_message = "run_file: its seeds stand for several runs; `train-cloud expand RUN_FILE` writes a run file for each, to be named in run_files."
  }
}

variable "run_files" {
  description = "Paths of several run files, in the place of run_file: each run gets a group, a role and a schedule of its own. The other variables count for all of them."
  type        = list(string)
  default     = []
  nullable    = false

  validation {
    condition     = alltrue([for path in var.run_files : can(file(pathexpand(path)))])
    error_message = "run_files: no readable file at ${join(", ", [for path in var.run_files : path if !can(file(pathexpand(path)))])}; paths are relative to the folder that Terraform runs in."
  }

  validation {
    condition     = alltrue([for path in var.run_files : !can(file(pathexpand(path))) || can(regex("^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$", yamldecode(file(pathexpand(path))).run_id))])
    error_message = "run_files: each must be a YAML map whose run_id has 1 to 63 lower-case letters, digits and inner hyphens; `train-cloud validate RUN_FILE` says what is wrong with one."
  }

  validation {
    condition     = alltrue([for path in var.run_files : try(yamldecode(file(pathexpand(path))).seeds, null) == null])
    error_message = "run_files: the seeds of one stand for several runs; `train-cloud expand RUN_FILE` writes a run file for each."
  }

  validation {
    condition     = length(distinct([for path in var.run_files : try(yamldecode(file(pathexpand(path))).run_id, path)])) == length(var.run_files)
    error_message = "run_files: two of them have the same run_id; give each run its own."
  }
}

variable "experiment_file" {
  description = "Path of an experiment file (YAML), in the place of run_file: each of its runs gets what a run of run_files gets, and its limits hold over all of them. `train-cloud expand EXPERIMENT_FILE` writes their run files beside it, now and after each change."
  type        = string
  default     = null

  validation {
    condition     = var.experiment_file == null || can(file(pathexpand(var.experiment_file)))
    error_message = "experiment_file: no readable file at this path; it is relative to the folder that Terraform runs in."
  }

  validation {
    condition     = !can(file(pathexpand(var.experiment_file))) || can(regex("^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$", yamldecode(file(pathexpand(var.experiment_file))).experiment))
    error_message = "experiment_file: it must be a YAML map whose experiment has 1 to 63 lower-case letters, digits and inner hyphens; `train-cloud validate EXPERIMENT_FILE` says what is wrong with it."
  }

  validation {
    # Where local.experiment_listing is read from, which a validation of this variable cannot refer to.
    condition     = !can(yamldecode(file(pathexpand(var.experiment_file))).experiment) || can(jsondecode(file("${dirname(pathexpand(var.experiment_file))}/${yamldecode(file(pathexpand(var.experiment_file))).experiment}-runs/experiment.json")).runs)
    error_message = "experiment_file: its run files are not written yet: run train-cloud expand '${coalesce(var.experiment_file, "-")}' and then this again."
  }

  validation {
    # AWS makes 500 groups in a region, and an account has 1000 roles (quotas that can be raised).
    condition     = try(length(jsondecode(file("${dirname(pathexpand(var.experiment_file))}/${yamldecode(file(pathexpand(var.experiment_file))).experiment}-runs/experiment.json")).runs), 0) <= 200
    error_message = "experiment_file: it has more runs than the 200 of a stack: leave levels or seeds out with train-cloud expand --set, or train it on few machines with train-cloud train --parallel."
  }
}

variable "pipeline_file" {
  description = "Path of a pipeline file (YAML), in the place of run_file: one group, whose machine trains session after session, and whose capacity goes to 0 after the last one or at a failure that ends it. `train-cloud expand PIPELINE_FILE` writes what the machine reads beside it, now and after each change."
  type        = string
  default     = null

  validation {
    condition     = var.pipeline_file == null || can(file(pathexpand(var.pipeline_file)))
    error_message = "pipeline_file: no readable file at this path; it is relative to the folder that Terraform runs in."
  }

  validation {
    # Where local.pipeline_listing is read from, which a validation of this variable cannot refer to.
    condition     = !can(file(pathexpand(var.pipeline_file))) || can(regex("^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$", jsondecode(file("${dirname(pathexpand(var.pipeline_file))}/${replace(basename(pathexpand(var.pipeline_file)), "/\\.[^.]*$/", "")}-sessions/pipeline.json")).id))
    error_message = "pipeline_file: what is launched is not written yet: run train-cloud expand '${coalesce(var.pipeline_file, "-")}' and then this again."
  }
}

variable "training_type" {
  description = "Overrides the run file's algorithm: any that it may name itself (docs/run-file.md), or module:Class. Null: as the run file says."
  type        = string
  default     = null

  validation {
    condition     = var.training_type == null || can(regex("^[A-Za-z_][A-Za-z0-9_.]*(:[A-Za-z_][A-Za-z0-9_.]*)?$", var.training_type))
    error_message = "training_type: name an algorithm (sac, ppo, …) or module:Class, in letters, digits, underscores and dots."
  }
}

variable "total_timesteps" {
  description = "Overrides the run file's total_timesteps. Null: as the run file says."
  type        = number
  default     = null

  validation {
    condition     = var.total_timesteps == null || try(var.total_timesteps >= 1 && floor(var.total_timesteps) == var.total_timesteps, false)
    error_message = "total_timesteps: give a whole number of at least 1."
  }
}

variable "save_frequency" {
  description = "Overrides the run file's save_frequency: timesteps between two checkpoints. Null: as the run file says."
  type        = number
  default     = null

  validation {
    condition     = var.save_frequency == null || try(var.save_frequency >= 1 && floor(var.save_frequency) == var.save_frequency, false)
    error_message = "save_frequency: give a whole number of at least 1."
  }

  validation {
    condition     = try(var.save_frequency <= var.total_timesteps, true)
    error_message = "save_frequency: give at most total_timesteps."
  }
}

variable "project_name" {
  description = "First part of the name of every resource."
  type        = string
  default     = "train-cloud"
  nullable    = false

  validation {
    # With a run_id of 63 characters this makes 84; a launch template may have 128. Roles have shorter names of their own.
    condition     = can(regex("^[a-z][a-z0-9-]{0,18}[a-z0-9]$", var.project_name))
    error_message = "project_name: use 2 to 20 lower-case letters, digits and inner hyphens, a letter first."
  }
}

variable "aws_region" {
  description = "Region of everything; the bucket too. One of the partitions aws and aws-us-gov: the others have other endpoints than the ones that are used here."
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

variable "availability_zones" {
  description = "Zones of the default VPC to look for capacity in; empty: all of them. Not together with subnet_ids."
  type        = list(string)
  default     = []
  nullable    = false

  validation {
    condition     = alltrue([for zone in var.availability_zones : can(regex("^${var.aws_region}[a-z]$", zone))])
    error_message = "availability_zones: give zones of aws_region by name, for example us-east-1a."
  }
}

variable "subnet_ids" {
  description = "Subnets to launch in, all of one VPC and with a way to the internet; empty: the default VPC's."
  type        = list(string)
  default     = []
  nullable    = false

  validation {
    condition     = alltrue([for id in var.subnet_ids : can(regex("^subnet-[0-9a-f]{8,17}$", id))])
    error_message = "subnet_ids: give ids of the form subnet-0123456789abcdef0."
  }

  validation {
    condition     = length(var.subnet_ids) == 0 || length(var.availability_zones) == 0
    error_message = "subnet_ids: a subnet has its zone already; give subnet_ids or availability_zones, not both."
  }
}

# Instance types that cannot work, by their names.
locals {
  types_foreign        = "^(mac|a1\\.|[a-z]+[0-9]+[a-z]*(g[a-z]*|-gb[0-9]+)\\.)"
  types_without_cuda   = "^((inf|trn|dl|f|vt)[0-9]|g[0-9]+a|(g2|p2|cg1)\\.)"
  types_paravirtual    = "^(c1|m1|m2|t1)\\."
  types_not_by_default = "^(g3s?|p3(dn)?|gr?[0-9]+[a-z]*f)\\."
}

variable "instance_types" {
  description = "Acceptable instance types; more types find spot capacity sooner. For spot their order says nothing: AWS takes, by price and by spare capacity, the one that it expects to interrupt least (price-capacity-optimized). On demand it takes the first that it has. Types without a GPU train on the CPU. The default image drives NVIDIA's GPUs from Turing on: g4dn, g5, g6, g6e, gr6, p4, p5, p6 and newer."
  type        = list(string)
  default     = ["g6.xlarge", "g5.xlarge", "g4dn.xlarge"]
  nullable    = false

  validation {
    # 40 overrides are the limit of a mixed instances policy.
    condition     = length(var.instance_types) >= 1 && length(var.instance_types) <= 40 && length(distinct(var.instance_types)) == length(var.instance_types)
    error_message = "instance_types: give 1 to 40 different types."
  }

  validation {
    condition     = alltrue([for type in var.instance_types : can(regex("^[a-z][a-z0-9-]*\\.[a-z0-9-]+$", type))])
    error_message = "instance_types: write each as family.size, for example g5.xlarge."
  }

  validation {
    condition     = alltrue([for type in var.instance_types : !can(regex(local.types_foreign, type))])
    error_message = "instance_types: leave out ${join(", ", [for type in var.instance_types : type if can(regex(local.types_foreign, type))])}: the worker is Linux on x86_64, and these are macOS or ARM (Graviton, Grace)."
  }

  validation {
    condition     = alltrue([for type in var.instance_types : !can(regex(local.types_without_cuda, type))])
    error_message = "instance_types: leave out ${join(", ", [for type in var.instance_types : type if can(regex(local.types_without_cuda, type))])}: PyTorch's builds for CUDA compute on none of these, whatever the image: AMD's GPUs, Inferentia, Trainium, Gaudi, FPGAs, NVIDIA's before Maxwell."
  }

  validation {
    condition     = alltrue([for type in var.instance_types : !can(regex(local.types_paravirtual, type))])
    error_message = "instance_types: leave out ${join(", ", [for type in var.instance_types : type if can(regex(local.types_paravirtual, type))])}: these boot paravirtual images only, which no Ubuntu of today is."
  }

  validation {
    condition     = var.ami_id != null || alltrue([for type in var.instance_types : !can(regex(local.types_not_by_default, type))])
    error_message = "instance_types: leave out ${join(", ", [for type in var.instance_types : type if can(regex(local.types_not_by_default, type))])}: the default image's driver knows NVIDIA's GPUs from Turing on, and whole ones; or give an ami_id with a driver for them."
  }
}

variable "use_spot" {
  description = "Spot instances, usually far below the on-demand price; false: on demand. May be changed in mid-run: Auto Scaling then sends another worker, which goes on exactly."
  type        = bool
  default     = true
  nullable    = false
}

variable "ami_id" {
  description = "Image: Ubuntu 22.04 or 24.04, x86_64, with NVIDIA's driver where the types have a GPU. Null: the newest Deep Learning Base image. Read when the worker is created, ignored later."
  type        = string
  default     = null

  validation {
    condition     = var.ami_id == null || can(regex("^ami-([0-9a-f]{8}|[0-9a-f]{17})$", var.ami_id))
    error_message = "ami_id: give an id of the form ami-0123456789abcdef0."
  }
}

variable "root_volume_gb" {
  description = "Size of the encrypted root volume in GB; at least what the image's root snapshot has, 75 or more for images with a GPU's driver."
  type        = number
  default     = 150
  nullable    = false

  validation {
    condition     = var.root_volume_gb >= 50 && var.root_volume_gb <= 16384 && floor(var.root_volume_gb) == var.root_volume_gb
    error_message = "root_volume_gb: give a whole number from 50 to 16384."
  }
}

variable "max_runtime_hours" {
  description = "Hours after the launch at which no worker may run any more, whatever state it is in; it is ended 30 minutes later, and so is any that is started after that."
  type        = number
  default     = 24
  nullable    = false

  validation {
    condition     = var.max_runtime_hours >= 1 && var.max_runtime_hours <= 720
    error_message = "max_runtime_hours: give a number from 1 to 720."
  }
}

variable "max_attempts" {
  description = "Failures in a row without a new checkpoint after which the run counts as failed."
  type        = number
  default     = 5
  nullable    = false

  validation {
    condition     = var.max_attempts >= 1 && var.max_attempts <= 20 && floor(var.max_attempts) == var.max_attempts
    error_message = "max_attempts: give a whole number from 1 to 20."
  }
}

variable "s3_bucket_name" {
  description = "Bucket for checkpoints and artifacts. Null: made from project, account and region."
  type        = string
  default     = null

  validation {
    # No dots: TLS certificates cover one label.
    condition     = var.s3_bucket_name == null || can(regex("^[a-z0-9][a-z0-9-]{1,61}[a-z0-9]$", var.s3_bucket_name))
    error_message = "s3_bucket_name: use 3 to 63 lower-case letters, digits and inner hyphens."
  }

  validation {
    condition     = !can(regex("^(xn--|sthree-|amzn-s3-demo-)|(-s3alias|--ol-s3|--x-s3|--table-s3)$", coalesce(var.s3_bucket_name, "none")))
    error_message = "s3_bucket_name: S3 keeps names that begin with xn--, sthree- or amzn-s3-demo-, or end in -s3alias, --ol-s3, --x-s3 or --table-s3, for itself."
  }
}

variable "existing_bucket" {
  description = "s3_bucket_name exists already: use it and leave its settings and content alone."
  type        = bool
  default     = false
  nullable    = false

  validation {
    condition     = !var.existing_bucket || var.s3_bucket_name != null
    error_message = "existing_bucket: name the bucket in s3_bucket_name."
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

variable "delete_artifacts_on_destroy" {
  description = "`terraform destroy` empties and removes the bucket too. It counts only once it was applied. Not for an existing bucket."
  type        = bool
  default     = false
  nullable    = false

  validation {
    condition     = !(var.delete_artifacts_on_destroy && var.existing_bucket)
    error_message = "delete_artifacts_on_destroy: an existing bucket is never emptied; set one of the two to false."
  }
}

variable "key_pair_name" {
  description = "EC2 key pair for SSH. Null: none; the commands of session_command and journalctl_command need none."
  type        = string
  default     = null

  validation {
    condition     = var.key_pair_name == null || can(regex("^[!-~]{1,255}$", var.key_pair_name)) && !can(regex("['\"`$\\\\]", var.key_pair_name))
    error_message = "key_pair_name: give 1 to 255 printable characters without spaces, quotes, $ and backslashes."
  }
}

variable "allowed_cidrs" {
  description = "Networks that may reach SSH (22) and TensorBoard (6006), for example [\"203.0.113.7/32\"]. Empty: nobody; Session Manager still works."
  type        = list(string)
  default     = []
  nullable    = false

  validation {
    condition     = alltrue([for cidr in var.allowed_cidrs : try(cidrsubnet(cidr, 0, 0) == lower(cidr), false)])
    error_message = "allowed_cidrs: write each as address/bits, with the network's own address: 203.0.113.7/32 for one machine, 203.0.113.0/24 for its neighbours too."
  }

  validation {
    condition     = var.allow_open_ingress || alltrue([for cidr in var.allowed_cidrs : try(tonumber(split("/", cidr)[1]) >= 8, true)])
    error_message = "allowed_cidrs: a network wider than /8 opens the worker to the internet; narrow it, or set allow_open_ingress."
  }
}

variable "allow_open_ingress" {
  description = "Accept networks wider than /8, 0.0.0.0/0 among them, in allowed_cidrs. TensorBoard asks for no password."
  type        = bool
  default     = false
  nullable    = false
}

variable "kms_key_arn" {
  description = "Your own KMS key (symmetric, of aws_region and this account) for the worker's volume, and for the bucket unless that exists already. It has to outlive the bucket. Null: AWS's keys."
  type        = string
  default     = null

  validation {
    condition     = var.kms_key_arn == null || can(regex("^arn:[a-z-]+:kms:${var.aws_region}:[0-9]{12}:key/[0-9a-z-]+$", var.kms_key_arn))
    error_message = "kms_key_arn: give a key of aws_region by its ARN, for example arn:aws:kms:us-east-1:123456789012:key/0123…; an alias will not do."
  }
}

variable "notification_emails" {
  description = "Who is told by e-mail when a run completed, stopped, failed or was interrupted; each address has to confirm once. Empty: the topic alone, to subscribe to in other ways. Null: no topic."
  type        = list(string)
  default     = null

  validation {
    condition     = alltrue([for address in coalesce(var.notification_emails, []) : can(regex("^[^@[:space:]]+@[^@[:space:]]+\\.[^@[:space:]]+$", address))])
    error_message = "notification_emails: write each as name@example.org."
  }
}

variable "cloudwatch_log_days" {
  description = "Send the journal of the worker's units to CloudWatch Logs too, and keep it there for so many days. Null: no; it stands in the machine's journal and in the bucket."
  type        = number
  default     = null

  validation {
    condition     = var.cloudwatch_log_days == null || contains([1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731], coalesce(var.cloudwatch_log_days, 1))
    error_message = "cloudwatch_log_days: CloudWatch knows 1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545 and 731."
  }
}
