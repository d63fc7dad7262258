# The bucket, and what the workers read from it: run files as written, overrides, and code under its digest.

locals {
  run_paths = [for path in concat(compact([var.run_file]), var.run_files, local.experiment_paths, local.pipeline_paths) : pathexpand(path)]
  # By run_id; two files with one are refused above, and here too for whoever looks at a plan without validations.
  run_files = { for path in local.run_paths : yamldecode(file(path)).run_id => { path = path, content = yamldecode(file(path)) } }
  overrides = { for key, value in { algorithm = var.training_type, total_timesteps = var.total_timesteps, save_frequency = var.save_frequency } : key => value if value != null }

  bucket     = coalesce(var.s3_bucket_name, "${var.project_name}-${data.aws_caller_identity.current.account_id}-${var.aws_region}")
  bucket_arn = "arn:${data.aws_partition.current.partition}:s3:::${local.bucket}"
  root       = var.prefix == "" ? "" : "${var.prefix}/"
  store_url  = trimsuffix("s3://${local.bucket}/${local.root}", "/")

  # The package that the worker installs: beside this folder in a checkout, inside it where `train-cloud init` wrote it.
  repository = fileexists("${path.module}/package/pyproject.toml") ? "${path.module}/package" : "${path.module}/.."
  package = setunion(
    fileset(local.repository, "{pyproject.toml,setup.py,README.md,LICENSE}"),
    fileset(local.repository, "train_cloud/**"),
    fileset(local.repository, "bootstrap/**"),
    fileset(local.repository, "systemd/**"),
  )

  # Only these two strings are taken from a run file beside its run_id; the worker checks the rest of it.
  user_folder_as_written = { for id, run in local.run_files : id => try(tostring(run.content.code.folder), null) }
  user_folder = {
    for id, folder in local.user_folder_as_written : id => (
      folder == null ? null :
      can(regex("^([/~]|[A-Za-z]:)", folder)) ? pathexpand(folder) :
      "${dirname(local.run_files[id].path)}/${folder}"
    )
  }
  # What is code: the same rule, and the same list as NEVER, in train_cloud/config/code.py.
  never_code = [
    "**/.git", "**/.git/**", "**/.venv/**", "**/__pycache__/**", "**/*.pyc", "**/*.egg-info/**", "**/.ipynb_checkpoints/**",
    "**/.mypy_cache/**", "**/.pytest_cache/**", "**/.ruff_cache/**", "**/.hypothesis/**", "**/.coverage", "**/.idea/**",
    "**/.vscode/**", "**/.DS_Store", "**/.terraform/**", "**/*.tfstate*", "**/.train-cloud/**", "runs/**", "rehearsal/**",
    "wandb/**", "**/wandb/*run-*/**", "mlruns/**", "**/events.out.tfevents.*", "**/monitor.csv", "**/*.monitor.csv",
    "**/nohup.out",
  ]
  # Folders that a tool's own mark calls a cache or an environment, and those of stores of runs.
  never_folders = {
    for id, folder in local.user_folder : id => folder == null ? [] : distinct(flatten([
      [for mark in fileset(folder, "**/{CACHEDIR.TAG,pyvenv.cfg}") : "${dirname(mark)}/" if dirname(mark) != "."],
      [
        for file in fileset(folder, "**/runs/*/{run,head}.json") : [
          for kind in ["runs", "experiments", "pipelines"] : trimprefix("${dirname(dirname(dirname(file)))}/${kind}/", "./")
        ]
      ],
    ]))
  }
  user_excluded = {
    for id, folder in local.user_folder : id => folder == null ? [] : flatten([
      for glob in concat(local.never_code, try([for glob in local.run_files[id].content.code.exclude : tostring(glob)], [])) :
      tolist(fileset(folder, trimprefix(glob, "./")))
    ])
  }
  user_files = {
    for id, folder in local.user_folder : id => folder == null ? [] : [
      for file in setsubtract(fileset(folder, "**"), local.user_excluded[id]) : file
      if !anytrue([for never in local.never_folders[id] : startswith(file, never)]) && !(can(regex("\\.ya?ml$", file)) && anytrue([
        for keys in [["run_id"], ["experiment", "(base|vary)"], ["name", "sessions"]] : alltrue([
          for key in keys : can(regex("(?m)^(\\{\\s*)?[\"']?${key}[\"']?\\s*:", file("${folder}/${file}")))
        ])
      ]))
    ]
  }

  package_code = {
    for file in local.package : "package/${file}" => "${local.repository}/${file}"
    if !strcontains(file, "__pycache__/") && !endswith(file, ".pyc") && !startswith(file, "train_cloud/_shipped/")
  }
  package_sums = { for name, file in local.package_code : name => filesha256(file) }
  code         = { for id, files in local.user_files : id => merge(local.package_code, { for file in files : "user/${file}" => "${local.user_folder[id]}/${file}" }) }
  # In the form of sha256sum, so that the worker checks it with `sha256sum --check`; its own digest pins all of it.
  code_sums = {
    for id, code in local.code : id => join("", [
      for name in sort(keys(code)) : "${try(local.package_sums[name], filesha256(code[name]))}  ${name}\n"
    ])
  }

  # IAM knows no regions: the same run_id in two of them is two runs with two roles. A role's name has at most 64 characters;
  # where it would have more, eight of a digest take the place of its middle.
  role_names = {
    for id, name in { for id, run in local.run_files : id => "${var.project_name}-${id}" } : id => (
      length("${name}-${var.aws_region}") <= 64 ? "${name}-${var.aws_region}" :
      "${substr(name, 0, 64 - 10 - length(var.aws_region))}-${substr(sha256(name), 0, 8)}-${var.aws_region}"
    )
  }

  # All that differs from run to run.
  runs = {
    for id, run in local.run_files : id => {
      name        = "${var.project_name}-${id}"
      role        = local.role_names[id]
      path        = run.path
      prefix      = "${local.root}${id == local.pipeline_id ? "pipelines" : "runs"}/${id}/"
      code_digest = sha256(local.code_sums[id])
      code_prefix = "${local.root}code/${sha256(local.code_sums[id])}/"
    }
  }
  # Runs with the same code share it.
  code_objects = merge([
    for id, code in local.code : { for name, file in code : "${local.runs[id].code_digest}/${name}" => file }
  ]...)
}

