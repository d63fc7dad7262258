# What a job may do: read what was launched, write its runs' state, pull its image, say what it says. Nothing else. One role
# serves all runs of this store, since a launch creates a job and no role.

locals {
  partition  = data.aws_partition.current.partition
  account    = data.aws_caller_identity.current.account_id
  bucket_arn = "arn:${local.partition}:s3:::${var.s3_bucket_name}"
  root       = var.prefix == "" ? "" : "${var.prefix}/"
  store      = trimsuffix("s3://${var.s3_bucket_name}/${local.root}", "/")
  ec2        = "arn:${local.partition}:ec2:${var.aws_region}:${local.account}"
  log_group  = "/aws/sagemaker/TrainingJobs"
  role_name  = "${var.project_name}-sagemaker-${var.aws_region}"

  # As the EC2 module has it for each run (iam.tf): run.yaml, run.json, launches/ and jobs/ are not among them, and no code.
  written_by_job = [
    "head.json", "checkpoints/*", "replay/*", "sessions/*", "env/*", "artifacts/*", "evaluations/*", "launched/*", "told/*",
  ]
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

resource "aws_iam_role" "job" {
  name        = local.role_name
  description = "Training jobs of ${var.project_name}."

  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Principal = { Service = "sagemaker.amazonaws.com" }
      Action    = "sts:AssumeRole"
      # SageMaker acts for many accounts: only for this one may it take this role.
      Condition = { StringEquals = { "aws:SourceAccount" = local.account } }
    }]
  })
}

resource "aws_iam_role_policy" "job" {
  #checkov:skip=CKV_AWS_290:AWS knows no resources for what looks at a VPC, for an authorisation at ECR, and for metrics, which the namespace bounds.
  #checkov:skip=CKV_AWS_355:As above.
  name = "job"
  role = aws_iam_role.job.name

  policy = jsonencode({
    Version = "2012-10-17"
    Statement = concat([
      {
        Sid       = "List"
        Effect    = "Allow"
        Action    = "s3:ListBucket"
        Resource  = local.bucket_arn
        Condition = { StringLike = { "s3:prefix" = [for folder in ["runs", "code", "experiments", "pipelines"] : "${local.root}${folder}/*"] } }
      },
      {
        Sid      = "Read"
        Effect   = "Allow"
        Action   = "s3:GetObject"
        Resource = [for folder in ["runs", "code", "experiments", "pipelines"] : "${local.bucket_arn}/${local.root}${folder}/*"]
      },
      {
        Sid      = "Write"
        Effect   = "Allow"
        Action   = ["s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"]
        Resource = [for part in local.written_by_job : "${local.bucket_arn}/${local.root}runs/*/${part}"]
      },
      {
        # What SageMaker itself writes at a job's end, an empty archive; and what readers of an experiment find.
        Sid    = "WriteBeside"
        Effect = "Allow"
        Action = "s3:PutObject"
        Resource = concat(
          ["${local.bucket_arn}/${local.root}sagemaker/*"],
          [for file in ["config.json", "all_results.json"] : "${local.bucket_arn}/${local.root}experiments/*/${file}"],
          [for file in ["pipeline_state.json", "pipeline_report.json"] : "${local.bucket_arn}/${local.root}pipelines/*/${file}"],
        )
      },
      {
        Sid      = "PullImage"
        Effect   = "Allow"
        Action   = ["ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"]
        Resource = aws_ecr_repository.image.arn
      },
      {
        Sid      = "Authorise"
        Effect   = "Allow"
        Action   = "ecr:GetAuthorizationToken"
        Resource = "*"
      },
      {
        Sid      = "Log"
        Effect   = "Allow"
        Action   = ["logs:CreateLogGroup", "logs:CreateLogStream", "logs:DescribeLogStreams", "logs:PutLogEvents"]
        Resource = "arn:${local.partition}:logs:${var.aws_region}:${local.account}:log-group:${local.log_group}:*"
      },
      {
        Sid       = "Measure"
        Effect    = "Allow"
        Action    = "cloudwatch:PutMetricData"
        Resource  = "*"
        Condition = { StringEquals = { "cloudwatch:namespace" = "/aws/sagemaker/TrainingJobs" } }
      },
      {
        # Whether it is being stopped, or its machine is taken, after which it is started again.
        Sid      = "LookAtItself"
        Effect   = "Allow"
        Action   = "sagemaker:DescribeTrainingJob"
        Resource = "arn:${local.partition}:sagemaker:${var.aws_region}:${local.account}:training-job/*"
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
      # "CreateTrainingJob API: Execution Role Permissions", for a VPC.
      [for statement in [
        {
          Sid    = "StandInTheVpc"
          Effect = "Allow"
          Action = "ec2:CreateNetworkInterface"
          Resource = concat(
            ["${local.ec2}:network-interface/*", "${local.ec2}:security-group/${coalesce(one(aws_security_group.job[*].id), "-")}"],
            [for id in var.subnet_ids : "${local.ec2}:subnet/${id}"],
          )
        },
        {
          Sid    = "LeaveTheVpc"
          Effect = "Allow"
          Action = [
            "ec2:CreateNetworkInterfacePermission", "ec2:DeleteNetworkInterface", "ec2:DeleteNetworkInterfacePermission",
          ]
          Resource = "${local.ec2}:network-interface/*"
        },
        {
          Sid    = "LookAtTheVpc"
          Effect = "Allow"
          Action = [
            "ec2:DescribeDhcpOptions", "ec2:DescribeNetworkInterfaces", "ec2:DescribeSecurityGroups", "ec2:DescribeSubnets",
            "ec2:DescribeVpcs",
          ]
          Resource = "*"
        },
      ] : statement if length(var.subnet_ids) > 0],
      [for statement in [
        {
          Sid       = "ReadAndWriteWithTheKey"
          Effect    = "Allow"
          Action    = ["kms:Decrypt", "kms:GenerateDataKey"]
          Resource  = var.kms_key_arn
          Condition = { StringEquals = { "kms:ViaService" = "s3.${var.aws_region}.amazonaws.com" } }
        },
        {
          # For the job's volume.
          Sid       = "GiveTheKey"
          Effect    = "Allow"
          Action    = ["kms:CreateGrant", "kms:DescribeKey"]
          Resource  = var.kms_key_arn
          Condition = { StringEquals = { "kms:ViaService" = "sagemaker.${var.aws_region}.amazonaws.com" } }
        },
      ] : statement if var.kms_key_arn != null],
    )
  })
}
