# What the worker may do: read its run file and code, write its own run's state, and end its own group. Nothing else.

locals {
  # Built from names, so that the policy can stand before the group does and the first boot finds it.
  group_arn = "arn:${data.aws_partition.current.partition}:autoscaling:${var.aws_region}:${data.aws_caller_identity.current.account_id}:autoScalingGroup:*:autoScalingGroupName/${local.name}"

  # run.yaml, run.json and overrides-*.json are not among them: what was launched stays as it was launched.
  written_by_worker = ["head.json", "checkpoints/*", "replay/*", "sessions/*", "boots/*", "env/*", "artifacts/*", "evaluations/*", "logs/*"]
}

resource "aws_iam_role" "worker" {
  name        = local.name
  description = "Worker of the run ${local.run_id}."

  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Principal = { Service = "ec2.amazonaws.com" }
      Action    = "sts:AssumeRole"
    }]
  })
}

resource "aws_iam_role_policy" "worker" {
  name = "run"
  role = aws_iam_role.worker.name

  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Sid       = "List"
        Effect    = "Allow"
        Action    = "s3:ListBucket"
        Resource  = local.bucket_arn
        Condition = { StringLike = { "s3:prefix" = ["${local.run_prefix}*", "${local.code_prefix}*"] } }
      },
      {
        Sid      = "Read"
        Effect   = "Allow"
        Action   = "s3:GetObject"
        Resource = ["${local.bucket_arn}/${local.run_prefix}*", "${local.bucket_arn}/${local.code_prefix}*"]
      },
      {
        Sid      = "Write"
        Effect   = "Allow"
        Action   = ["s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"]
        Resource = [for part in local.written_by_worker : "${local.bucket_arn}/${local.run_prefix}${part}"]
      },
      {
        Sid    = "EndItself"
        Effect = "Allow"
        Action = [
          "autoscaling:CompleteLifecycleAction",
          "autoscaling:SetDesiredCapacity",
          "autoscaling:TerminateInstanceInAutoScalingGroup",
        ]
        Resource = local.group_arn
      },
      {
        # None of these knows resources. The last two tell what this machine costs.
        Sid    = "Look"
        Effect = "Allow"
        Action = [
          "autoscaling:DescribeAutoScalingGroups",
          "autoscaling:DescribeLifecycleHooks",
          "ec2:DescribeSpotPriceHistory",
          "pricing:GetProducts",
        ]
        Resource = "*"
      },
    ]
  })
}

# Session Manager: a shell and a log without an open port or a key.
resource "aws_iam_role_policy_attachment" "session" {
  role       = aws_iam_role.worker.name
  policy_arn = "arn:${data.aws_partition.current.partition}:iam::aws:policy/AmazonSSMManagedInstanceCore"
}

resource "aws_iam_instance_profile" "worker" {
  name = local.name
  role = aws_iam_role.worker.name
}