data "aws_caller_identity" "current" {}

data "aws_partition" "current" {}

data "aws_s3_bucket" "existing" {
  count  = var.existing_bucket ? 1 : 0
  bucket = local.bucket

  lifecycle {
    postcondition {
      condition     = self.region == var.aws_region
      error_message = "s3_bucket_name: this bucket is in ${self.region}; a bucket of aws_region ${var.aws_region} is needed."
    }
  }
}

resource "aws_s3_bucket" "runs" {
  #checkov:skip=CKV_AWS_18:An access log needs a second bucket that outlives this one; CloudTrail is the account's to switch on.
  #checkov:skip=CKV_AWS_144:Versions keep what is deleted by mistake; a second region would double the bill for checkpoints.
  #checkov:skip=CKV2_AWS_62:Nobody listens for objects; ends and interruptions are told by the worker (notification_emails).
  count         = var.existing_bucket ? 0 : 1
  bucket        = local.bucket
  force_destroy = var.delete_artifacts_on_destroy
}

resource "aws_s3_bucket_public_access_block" "runs" {
  count                   = length(aws_s3_bucket.runs)
  bucket                  = aws_s3_bucket.runs[0].id
  block_public_acls       = true
  block_public_policy     = true
  ignore_public_acls      = true
  restrict_public_buckets = true
}

resource "aws_s3_bucket_versioning" "runs" {
  count  = length(aws_s3_bucket.runs)
  bucket = aws_s3_bucket.runs[0].id

  versioning_configuration {
    status = "Enabled"
  }
}

resource "aws_s3_bucket_server_side_encryption_configuration" "runs" {
  count  = length(aws_s3_bucket.runs)
  bucket = aws_s3_bucket.runs[0].id

  rule {
    bucket_key_enabled = var.kms_key_arn != null

    apply_server_side_encryption_by_default {
      sse_algorithm     = var.kms_key_arn == null ? "AES256" : "aws:kms"
      kms_master_key_id = var.kms_key_arn
    }
  }
}

