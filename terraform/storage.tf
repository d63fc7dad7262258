# The bucket, and what the worker reads from it: the run file as written, the overrides, and the code under its digest.

locals {
  run_file  = yamldecode(file(pathexpand(var.run_file)))
  run_id    = local.run_file.run_id
  overrides = { for key, value in { algorithm = var.training_type, total_timesteps = var.total_timesteps, save_frequency = var.save_frequency } : key => value if value != null }

  bucket     = coalesce(var.s3_bucket_name, "${var.project_name}-${data.aws_caller_identity.current.account_id}-${var.aws_region}")
  bucket_arn = "arn:${data.aws_partition.current.partition}:s3:::${local.bucket}"
  root       = var.prefix == "" ? "" : "${var.prefix}/"
  run_prefix = "${local.root}runs/${local.run_id}/"
  store_url  = trimsuffix("s3://${local.bucket}/${local.root}", "/")

  repository = "${path.module}/.."
  package = setunion(
    fileset(local.repository, "{pyproject.toml,README.md,LICENSE}"),
    fileset(local.repository, "train_cloud/**"),
    fileset(local.repository, "bootstrap/**"),
    fileset(local.repository, "systemd/**"),
  )

  # Only these two strings are taken from the run file beside its run_id; the worker checks the rest of it.
  user_folder_as_written = try(tostring(local.run_file.code.folder), null)
  user_folder = (
    local.user_folder_as_written == null ? null :
    can(regex("^([/~]|[A-Za-z]:)", local.user_folder_as_written)) ? pathexpand(local.user_folder_as_written) :
    "${dirname(pathexpand(var.run_file))}/${local.user_folder_as_written}"
  )
  # The same list as ALWAYS_EXCLUDED in train_cloud/config/identity.py: the digest of the user's code is part of the run.
  never_code = [
    ".git/**", ".venv/**", "**/__pycache__/**", "**/*.pyc", "**/.DS_Store", "**/.ipynb_checkpoints/**", "**/.terraform/**",
    "**/*.tfstate*", "runs/**", "rehearsal/**",
  ]
  user_excluded = local.user_folder == null ? [] : flatten([
    for glob in concat(local.never_code, try([for glob in local.run_file.code.exclude : tostring(glob)], [])) :
    tolist(fileset(local.user_folder, trimprefix(glob, "./")))
  ])
  user_files = local.user_folder == null ? [] : setsubtract(fileset(local.user_folder, "**"), local.user_excluded)

  code = merge(
    { for file in local.package : "package/${file}" => "${local.repository}/${file}" if !strcontains(file, "__pycache__/") && !endswith(file, ".pyc") },
    { for file in local.user_files : "user/${file}" => "${local.user_folder}/${file}" },
  )
  # In the form of sha256sum, so that the worker checks it with `sha256sum --check`; its own digest pins all of it.
  code_sums   = join("", [for name in sort(keys(local.code)) : "${filesha256(local.code[name])}  ${name}\n"])
  code_digest = sha256(local.code_sums)
  code_prefix = "${local.root}code/${local.code_digest}/"
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
    apply_server_side_encryption_by_default {
      sse_algorithm = "AES256"
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
  bucket       = local.bucket
  key          = "${local.run_prefix}run.yaml"
  source       = pathexpand(var.run_file)
  source_hash  = filemd5(pathexpand(var.run_file))
  content_type = "application/yaml"
  depends_on   = [terraform_data.bucket_ready]
}

resource "aws_s3_object" "run" {
  bucket       = local.bucket
  key          = "${local.run_prefix}run.json"
  content      = jsonencode({ run_id = local.run_id, overrides = {}, launched_by = "terraform" })
  content_type = "application/json"
  depends_on   = [terraform_data.bucket_ready]
}

resource "aws_s3_object" "overrides" {
  bucket       = local.bucket
  key          = "${local.run_prefix}overrides-0.json"
  content      = jsonencode(local.overrides)
  content_type = "application/json"
  depends_on   = [terraform_data.bucket_ready]
}

resource "aws_s3_object" "code" {
  for_each    = local.code
  bucket      = local.bucket
  key         = "${local.code_prefix}${each.key}"
  source      = each.value
  source_hash = filesha256(each.value)
  depends_on  = [terraform_data.bucket_ready]

  lifecycle {
    # A worker that is starting reads the old code until the group has the new template.
    create_before_destroy = true
  }
}

resource "aws_s3_object" "code_sums" {
  bucket     = local.bucket
  key        = "${local.code_prefix}SHA256SUMS"
  content    = local.code_sums
  depends_on = [terraform_data.bucket_ready]

  lifecycle {
    create_before_destroy = true
  }
}

# One name for "the bucket is there and as it should be", whichever it is.
resource "terraform_data" "bucket_ready" {
  depends_on = [
    data.aws_s3_bucket.existing,
    aws_s3_bucket_policy.runs,
    aws_s3_bucket_server_side_encryption_configuration.runs,
    aws_s3_bucket_versioning.runs,
  ]
}
