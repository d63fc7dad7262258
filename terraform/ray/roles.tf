# What a node may do: read what was launched, write its runs' state. The head may besides launch and end workers of this
# cluster, with the workers' role and nothing else. One role serves all runs of this store, since any node trains any run.

locals {
  partition  = data.aws_partition.current.partition
  account    = data.aws_caller_identity.current.account_id
  bucket_arn = "arn:${local.partition}:s3:::${var.s3_bucket_name}"
  root       = var.prefix == "" ? "" : "${var.prefix}/"
  store      = trimsuffix("s3://${var.s3_bucket_name}/${local.root}", "/")
  ec2        = "arn:${local.partition}:ec2:${var.aws_region}:${local.account}"
  image_id   = coalesce(var.ami_id, one(data.aws_ssm_parameter.image[*].insecure_value))
  roles      = { for part in ["head", "worker"] : part => "${var.cluster_name}-ray-${part}-${var.aws_region}" }
  of_cluster = { StringEquals = { "aws:ResourceTag/ray-cluster-name" = var.cluster_name } }

  secret_arns = [
    for name in var.secret_parameters : "arn:${local.partition}:ssm:${var.aws_region}:${local.account}:parameter/${trimprefix(name, "/")}"
  ]
  inputs = {
    for number, url in var.read_s3_urls : number => {
      bucket = "arn:${local.partition}:s3:::${split("/", url)[2]}"
      prefix = join("/", slice(split("/", url), 3, length(split("/", url))))
    }
  }
}

data "aws_caller_identity" "current" {}

data "aws_partition" "current" {}

data "aws_ssm_parameter" "image" {
  count = var.ami_id == null ? 1 : 0
  name  = "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-22.04/latest/ami-id"
}

resource "aws_iam_role" "node" {
  for_each    = local.roles
  name        = each.value
  description = "Ray cluster ${var.cluster_name}: ${each.key}."

  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Principal = { Service = "ec2.amazonaws.com" }
      Action    = "sts:AssumeRole"
    }]
  })
}

resource "aws_iam_instance_profile" "node" {
  for_each = local.roles
  name     = each.value
  role     = aws_iam_role.node[each.key].name
}

resource "aws_iam_role_policy" "runs" {
  #checkov:skip=CKV_AWS_290:AWS knows no resources for looking up prices.
  #checkov:skip=CKV_AWS_355:As above.
  for_each = local.roles
  name     = "runs"
  role     = aws_iam_role.node[each.key].name

  policy = jsonencode({
    Version = "2012-10-17"
    Statement = concat([
      {
        Sid       = "List"
        Effect    = "Allow"
        Action    = "s3:ListBucket"
        Resource  = local.bucket_arn
        Condition = { StringLike = { "s3:prefix" = [for folder in ["runs", "experiments", "ray"] : "${local.root}${folder}/*"] } }
      },
      {
        # The launch looks on from the head: it gives an outcome to runs that it gives up, and keeps a search's journal.
        Sid      = "ReadAndWrite"
        Effect   = "Allow"
        Action   = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"]
        Resource = [for folder in ["runs", "experiments"] : "${local.bucket_arn}/${local.root}${folder}/*"]
      },
      {
        # The versions of the first node, which all later ones install.
        Sid      = "KeepVersions"
        Effect   = "Allow"
        Action   = ["s3:GetObject", "s3:PutObject"]
        Resource = "${local.bucket_arn}/${local.root}ray/*"
      },
      {
        Sid      = "LookUpPrices"
        Effect   = "Allow"
        Action   = ["ec2:DescribeSpotPriceHistory", "pricing:GetProducts"]
        Resource = "*"
      },
      ],
      # Each option adds exactly its own.
      [for number, folder in local.inputs : {
        Sid       = "ListInput${number}"
        Effect    = "Allow"
        Action    = "s3:ListBucket"
        Resource  = folder.bucket
        Condition = { StringLike = { "s3:prefix" = ["${folder.prefix}*"] } }
      }],
      [for number, folder in local.inputs : {
        Sid      = "ReadInput${number}"
        Effect   = "Allow"
        Action   = "s3:GetObject"
        Resource = "${folder.bucket}/${folder.prefix}*"
      }],
      length(local.secret_arns) == 0 ? [] : [{
        Sid      = "ReadSecrets"
        Effect   = "Allow"
        Action   = "ssm:GetParameter"
        Resource = local.secret_arns
      }],
      var.kms_key_arn == null ? [] : [{
        Sid       = "ReadAndWriteWithTheKey"
        Effect    = "Allow"
        Action    = ["kms:Decrypt", "kms:GenerateDataKey"]
        Resource  = var.kms_key_arn
        Condition = { StringEquals = { "kms:ViaService" = "s3.${var.aws_region}.amazonaws.com" } }
      }],
    )
  })
}

# What Ray's autoscaler calls (ray/autoscaler/_private/aws/node_provider.py of Ray 2.60).
resource "aws_iam_role_policy" "autoscaler" {
  #checkov:skip=CKV_AWS_355:AWS knows no resources for looking at machines.
  #checkov:skip=CKV_AWS_290:As above.
  name = "autoscaler"
  role = aws_iam_role.node["head"].name

  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Sid      = "LookAtMachines"
        Effect   = "Allow"
        Action   = ["ec2:DescribeInstances", "ec2:DescribeInstanceTypes", "ec2:DescribeImages"]
        Resource = "*"
      },
      {
        # A worker, and none without this cluster's tag and the workers' role.
        Sid      = "LaunchWorkers"
        Effect   = "Allow"
        Action   = "ec2:RunInstances"
        Resource = "${local.ec2}:instance/*"
        Condition = {
          StringEquals = { "aws:RequestTag/ray-cluster-name" = var.cluster_name }
          ArnEquals    = { "ec2:InstanceProfile" = aws_iam_instance_profile.node["worker"].arn }
        }
      },
      {
        Sid    = "LaunchFrom"
        Effect = "Allow"
        Action = "ec2:RunInstances"
        Resource = concat(
          [
            "arn:${local.partition}:ec2:${var.aws_region}::image/${local.image_id}",
            "${local.ec2}:key-pair/${var.key_name}",
            "${local.ec2}:security-group/${aws_security_group.node.id}",
            "${local.ec2}:network-interface/*",
            "${local.ec2}:volume/*",
            "${local.ec2}:spot-instances-request/*",
          ],
          [for id in local.subnet_ids : "${local.ec2}:subnet/${id}"],
        )
      },
      {
        Sid       = "TagWhatItLaunches"
        Effect    = "Allow"
        Action    = "ec2:CreateTags"
        Resource  = "${local.ec2}:instance/*"
        Condition = { StringEquals = { "ec2:CreateAction" = "RunInstances", "aws:RequestTag/ray-cluster-name" = var.cluster_name } }
      },
      {
        Sid       = "TagAndEndItsWorkers"
        Effect    = "Allow"
        Action    = ["ec2:CreateTags", "ec2:TerminateInstances"]
        Resource  = "${local.ec2}:instance/*"
        Condition = local.of_cluster
      },
      {
        Sid       = "GiveWorkersTheirRole"
        Effect    = "Allow"
        Action    = "iam:PassRole"
        Resource  = aws_iam_role.node["worker"].arn
        Condition = { StringEquals = { "iam:PassedToService" = "ec2.amazonaws.com" } }
      },
    ]
  })
}