resource "aws_s3_bucket_policy" "runs" {
  count  = length(aws_s3_bucket.runs)
  bucket = aws_s3_bucket.runs[0].id

  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Sid       = "TlsOnly"
      Effect    = "Deny"
      Principal = "*"
      Action    = "s3:*"
      Resource  = [local.bucket_arn, "${local.bucket_arn}/*"]
      Condition = { Bool = { "aws:SecureTransport" = "false" } }
    }]
  })

  # Two writers of a bucket's access settings at once are refused as a conflict.
  depends_on = [aws_s3_bucket_public_access_block.runs]
}

resource "aws_s3_bucket_lifecycle_configuration" "runs" {
  count  = length(aws_s3_bucket.runs)
  bucket = aws_s3_bucket.runs[0].id

  # What the run deletes or overwrites stays for three days, in case somebody regrets it.
  rule {
    id     = "forget-superseded"
    status = "Enabled"

    filter {}

    noncurrent_version_expiration {
      noncurrent_days = 3
    }

    abort_incomplete_multipart_upload {
      days_after_initiation = 1
    }

    expiration {
      expired_object_delete_marker = true
    }
  }

  depends_on = [aws_s3_bucket_versioning.runs]
}

resource "aws_s3_object" "run_file" {
  for_each     = local.runs
  bucket       = local.bucket
  key          = "${each.value.prefix}run.yaml"
  source       = each.value.path
  source_hash  = filemd5(each.value.path)
  content_type = "application/yaml"
  depends_on   = [terraform_data.bucket_ready]
}

resource "aws_s3_object" "run" {
  for_each     = local.runs
  bucket       = local.bucket
  key          = "${each.value.prefix}run.json"
  content_type = "application/json"
  depends_on   = [terraform_data.bucket_ready]

  # The worker ends by itself at the deadline, half an hour before its group is taken to 0 from outside. When the time has
  # come it looks here again, so that a limit that was raised in mid-run holds.
  content = jsonencode(merge(
    {
      run_id      = each.key
      overrides   = {}
      launched_by = "terraform"
      deadline    = timeadd(local.launched[each.key], "${ceil(var.max_runtime_hours * 60)}m")
      volume      = local.volume
    },
    # Whose limits this run's worker looks after too.
    var.experiment_file == null ? {} : { experiment = local.experiment_name },
  ))
}

resource "aws_s3_object" "overrides" {
  for_each     = local.runs
  bucket       = local.bucket
  key          = "${each.value.prefix}overrides-0.json"
  content      = jsonencode(local.overrides)
  content_type = "application/json"
  depends_on   = [terraform_data.bucket_ready]
}

resource "aws_s3_object" "code" {
  for_each    = local.code_objects
  bucket      = local.bucket
  key         = "${local.root}code/${each.key}"
  source      = each.value
  source_hash = filesha256(each.value)
  depends_on  = [terraform_data.bucket_ready]

  lifecycle {
    # A worker that is starting reads the old code until the group has the new template.
    create_before_destroy = true
  }
}

resource "aws_s3_object" "code_sums" {
  for_each   = { for id, run in local.runs : run.code_digest => local.code_sums[id]... }
  bucket     = local.bucket
  key        = "${local.root}code/${each.key}/SHA256SUMS"
  content    = each.value[0]
  depends_on = [terraform_data.bucket_ready]

  lifecycle {
    create_before_destroy = true
  }
}

# One name for "the bucket is there and as it should be", whichever it is. Destroyed after all that Terraform wrote to the
# bucket and before the bucket's settings. A bucket that stays would fail only after those: private, TLS only and versioned
# no longer. So it is here that `terraform destroy` stops.
resource "terraform_data" "bucket_ready" {
  input = { bucket = local.bucket, stays = !var.existing_bucket && !var.delete_artifacts_on_destroy }

  provisioner "local-exec" {
    when = destroy
    # For any shell, cmd.exe too: no quotes, nothing special.
    command = self.output.stays ? "echo kept: the bucket ${self.output.bucket}, its settings and all that is in it. To delete them: terraform apply -var delete_artifacts_on_destroy=true, then terraform destroy && exit 1" : "exit 0"
  }

  depends_on = [
    data.aws_s3_bucket.existing,
    aws_s3_bucket_policy.runs,
    aws_s3_bucket_server_side_encryption_configuration.runs,
    aws_s3_bucket_versioning.runs,
  ]
}
