# What is off unless asked for: notifications, CloudWatch Logs, a key of one's own.

locals {
  notifies   = var.notification_emails != null
  logs       = var.cloudwatch_log_days != null
  log_groups = { for id, run in local.runs : id => "/${run.name}" if local.logs }
}

# One for all runs: an address has to confirm once. The prefix, because another stack may have the same project_name.
resource "aws_sns_topic" "runs" {
  count             = local.notifies ? 1 : 0
  name_prefix       = "${var.project_name}-"
  kms_master_key_id = "alias/aws/sns"
}

resource "aws_sns_topic_subscription" "email" {
  for_each  = toset(coalesce(var.notification_emails, []))
  topic_arn = aws_sns_topic.runs[0].arn
  protocol  = "email"
  endpoint  = each.value
}

resource "aws_cloudwatch_log_group" "worker" {
  #checkov:skip=CKV_AWS_158:CloudWatch encrypts with a key of its own; for kms_key_arn its service would need a statement in the key's policy, which is not this stack's.
  for_each          = local.log_groups
  name              = each.value
  retention_in_days = var.cloudwatch_log_days
}

# AWS makes this role with an account's first group; before that there is nobody to allow the key to.
data "aws_iam_role" "autoscaling" {
  count = var.kms_key_arn == null ? 0 : 1
  name  = "AWSServiceRoleForAutoScaling"
}

# Auto Scaling launches with its own role, which may use no key of the account's; without this the volume cannot be made
# and each launch fails with Client.InternalError.
resource "aws_kms_grant" "autoscaling" {
  count             = length(data.aws_iam_role.autoscaling)
  name              = var.project_name
  key_id            = var.kms_key_arn
  grantee_principal = data.aws_iam_role.autoscaling[0].arn

  operations = [
    "CreateGrant", "Decrypt", "DescribeKey", "Encrypt", "GenerateDataKey", "GenerateDataKeyWithoutPlaintext",
    "ReEncryptFrom", "ReEncryptTo",
  ]
}
